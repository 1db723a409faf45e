"""Training and test text of the vocabulary stage: streamed from the corpus within a byte budget."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource, Split
from tsugiki.experiment.errors import DataError

_HASH_RANGE = 1 << 64
_NORMALISED_SCRIPTS = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Han", "Hiragana", "Katakana", "Bopomofo"),
    *("Hangul", "Common", "Inherited"),
)


def byte_budgets(weights: Mapping[str, float], available: Mapping[str, int], total: int) -> dict[str, int]:
    """Share a byte budget by weight; what a small language cannot use goes to the others.

    Args:
        weights: weight by language.
        available: bytes of text by language.
        total: bytes in all.
    """
    budgets: dict[str, int] = {}
    open_languages = sorted(weights, key=lambda item: (available[item] / weights[item], item))
    left = total
    for position, language in enumerate(open_languages):
        share = sum(weights[other] for other in open_languages[position:])
        budgets[language] = min(available[language], int(left * weights[language] / share))
        left -= budgets[language]
    return budgets


def document_text(record: Mapping[str, Any]) -> str:
    """Text of a corpus record; of an instruction, its messages one after another."""
    text = record.get("text") or ""
    if text:
        return str(text)
    messages = (record.get("metadata") or {}).get("messages") or []
    return "\n".join(str(message.get("content", "")) for message in messages if isinstance(message, dict))


def draw(
    index: CorpusIndex, corpus_dir: Path, language: str, budget_bytes: int, split: Split, seed: int
) -> Iterator[str]:
    """Documents of a language up to a byte budget, spread evenly over its sources.

    A document is taken by the hash of its id, so the sample does not depend on the order of shards; memory
    holds one document. Every source gives the same proportion of its text; the document that would exceed the
    budget is cut.

    Args:
        index: contents of the corpus.
        corpus_dir: where it lies.
        language: language code as the corpus has it.
        budget_bytes: UTF-8 bytes at most.
        split: train or heldout.
        seed: another seed draws other documents.
    """
    sources = [source for source in index.sources if source.language == language]
    total = sum(_split_bytes(source, split) for source in sources)
    if not total or not budget_bytes:
        return
    # A little above the exact fraction, because the hash thins out only on average.
    fraction = 1.0 if budget_bytes >= total else min(1.0, 1.05 * budget_bytes / total)
    for source in sources:
        left = budget_bytes if fraction == 1.0 else budget_bytes * _split_bytes(source, split) / total
        for record in index.documents(corpus_dir, split, source=source.name):
            if not _chosen(str(record.get("id", "")), seed, fraction):
                continue
            text = document_text(record).replace("\r\n", "\n").replace("\r", "\n")
            data = text.encode(errors="replace")
            if len(data) > left:
                yield data[: int(left)].decode(errors="ignore")
                break
            left -= len(data)
            yield text


def _split_bytes(source: CorpusSource, split: Split) -> int:
    return source.train_bytes if split == "train" else source.heldout_bytes


def _chosen(identifier: str, seed: int, fraction: float) -> bool:
    if fraction >= 1.0:
        return True
    digest = hashlib.blake2b(f"{seed}\0{identifier}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * _HASH_RANGE


def available_bytes(index: CorpusIndex, languages: Iterable[str], split: Split) -> dict[str, int]:
    """UTF-8 bytes of text by language."""
    return {
        language: sum(_split_bytes(source, split) for source in index.sources if source.language == language)
        for language in languages
    }


def require_languages(index: CorpusIndex, languages: Iterable[str]) -> None:
    """Check that the corpus has training text of every language.

    Raises:
        DataError: naming those it has not.
    """
    available = available_bytes(index, languages, "train")
    missing = [language for language, size in available.items() if not size]
    if missing:
        raise DataError(
            f"the corpus has no training text in {', '.join(missing)}",
            where="tokenizer.extend.languages",
            got=f"languages of the corpus: {', '.join(index.languages) or 'none'}",
            fix="add a source in that language to corpus.sources, loosen its filters, or take it out of "
            "tokenizer.extend.languages",
        )


def normalise(text: str, form: str) -> str:
    """Unicode normalisation of training text: ``nfkc``, ``nfc`` or ``none``.

    The tokenizer meets text as it is written, so only spellings that are mere variants may be changed, or
    pieces would be learned that no text holds. Punctuation, symbols and spaces stay (full-width ，！ and the
    ideographic space are standard in Chinese and Japanese), and so do the scripts whose marks Unicode would
    take apart or put into another order than people type (Thai and Lao AM, Burmese asat).
    """
    if form == "none":
        return text
    target: Literal["NFC", "NFKC"] = "NFC" if form == "nfc" else "NFKC"
    if unicodedata.is_normalized(target, text):
        return text
    return _normalised_letters().sub(lambda match: unicodedata.normalize(target, match[0]), text)


@cache
def _normalised_letters() -> Any:
    """Runs of letters, marks and digits of the scripts that normalisation does no harm to."""
    import regex

    scripts = "".join(rf"\p{{{name}}}" for name in _NORMALISED_SCRIPTS)
    return regex.compile(rf"(?V1)[[{scripts}]&&[\p{{L}}\p{{M}}\p{{N}}]]+")
