"""Measures the vocabulary stage: compression per added piece against naive merging, English untouched, speed.

    python benchmarks/tokenizer.py --text CORPORA/text --parallel CORPORA/parallel [--only ja]

``--text`` holds ``<language>/<source>.jsonl.zst`` (documents with ``id`` and ``text``), ``--parallel`` holds
``<language>.txt`` with aligned lines. One document in twenty, chosen by the hash of its id, is held out of
training; the parallel text is never trained on. Ratios are tokens relative to the base (the genuine
Mistral-7B-v0.1 model) on held-out documents / on parallel text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiment.corpus_index import CorpusIndex, CorpusSource, read_jsonl_zst
from experiment.hf_tokenizer import SPACE, mistral_v1_model, write_hf_tokenizer
from experiment.stage import StageContext
from tokenizer.base import BaseTokenizer, load_base
from tokenizer.config import ExtendConfig, TokenizerConfig
from tokenizer.extension import CorpusText, script_rules
from tokenizer.sentencepiece_trainer import train_candidates
from tokenizer.stage import run
from tokenizer.vocabulary import merge_sentencepiece

HELD_OUT_ONE_IN = 20
EVEN_BYTES = 5_000_000
"""Text of each language for the second pair of naive rows."""
JOINT = ("zh", "vi", "th", "id", "ms", "km", "lo", "my", "tl")

_SEALLM = {
    "zh": (2.36, 1.40),
    "vi": (3.46, 1.48),
    "th": (5.10, 1.87),
    "id": (2.09, 1.36),
    "ms": (2.16, 1.50),
    "km": (12.14, 2.67),
    "lo": (13.50, 2.07),
    "my": (9.85, 1.93),
    "tl": (2.22, 1.91),
    "en": (1.19, 1.19),
}
"""Tokens relative to ChatGPT's tokenizer on English, Llama 2 and SeaLLM (arXiv 2312.00738)."""
Row = tuple[str, dict[str, str], str, str]
PUBLISHED: dict[str, dict[str, Row]] = {
    "ja": {"Swallow on Llama 2 (published)": ("11,176", {"ja": ".562"}, "", "")},
    "joint": {
        "SeaLLM on Llama 2 (published)": (
            "16,512",
            {language: f"{after / before:.3f}" for language, (before, after) in _SEALLM.items()},
            "",
            "",
        )
    },
}


def build_corpus(text_dir: Path, languages: tuple[str, ...], target: Path) -> CorpusIndex:
    """Copy documents into the layout of the corpus stage, a twentieth of them held out."""
    import zstandard

    sources = []
    for language in languages:
        for file in sorted((text_dir / language).glob("*.jsonl.zst")):
            name = f"{language}-{file.name.removesuffix('.jsonl.zst')}"
            (target / name).mkdir(parents=True)
            lines: dict[str, list[str]] = {"train": [], "heldout": []}
            size = {"train": 0, "heldout": 0}
            for record in read_jsonl_zst(file):
                digest = hashlib.blake2b(str(record["id"]).encode(), digest_size=4).digest()
                split = "train" if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN else "heldout"
                entry = {"id": record["id"], "text": record["text"], "metadata": {"language": language}}
                lines[split].append(json.dumps(entry, ensure_ascii=False) + "\n")
                size[split] += len(record["text"].encode())
            for split, found in lines.items():
                data = zstandard.ZstdCompressor(3).compress("".join(found).encode())
                (target / name / f"{split}.jsonl.zst").write_bytes(data)
            sources.append(
                CorpusSource(
                    name=name,
                    language=language,
                    train=[f"{name}/train.jsonl.zst"],
                    heldout=[f"{name}/heldout.jsonl.zst"],
                    train_documents=len(lines["train"]),
                    train_bytes=size["train"],
                    heldout_documents=len(lines["heldout"]),
                    heldout_bytes=size["heldout"],
                )
            )
    index = CorpusIndex(sources=sources)
    index.save(target)
    return index


