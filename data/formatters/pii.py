"""Masks personal data: e-mail and IP addresses, phone numbers, national identity numbers.

Addresses become reserved ones (``email@example.com``, ``192.0.2.1`` of RFC 5737, ``2001:db8::1`` of
RFC 3849); in phone and identity numbers every digit becomes ``0``, so the text keeps its shape.
Full-width, Thai, Lao, Khmer and Burmese digits count as digits.
Formats are those the authorities publish; a number with a check digit is masked only if the digit
is right, a number with a date only if the date exists, so years, prices and part numbers stay.
"""

from __future__ import annotations

import calendar
import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import PiiKind

_DIGIT = re.compile(r"\d")
# ASCII letters only: Japanese or Thai text touches a number without a space.
_START = r"(?<![A-Za-z0-9_.+/=#-])"
_END = r"(?![A-Za-z0-9_/=]|[.-]\d)"


@dataclass(frozen=True)
class Mask:
    """One format of personal data.

    Attributes:
        kind: what it is.
        pattern: how it looks.
        valid: tells a real one from a look-alike.
        replacement: what it becomes; None turns its digits into zeros.
    """

    kind: PiiKind
    pattern: re.Pattern[str]
    valid: Callable[[str], bool] = lambda text: True
    replacement: str | None = None

    def apply(self, text: str, plain: str) -> tuple[str, str, int]:
        """Masked text, its plain form, and the number of replacements.

        Args:
            text: the text.
            plain: the same with ASCII digits, hyphens and brackets, character by character; matched.
        """
        spans: list[tuple[int, int]] = []

        def replace(match: re.Match[str]) -> str:
            found = match[0]
            if not self.valid(found):
                return found
            spans.append(match.span())
            return _DIGIT.sub("0", found) if self.replacement is None else self.replacement

        changed = self.pattern.sub(replace, plain)
        if not spans:
            return text, plain, 0
        if text is plain:
            return changed, changed, len(spans)
        pieces, last = [], 0
        for start, end in spans:
            hidden = _DIGIT.sub("0", text[start:end]) if self.replacement is None else self.replacement
            pieces += [text[last:start], hidden]
            last = end
        return "".join([*pieces, text[last:]]), changed, len(spans)


_OTHER_FORMS = {
    ord(other): str(value)
    for digits in ("０１２３４５６７８９", "๐๑๒๓๔๕๖๗๘๙", "໐໑໒໓໔໕໖໗໘໙", "០១២៣៤៥៦៧៨៩", "၀၁၂၃၄၅၆၇၈၉")
    for value, other in enumerate(digits)
} | {ord(other): ascii_form for other, ascii_form in zip("－‐‑−（）＋", "----()+", strict=True)}
_OTHER_FORM = re.compile(f"[{''.join(map(chr, _OTHER_FORMS))}]")


def plain_form(text: str) -> str:
    """The text with ASCII digits, hyphens and brackets; as long as before, the same object if it has them."""
    if text.isascii() or not _OTHER_FORM.search(text):
        return text
    return _OTHER_FORM.sub(lambda found: _OTHER_FORMS[ord(found[0])], text)


def _digits(text: str) -> list[int]:
    return [int(sign) for sign in text if sign.isdigit()]


def is_public_address(text: str) -> bool:
    """Whether an IP address belongs to somebody; private and reserved ones do not."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_my_number(text: str) -> bool:
    """Japanese individual number: 11 digits and a check digit (ordinance 85 of 2014, article 5).

    With P_n the n-th digit from the right (check digit left out) and Q_n = n + 1 for n <= 6, else
    n - 5: check = 11 - (sum of P_n Q_n mod 11), 0 where that is above 9.
    """
    digits = _digits(text)
    if len(digits) != 12:
        return False
    rest = (
        sum(
            digit * (place + 1 if place <= 6 else place - 5)
            for place, digit in enumerate(reversed(digits[:11]), start=1)
        )
        % 11
    )
    return digits[11] == (0 if rest <= 1 else 11 - rest)


def is_resident_identity(text: str) -> bool:
    """Chinese resident identity number: GB 11643-1999, ISO 7064 MOD 11-2, date of birth inside."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(text[:17], weights, strict=True))
    return text[17].upper() == "10X98765432"[total % 11] and _is_date(text[6:10], text[10:12], text[12:14])


