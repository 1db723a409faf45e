"""Character encodings of web pages, of which only character sets count: Python also calls base64 and punycode codecs.

Order of trust: byte order mark, strict UTF-8, what the page or its server declares, detection.
UTF-8 comes before the declaration because text that decodes as UTF-8 with non-ASCII characters is
practically never anything else, while declarations are wrong often enough. The declared name is
read as browsers do (WHATWG: ``gb2312`` means GB18030, ``shift_jis`` means CP932, ``tis-620`` means
CP874, ``iso-8859-1`` means CP1252, and a page that says in ASCII that it is UTF-16 is UTF-8). A
declared Western encoding is the template's default as often as the truth: where bytes above 127 come
in runs, which accents do not, detection and the language's own encodings go first.
"""

from __future__ import annotations

import codecs
import re
from encodings import normalize_encoding
from encodings.aliases import aliases

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# https://encoding.spec.whatwg.org/#names-and-labels, those that matter for the languages here
_WHATWG = {
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "ms932": "cp932",
    "ms_kanji": "cp932",
    "euc-jp": "euc_jp",
    "x-euc-jp": "euc_jp",
    "iso-2022-jp": "iso2022_jp",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb_2312-80": "gb18030",
    "x-gbk": "gb18030",
    "chinese": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "big5-hkscs": "big5hkscs",
    "x-x-big5": "big5hkscs",
    "cn-big5": "big5hkscs",
    "tis-620": "cp874",
    "windows-874": "cp874",
    "iso-8859-11": "cp874",
    "dos-874": "cp874",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "windows-1252": "cp1252",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
}
# Python's modules for the encodings of https://encoding.spec.whatwg.org/#names-and-labels, with their supersets, and
# for those that only the detector names. All decode in linear time and take errors="replace"; what a page calls
# base64, idna, undefined, punycode (quadratic) or utf-7 does not, or is none.
_MODULES = """
ascii utf_8 utf_8_sig utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le latin_1 tis_620 koi8_r koi8_u koi8_t kz1048
ptcp154 hp_roman8 cp437 cp720 cp737 cp775 cp850 cp852 cp855 cp856 cp857 cp858 cp860 cp861 cp862 cp863 cp864 cp865 cp866
cp869 cp874 cp1006 cp1125 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp932 cp949 cp950 big5
big5hkscs gb2312 gbk gb18030 hz johab euc_jp euc_jis_2004 euc_jisx0213 euc_kr shift_jis shift_jis_2004 shift_jisx0213
iso2022_jp iso2022_jp_1 iso2022_jp_2 iso2022_jp_2004 iso2022_jp_3 iso2022_jp_ext iso2022_kr iso8859_1 iso8859_2
iso8859_3 iso8859_4 iso8859_5 iso8859_6 iso8859_7 iso8859_8 iso8859_9 iso8859_10 iso8859_11 iso8859_13 iso8859_14
iso8859_15 iso8859_16 mac_arabic mac_croatian mac_cyrillic mac_farsi mac_greek mac_iceland mac_latin2 mac_roman
mac_romanian mac_turkish
"""
_CHARACTER_SETS = frozenset(_MODULES.split())
_LANGUAGE_ENCODINGS = {
    "ja": ("cp932", "euc_jp", "iso2022_jp"),
    "zh": ("gb18030", "big5hkscs"),
    "th": ("cp874",),
    "vi": ("cp1258",),
    "ko": ("cp949",),
}
_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.I)
_XML_ENCODING = re.compile(rb"""^\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9_:.-]{2,40})""", re.I)
_HEADER_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.I)
_MAXIMUM_BAD_SHARE = 0.002
_ASCII = bytes(range(128))
_HIGH_RUN = re.compile(rb"[\x80-\xff]{2,}")


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class UndecodableInput(Exception):
    """No encoding fits the bytes."""


