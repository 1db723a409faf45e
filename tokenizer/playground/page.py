"""The page: vocabularies and merges as data for ``playground.js``, which runs them in the reader's browser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.pages.languages import language_name
from tsugiki.experiment.pages.page import Page, Section, render
from tsugiki.experiment.pages.tables import Cell, Column, Language, Number, Table
from tsugiki.experiment.text.tokenizer_files import OpenedTokenizer
from tsugiki.experiment.text.tokenizer_settings import merge_pair
from tsugiki.tokenizer.playground.pieces import is_byte_level

TEMPLATE = Path(__file__).with_name("playground.html.jinja")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = {True: r"\p{N}", False: r"\p{N}+"}
# What hf_tokenizer.py writes for `remove_extra_whitespaces`.
_STRIPS = {r"\A +| +\z": "strip", " {2,}": "single"}
_SAMPLE_CHARACTERS = 1000


@dataclass(frozen=True)
class _Box:
    """The text box.

    Attributes:
        languages: code and name of each sample.
        text: what stands in it at first.
        data: tokenizers and samples, for the script.
    """

    languages: list[tuple[str, str]]
    text: str
    data: dict[str, Any]


def write_page(
    path: Path, tokenizers: Mapping[str, OpenedTokenizer], texts: Mapping[str, str], text: str = ""
) -> None:
    """Write a self-contained page.

    Args:
        path: of the file.
        tokenizers: by name; costs are relative to the first.
        texts: a text of each language: costs on it, and its beginning as a sample.
        text: what the box holds at first; empty takes the first sample.

    Raises:
        ConfigError: a tokenizer with a step that the page does not know.
        DataError: a tokenizer without a fast form.
    """
    samples = {language: sample[:_SAMPLE_CHARACTERS] for language, sample in texts.items()}
    data = {
        "tokenizers": [page_data(name, tokenizer) for name, tokenizer in tokenizers.items()],
        "samples": samples,
    }
    box = _Box(
        [(code, language_name(code)) for code in samples], text or next(iter(samples.values()), ""), data
    )
    sections = [Section("try_it", "Try it", box)]
    if texts:
        sections.append(Section("costs", "Costs", _costs(tokenizers, texts)))
    page = Page("Tokenizers", f"{', '.join(tokenizers)}: nothing leaves this page", sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(page, TEMPLATE))


def _costs(tokenizers: Mapping[str, OpenedTokenizer], texts: Mapping[str, str]) -> Table:
    names = list(tokenizers)
    rows: list[list[Cell]] = []
    for language, text in texts.items():
        counts = [len(tokenizer.encode(text)) for tokenizer in tokenizers.values()]
        row: list[Cell] = [Language(language), *counts]
        row += [Number(count / counts[0], ".3f") if counts[0] else None for count in counts[1:]]
        rows.append(row)
    columns = [Column("language", numeric=False), *(Column(f"{name}: tokens") for name in names)]
    columns += [Column(f"{name} / {names[0]}") for name in names[1:]]
    return Table("costs", columns, rows)


def page_data(name: str, tokenizer: OpenedTokenizer) -> dict[str, Any]:
    """What the script needs of a tokenizer.

    Raises:
        ConfigError: a model or a step that it does not know.
        DataError: the tokenizer has no fast form.
    """
    fast = tokenizer.fast  # refuses what has no document
    document = tokenizer.document or {}
    model = document["model"]
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        raise _unknown(tokenizer, f"model {model.get('type')}")
    by_id = {index: surface for surface, index in fast.get_vocab(with_added_tokens=True).items()}
    ids = dict(model["vocab"])
    added = [token for token in fast.get_added_tokens_decoder().values() if not token.special]
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        raise _unknown(tokenizer, "added tokens that take spaces around them")
    return {
        "name": name,
        "vocabulary": [by_id.get(index) for index in range(tokenizer.size)],
        "merges": [ids[part] for merge in model["merges"] for part in merge_pair(merge)],
        "normalizer": list(_normalizer(document.get("normalizer"), tokenizer)),
        "pre_tokenizer": list(_pre_tokenizer(document.get("pre_tokenizer"), tokenizer)),
        "added": {
            "raw": [token.content for token in added if not token.normalized],
            "normalised": [token.content for token in added if token.normalized],
        },
        "byte_level": is_byte_level(tokenizer),
        "byte_fallback": bool(model.get("byte_fallback")),
        "ignore_merges": bool(model.get("ignore_merges")),
        "fuse_unknown": bool(model.get("fuse_unk")),
        "unknown": ids.get(model.get("unk_token")),
    }


def _normalizer(rule: Mapping[str, Any] | None, tokenizer: OpenedTokenizer) -> Iterator[dict[str, Any]]:
    kind = (rule or {}).get("type")
    if rule is None or kind is None:
        return
    pattern = rule.get("pattern", {})
    if kind == "Sequence":
        for part in rule["normalizers"]:
            yield from _normalizer(part, tokenizer)
    elif kind in ("NFC", "NFD", "NFKC", "NFKD"):
        yield {"kind": "form", "form": kind}
    elif kind == "Prepend":
        yield {"kind": "prepend", "text": rule["prepend"]}
    elif kind == "Replace" and "String" in pattern:
        yield {"kind": "replace", "from": pattern["String"], "to": rule["content"]}
    elif kind == "Replace" and pattern.get("Regex") in _STRIPS:
        yield {"kind": _STRIPS[pattern["Regex"]]}
    else:
        raise _unknown(tokenizer, f"normalizer {kind}")


def _pre_tokenizer(rule: Mapping[str, Any] | None, tokenizer: OpenedTokenizer) -> Iterator[dict[str, Any]]:
    kind = (rule or {}).get("type")
    if rule is None or kind is None:
        return
    if kind == "Sequence":
        for part in rule["pretokenizers"]:
            yield from _pre_tokenizer(part, tokenizer)
    elif kind == "ByteLevel" and not rule.get("add_prefix_space"):
        if rule.get("use_regex", True):
            yield {"kind": "split", "pattern": _GPT2}
        yield {"kind": "bytes"}
    elif kind == "Digits":
        yield {"kind": "split", "pattern": _DIGITS[bool(rule.get("individual_digits"))]}
    elif kind == "Split" and rule.get("behavior") == "Isolated" and "Regex" in rule.get("pattern", {}):
        yield {"kind": "split", "pattern": rule["pattern"]["Regex"]}
    elif kind == "Metaspace" and rule.get("replacement", "▁") == "▁":
        yield {
            "kind": "metaspace",
            "prepend": rule.get("prepend_scheme", "always"),
            "split": bool(rule.get("split", True)),
        }
    else:
        raise _unknown(tokenizer, f"pre-tokenizer {kind}")


def _unknown(tokenizer: OpenedTokenizer, got: str) -> ConfigError:
    return ConfigError(
        "the page does not know a step of this tokenizer",
        where=tokenizer.file,
        got=got,
        expected="BPE with steps of SentencePiece or byte-level tokenizers",
        fix="leave --page out: the terminal shows every tokenizer",
    )