def naive_pieces(
    base: BaseTokenizer,
    corpus: CorpusText,
    languages: tuple[str, ...],
    count: int,
    bytes_per_language: int | None = None,
    keep: Callable[[str], bool] = lambda piece: True,
) -> list[str]:
    """New pieces of an independent joint SentencePiece BPE model, no quotas: what most projects do.

    Args:
        base: whose pieces are left out.
        corpus: training text.
        languages: in the order in which their text is read.
        count: pieces wanted.
        bytes_per_language: take only so much text from the beginning of each language, which makes the shares
            of the languages more even.
        keep: which pieces are wanted.
    """
    lines = (
        line
        for language in languages
        for document in _beginning(corpus, language, bytes_per_language)
        for line in document.split("\n")
    )
    known = {piece.piece for piece in base.proto.pieces}
    # The trainer writes merges in the order they were learned and the alphabet after them: a smaller model is
    # a prefix of the merges and the same alphabet.
    found = train_candidates(
        lines, 2 * count + 12_000, {"split_digits": True}, threads=2, maximum_piece_characters=16
    )
    found = [piece for piece in found if piece not in known and keep(piece)]
    merges = [piece for piece in found if len(piece) > 1]
    characters = [piece for piece in found if len(piece) == 1]
    return [*merges[: count - len(characters)], *characters]


def _beginning(corpus: CorpusText, language: str, size: int | None) -> Iterator[str]:
    taken = 0
    for document in corpus.index.documents(corpus.directory, "train", language=language):
        taken += len(document["text"].encode())
        if size is not None and taken > size:
            return
        yield document["text"]


def ratios(
    base: BaseTokenizer,
    model: bytes,
    corpus: CorpusText,
    parallel: Path,
    languages: tuple[str, ...],
) -> tuple[dict[str, str], str]:
    """Tokens relative to the base by language, and how many English lines changed.

    A line of the English text that holds characters of a target language ("中国 means China") is meant to
    change; such lines are counted apart.
    """
    import sentencepiece

    _, rule = script_rules(ExtendConfig(languages=dict.fromkeys(languages, 1.0)), phrases=True)
    old = sentencepiece.SentencePieceProcessor(model_proto=base.proto.SerializeToString())
    new = sentencepiece.SentencePieceProcessor(model_proto=model)
    row = {}
    changed = []
    for language in (*languages, "en"):
        cells = []
        for lines in (corpus.lines(language, 10**9), (parallel / f"{language}.txt").read_text().splitlines()):
            before, after = old.encode(lines), new.encode(lines)
            cells.append(f"{sum(map(len, after)) / sum(map(len, before)):.3f}")
            if language == "en":
                differing = [
                    line for line, one, other in zip(lines, before, after, strict=True) if one != other
                ]
                foreign = sum(map(rule.is_foreign, differing))
                note = f" (+{foreign} with foreign characters)" if foreign else ""
                changed.append(f"{len(differing) - foreign} of {len(lines):,}{note}")
        row[language] = "/".join(cells)
    return row, " / ".join(changed)