def is_thai_identity(text: str) -> bool:
    """Thai identity number: 13 digits, check = (11 - sum of d_i (14 - i) mod 11) mod 10."""
    digits = _digits(text)
    if len(digits) != 13 or digits[0] == 0:
        return False
    total = sum(digit * (13 - place) for place, digit in enumerate(digits[:12]))
    return digits[12] == (11 - total % 11) % 10


def is_nik(text: str) -> bool:
    """Indonesian NIK: region (6), day + 40 for women, month, year, serial above 0."""
    day = int(text[6:8])
    day -= 40 if day > 40 else 0
    return (
        11 <= int(text[:2]) <= 96
        and _is_date("20" + text[10:12], text[8:10], f"{day:02}")
        and int(text[12:]) > 0
    )


def is_mykad(text: str) -> bool:
    """Malaysian MyKad: date of birth, place of birth (not 00, 17-20, 69, 70, 73, 80, 81, 94-97), serial."""
    place = int(text[7:9])
    unused = {0, 17, 18, 19, 20, 69, 70, 73, 80, 81, 94, 95, 96, 97}
    return _is_date("20" + text[:2], text[2:4], text[4:6]) and place not in unused


def is_social_security_number(text: str) -> bool:
    """United States SSN: area not 000, 666 or 9xx, group and serial not zero."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_date(year: str, month: str, day: str) -> bool:
    if not 1 <= int(month) <= 12:
        return False
    return 1 <= int(day) <= calendar.monthrange(max(1, int(year)), int(month))[1]


def _mask(kind: PiiKind, pattern: str, valid: Callable[[str], bool] = lambda text: True) -> Mask:
    return Mask(kind, re.compile(_START + pattern + _END), valid)


# Address syntax as in RFC 5322's dot-atom, with a dotted domain.
_EMAIL = Mask(
    "email",
    re.compile(
        r"(?<![\w.+-])[A-Za-z0-9][\w.!#$%&'*+/=?^`{|}~-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![\w-])",
        re.ASCII,
    ),
    lambda text: not text.endswith(("@example.com", "@example.org", "@example.net")),
    "email@example.com",
)
_IPV4 = Mask(
    "ip",
    re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)", re.ASCII),
    is_public_address,
    "192.0.2.1",
)
_IPV6 = Mask(
    "ip",
    re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,7}(?![\w:])", re.ASCII),
    is_public_address,
    "2001:db8::1",
)
_SEPARATED = r"(?:[ .-]?\(?\d{1,4}\)?){2,5}"


def _is_international(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15 and _is_number(text)  # E.164


def _is_number(text: str) -> bool:
    """Whether it is not what masking leaves."""
    return any(_digits(text))


_PHONE = {
    "ja": (
        r"(?:0[5789]0-\d{4}-\d{4}|0[5789]0\d{8}|0\d{1,4}-\d{1,4}-\d{4}"
        r"|0\d{1,3}\(\d{1,4}\)\d{4}|\(0\d{1,3}\)\d{2,4}-\d{4})"
    ),
    # The last two are Taiwan's.
    "zh": (
        r"(?:1[3-9]\d{9}|1[3-9]\d[ -]\d{4}[ -]\d{4}|0\d{2,3}-\d{7,8}|\(0\d{2,3}\)\d{7,8}"
        r"|09\d\d-\d{3}-\d{3}|0[2-8]-\d{3,4}-\d{4})"
    ),
    "vi": r"(?:02\d{1,2}[ .-]?\d{3,4}[ .-]?\d{3,4}|0[35789]\d{1,2}[ .-]?\d{3}[ .-]?\d{3,4})",
    "id": r"(?:08\d{2}[ .-]?\d{3,4}[ .-]?\d{3,5}|\(0\d{2,3}\) ?\d{5,8}|0\d{2,3}-\d{6,8})",
    "th": r"(?:0[689]\d[ -]?\d{3}[ -]?\d{4}|0[2-7][ -]?\d{3}[ -]?\d{4}|0[3-7]\d[ -]\d{3}[ -]\d{3})",
    "ms": r"(?:01\d-?\d{3,4} ?\d{4}|0[3-9]-\d{4} ?\d{4}|08\d-\d{6})",
    "km": r"0\d{2}[ -]?\d{3}[ -]?\d{3,4}",
    "lo": r"(?:020[ -]?\d{4}[ -]?\d{4}|021[ -]?\d{6})",
    "my": r"0(?:9[ -]?\d{3}[ -]?\d{3}[ -]?\d{3}|9[ -]?\d{7,9}|1[ -]\d{6,7})",
    "tl": r"(?:09\d{2}[ -]?\d{3}[ -]?\d{4}|\(0\d{1,2}\) ?\d{3,4}-?\d{4})",
    # Between spaces, three groups of digits are a phone number only where the text says so.
    "en": (
        r"(?:\(\d{3}\) ?\d{3}-\d{4}|[2-9]\d{2}[.-][2-9]\d{2}[.-]\d{4}"
        r"|(?i:tel|telephone|phone|call|fax|mobile|cell|text|contact|dial)\b[^\d\n]{0,20}"
        r"\d{3}[ .-]\d{3}[ .-]\d{4})"
    ),
}
# Burmese citizenship card: region/township(status)number, in Latin or Burmese letters and digits.
_NRC = (
    r"(?:1[0-4]|[1-9])/[A-Z][A-Za-z]{2,11}\((?:N|C|E|P|Naing|naing|NAING)\) ?\d{6}"
    r"|[1-9][0-4]?/[\u1000-\u109f]{3,18}\([\u1000-\u109f]{1,12}\) ?\d{6}"
)
_NATIONAL = {
    "ja": [_mask("national_id", r"(?:\d{12}|\d{4}[ -]\d{4}[ -]\d{4})", is_my_number)],
    "zh": [_mask("national_id", r"[1-9]\d{16}[\dXx]", is_resident_identity)],
    "th": [_mask("national_id", r"(?:\d{13}|\d-\d{4}-\d{5}-\d{2}-\d)", is_thai_identity)],
    "id": [_mask("national_id", r"\d{16}", is_nik)],
    "ms": [_mask("national_id", r"\d{6}-\d{2}-\d{4}", is_mykad)],
    # CCCD: province 001-096, then century and sex, year, serial (circular 07/2016/TT-BCA).
    "vi": [_mask("national_id", r"0(?:0[1-9]|[1-8]\d|9[0-6])[0-3]\d{8}")],
    "my": [_mask("national_id", f"(?:{_NRC})")],
    # SSS and PhilHealth numbers, in their printed form.
    "tl": [_mask("national_id", r"(?:\d{2}-\d{7}-\d|\d{2}-\d{9}-\d)")],
    "en": [_mask("national_id", r"\d{3}-\d{2}-\d{4}", is_social_security_number)],
}


@cache
def masks(language: str, kinds: tuple[PiiKind, ...]) -> tuple[Mask, ...]:
    """Masks for a language, in the order they are applied: identity numbers before phone numbers."""
    base = language.split("-")[0]
    base = "tl" if base == "fil" else base
    found = [_EMAIL, _IPV4, _IPV6, *_NATIONAL.get(base, [])]
    found.append(_mask("phone", rf"\+\d{{1,3}}{_SEPARATED}", _is_international))
    if base in _PHONE:
        found.append(_mask("phone", _PHONE[base], _is_number))
    return tuple(mask for mask in found if mask.kind in kinds)


def mask_text(text: str, language: str, kinds: tuple[PiiKind, ...]) -> tuple[str, dict[PiiKind, int]]:
    """Text with personal data masked, and how many of each kind there were."""
    counts: dict[PiiKind, int] = {}
    plain = plain_form(text)
    for mask in masks(language, kinds):
        text, plain, count = mask.apply(text, plain)
        if count:
            counts[mask.kind] = counts.get(mask.kind, 0) + count
    return text, counts


def masked(text: str, language: str, kinds: tuple[PiiKind, ...]) -> str:
    """Text with personal data masked."""
    return mask_text(text, language, kinds)[0]


class PiiMasker(PipelineStep):
    """Applies :func:`mask_text` to every document and counts."""

    name = "pii"
    type = "formatter"

    def __init__(self, language: str, kinds: list[PiiKind], stats: DocumentStats) -> None:
        super().__init__()
        self.language = language
        self.kinds = tuple(kinds)
        self.counts = stats

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Mask each document; the messages of a conversation likewise."""
        for document in data:
            document.text = self._masked(document.text)
            for message in (*document.metadata.get("messages", ()), *document.metadata.get("rejected", ())):
                message["content"] = self._masked(message["content"])
            yield document

    def _masked(self, text: str) -> str:
        text, counts = mask_text(text, self.language, self.kinds)
        for kind, count in counts.items():
            self.counts.count(f"masked_{kind}", count)
        return text
