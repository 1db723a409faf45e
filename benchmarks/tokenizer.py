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
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.text.hf_tokenizer import SPACE, mistral_v1_model, write_hf_tokenizer
from tsugiki.tokenizer.base.base import BaseTokenizer, load_base
from tsugiki.tokenizer.base.merge import merge_sentencepiece
from tsugiki.tokenizer.config import ExtendConfig, TokenizerConfig
from tsugiki.tokenizer.extend import run
from tsugiki.tokenizer.learning.extension import learn_extension
from tsugiki.tokenizer.learning.sentencepiece_trainer import train_candidates
from tsugiki.tokenizer.learning.text import CorpusText, script_rules

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
OTHER_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ja": {"tsugiki, without word list": {"word_list_share": 0.0}},
    "joint": {
        "tsugiki, without word lists": {"word_list_share": 0.0},
        "tsugiki, languages weighted": {
            "languages": {
                **{"zh": 1.1, "vi": 0.85, "th": 0.55, "id": 1.05, "ms": 1.05},
                **{"km": 1.6, "lo": 1.1, "my": 1.6, "tl": 0.95},
            }
        },
    },
}
"""Further rows of ours. Weights say which language matters; these ask for what naive merging gives each."""
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
            for record in read_shard(file):
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
    for name, other in OTHER_SETTINGS[title].items():
        started = time.perf_counter()
        extend = ExtendConfig.model_validate({**settings, **other})
        pieces = learn_extension(extend, base, corpus, count, workers=2).surfaces
        proto = merge_sentencepiece(base, pieces, base.size + len(pieces))
        row, changed = ratios(base, proto.SerializeToString(), corpus, args.parallel, languages)
        rows[name] = (f"{len(pieces):,}", row, changed, f"{time.perf_counter() - started:.0f}")
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
    """Encode speed of the extended fast tokenizer against the base's, and of the report.

    Encoding is measured in CPU seconds of one thread (see :func:`encode_seconds`), the report in wall time of
    its first and only pass, word segmentation included.
    """
    from tsugiki.tokenizer.measure.efficiency import AnyTokenizer, measure

    lines = [
        "## Speed",
        "",
        "| extension | text | encode, base | encode, extended | extended / base | report | words by |",
        "|---" * 7 + "|",
    ]
    for name, languages in (("ja", ("ja",)), ("joint", JOINT)):
        output = work / f"out-{name}"
        if not (output / "tokenizer.json").is_file():
            continue
        corpus = CorpusText(CorpusIndex.load(work / f"corpus-{name}"), work / f"corpus-{name}", 1)
        for language in ("en", *languages):
            text = corpus.lines(language, 3_000_000, "train")
            measure(AnyTokenizer("warm", output), text[:10], language)  # loads the word segmenter
            tokenizer = AnyTokenizer("extended", output)
            started = time.perf_counter()
            words = measure(tokenizer, text, language).words
            report = sum(len(line.encode()) for line in text) / 1e6 / (time.perf_counter() - started)
            part = corpus.lines(language, 500_000, "train")
            size = sum(len(line.encode()) for line in part) / 1e6
            base, extended = encode_seconds([work / "base", output], part)
            lines.append(
                f"| {name} | {language} | {size / base:.2f} MB/s | {size / extended:.2f} MB/s "
                f"| {base / extended:.2f} | {report:.1f} MB/s | {words} |"
            )
    return [*lines, ""]


def encode_seconds(directories: list[Path], text: list[str], copies: int = 3, rounds: int = 3) -> list[float]:
    """CPU seconds of one thread to encode a text with the fast tokenizer of each directory.

    Where a tokenizer happens to lie in memory changes its speed by some per cent, and so does what else the
    machine does. So each is loaded several times, all take turns on a small part of the text before the next
    part comes, and the best round of each part counts. The library's memory of lines is emptied before each.

    Args:
        directories: with a ``tokenizer.json``.
        text: lines.
        copies: how often each tokenizer is loaded; the mean of the copies is given.
        rounds: how often each part is encoded by each copy.
    """
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    order = random.Random(0)
    owners = [*range(len(directories))] * copies
    order.shuffle(owners)
    loaded = [Tokenizer.from_file(str(directories[owner] / "tokenizer.json")) for owner in owners]
    seconds = [0.0] * len(directories)
    for start in range(0, len(text), 500):
        part = text[start : start + 500]
        best = [float("inf")] * len(loaded)
        for _ in range(rounds):
            for place in order.sample(range(len(loaded)), len(loaded)):
                loaded[place].model._clear_cache()
                started = time.process_time()
                loaded[place].encode_batch_fast(part, add_special_tokens=False)
                best[place] = min(best[place], time.process_time() - started)
        for owner, taken in zip(owners, best, strict=True):
            seconds[owner] += taken / copies
    return seconds


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