def table(
    title: str, languages: tuple[str, ...], count: int, args: argparse.Namespace, work: Path
) -> list[str]:
    """Published, naive and our rows, as Markdown."""
    corpus_dir = work / f"corpus-{title}"
    index = build_corpus(args.text, (*languages, "en"), corpus_dir)
    corpus = CorpusText(index, corpus_dir, 1234)
    base_dir = work / "base"
    base_dir.mkdir(exist_ok=True)
    write_hf_tokenizer(mistral_v1_model(), base_dir)
    base = load_base(base_dir)
    started = time.perf_counter()
    naive = naive_pieces(base, corpus, languages, count)
    seconds = f"{time.perf_counter() - started:.0f}"
    rows: dict[str, Row] = {}
    variants = {
        "naive, all pieces": naive,
        "naive, no ASCII letters": [p for p in naive if not any(c.isascii() and c.isalpha() for c in p)],
    }
    if len(languages) > 1:
        variants |= {
            "naive, 5 MB a language, all": naive_pieces(base, corpus, languages, count, EVEN_BYTES),
            "naive, 5 MB a language, none of ASCII alone": naive_pieces(
                base, corpus, languages, count, EVEN_BYTES, lambda piece: not piece.strip(SPACE).isascii()
            ),
        }
    for name, pieces in variants.items():
        proto = merge_sentencepiece(base, pieces, base.size + len(pieces))
        row, changed = ratios(base, proto.SerializeToString(), corpus, args.parallel, languages)
        rows[name] = (f"{len(pieces):,}", row, changed, seconds)
    output = work / f"out-{title}"
    output.mkdir()
    settings = {
        "size": count,
        "languages": dict.fromkeys(languages, 1.0),
        "sample_bytes": 10**9,
        **args.extend,
    }
    started = time.perf_counter()
    result = run(
        TokenizerConfig.model_validate({"extend": settings}),
        {"base": base_dir, "corpus": corpus_dir},
        output,
        StageContext(workers=2),
    )
    seconds = f"{time.perf_counter() - started:.0f}"
    model = (output / "tokenizer.model").read_bytes()
    row, changed = ratios(base, model, corpus, args.parallel, languages)
    rows["tsugiki"] = (f"{result.counts['added_pieces']:,}", row, changed, seconds)
    rows |= PUBLISHED[title]
    lines = [f"## {title}: {', '.join(languages)}", ""]
    lines.append(
        "| method | pieces | " + " | ".join((*languages, "en")) + " | English lines changed | seconds |"
    )
    lines.append("|---" * (len(languages) + 5) + "|")
    for name, (pieces, row, changed, taken) in rows.items():
        cells = " | ".join(row.get(language, "") for language in (*languages, "en"))
        lines.append(f"| {name} | {pieces} | {cells} | {changed} | {taken} |")
    facts = json.loads((output / "report.json").read_text(encoding="utf-8"))
    megabytes = sum(source.train_bytes for source in index.sources if source.language != "en") / 1e6
    parts = ", ".join(f"{name} {taken:.0f} s" for name, taken in facts["seconds"].items())
    return [
        *lines,
        "",
        f"{megabytes:.0f} MB of training text; {parts}; peak memory of the process so far "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
        f"pieces by language: {facts['pieces_by_language']}",
        "",
    ]


def speed(args: argparse.Namespace, work: Path) -> list[str]:
    """Encode speed of the extended fast tokenizer against the base's, and of the report."""
    from tokenizers import Tokenizer

    from tokenizer.efficiency import AnyTokenizer, measure

    lines = [
        "## Speed",
        "",
        "| extension | text | encode, base | encode, extended | report |",
        "|---" * 5 + "|",
    ]
    for name in ("ja", "joint"):
        if not (work / f"out-{name}" / "tokenizer.json").is_file():
            continue
        base = Tokenizer.from_file(str(work / "base" / "tokenizer.json"))
        new = Tokenizer.from_file(str(work / f"out-{name}" / "tokenizer.json"))
        for language in ("en", *(("ja",) if name == "ja" else ("zh", "vi", "th"))):
            text = CorpusText(CorpusIndex.load(work / f"corpus-{name}"), work / f"corpus-{name}", 1).lines(
                language, 3_000_000, "train"
            )
            size = sum(len(line.encode()) for line in text) / 1e6
            rates = [_encode_rate(tokenizer, text, size) for tokenizer in (base, new)]
            tokenizer = AnyTokenizer("extended", work / f"out-{name}")
            started = time.perf_counter()
            measure(tokenizer, text, language)
            report = size / (time.perf_counter() - started)
            lines.append(
                f"| {name} | {language} | {rates[0]:.1f} MB/s | {rates[1]:.1f} MB/s | {report:.1f} MB/s |"
            )
    return [*lines, ""]


def _encode_rate(tokenizer: Any, text: list[str], megabytes: float) -> float:
    """Best of three, MB/s."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        tokenizer.encode_batch_fast(text)
        best = min(best, time.perf_counter() - started)
    return megabytes / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--parallel", type=Path, required=True)
    parser.add_argument("--only", choices=["ja", "joint"])
    parser.add_argument("--extend", type=json.loads, default={}, help="tokenizer.extend fields as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    parts = [
        f"# Vocabulary stage on {platform.machine()}, Python {platform.python_version()}\n\n"
        f"`python {' '.join(sys.argv)}`\n"
    ]
    print(parts[0], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        steps = {
            "ja": lambda: table("ja", ("ja",), 11176, args, work),
            "joint": lambda: table("joint", JOINT, 16512, args, work),
            "speed": lambda: speed(args, work),
        }
        for name, step in steps.items():
            if args.only in (None, name) or name == "speed":
                parts.append("\n".join(step()))
                print(parts[-1], flush=True)
                if args.out is not None:
                    args.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