def encodable(text: str) -> str:
    """Text with U+FFFD for lone surrogates: JSON can escape them, UTF-8 cannot hold them."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def decode_page(data: bytes, *, content_type: str | None = None, language: str | None = None) -> str:
    """Text of an HTML page whatever its encoding.

    Args:
        data: the page.
        content_type: HTTP header of that name.
        language: expected language, to choose among encodings that all decode.

    Raises:
        UndecodableInput: binary data, or an encoding nobody declared and detection misses.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, errors="replace")
    declared = _declared(data, content_type)
    try:
        text = data.decode("utf-8")
        if declared != "iso2022_jp" or b"\x1b$" not in data:  # ISO-2022-JP is ASCII bytes throughout
            return text
    except UnicodeDecodeError:
        pass
    detected = _detected(data)
    own = _LANGUAGE_ENCODINGS.get((language or "").split("-")[0], ())
    order: list[str | None] = [declared, detected, *own]
    if declared is not None and _is_western(declared) and _high_bytes_in_runs(data):
        order = [*(name for name in (detected, *own) if name and not _is_western(name)), declared]
    candidates = [name for name in order if name is not None]
    high_bytes = len(data.translate(None, _ASCII))
    best: tuple[float, str] | None = None
    for name in dict.fromkeys(candidates):
        text = data.decode(name, errors="replace")
        bad = text.count("\ufffd") / max(1, high_bytes or len(text))
        if bad <= _MAXIMUM_BAD_SHARE:
            return text
        if best is None or bad < best[0]:
            best = (bad, text)
    # A UTF-8 page with a few broken bytes (cut in the middle of a character) is still UTF-8.
    text = data.decode("utf-8", errors="replace")
    bad = text.count("\ufffd") / max(1, len(text))
    if bad <= 0.01:
        return text
    raise UndecodableInput(
        f"{bad:.0%} of the characters are invalid as UTF-8"
        + (f", {best[0]:.1%} as the best of {', '.join(dict.fromkeys(candidates))}" if best else "")
    )


def decode_text(data: bytes, encoding: str | None, language: str | None = None) -> str:
    """Text of a plain file: the given encoding strictly, else as :func:`decode_page`.

    Raises:
        UndecodableInput: the bytes are not in that encoding.
    """
    if encoding is None:
        return decode_page(data, language=language)
    if python_codec(encoding) is None:
        raise UndecodableInput(f"'{encoding}' is no character set")
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        raise UndecodableInput(str(error)) from error


def _declared(data: bytes, content_type: str | None) -> str | None:
    head = data[:4096]
    inside = [_META_CHARSET.search(head), _XML_ENCODING.search(head)]
    labels = [match[1].decode("ascii") for match in inside if match is not None]
    if content_type and (found := _HEADER_CHARSET.search(content_type)) is not None:
        labels.append(found[1])
    for label in labels:
        if (name := python_codec(label)) is not None:
            wide = name.replace("_", "-").startswith(("utf-16", "utf-32"))
            return "utf-8" if wide and b"\0" not in head else name
    return None


def _is_western(name: str) -> bool:
    return name.startswith(("cp125", "iso8859")) and name not in ("cp1258", "cp1256", "cp1255", "cp1251")


def _high_bytes_in_runs(data: bytes) -> bool:
    """Whether most bytes above 127 stand beside another one, as in scripts that are not Latin."""
    high = len(data.translate(None, _ASCII))
    return 2 * sum(map(len, _HIGH_RUN.findall(data))) > high


def _detected(data: bytes) -> str | None:
    import cchardet

    name = cchardet.detect(data[:200_000])["encoding"]
    return None if name is None else python_codec(name)


def python_codec(label: str) -> str | None:
    """Python's name of a character set; None for any other label."""
    lowered = label.strip().lower()
    name = _WHATWG.get(lowered, lowered)
    if name in _WHATWG.values():
        return name
    module = normalize_encoding(name).replace(".", "_")
    module = aliases.get(module, module)
    return codecs.lookup(module).name if module in _CHARACTER_SETS else None
