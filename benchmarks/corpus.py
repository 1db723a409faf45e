"""Corpus and tokens stages against stock datatrove, per core, on the same text in one run.

    python benchmarks/corpus.py --text ja=texts/ja/*.jsonl.zst --tokenizer DIR

Filters: ours is normalisation, the shipped profile of the language and our MinHash signatures; stock is
datatrove's GopherRepetition, GopherQuality, C4Quality and MinHash stage 1 with its own word segmentation
(for Japanese ``pip install 'spacy[ja]'``). Both see every document: a filter's verdict does not spare
the next one its work, so that the two do the same amount. Tokens: our encoding step against datatrove's
MegatronDocumentTokenizer, both from the same compressed shard to a file of ids on disk, caches cold.

Times are CPU seconds of this process, single-threaded, so other load on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

STOCK_LANGUAGES = {
    "ja": "japanese", "zh": "mandarin_chinese", "vi": "vietnamese", "th": "thai", "km": "khmer", "lo": "lao",
    "my": "burmese", "id": "indonesian", "ms": "standard_malay", "tl": "filipino", "en": "english",
}  # fmt: skip


def read_texts(pattern: str, maximum_bytes: int) -> list[str]:
    """Texts of JSONL files, the files in turn, up to a number of bytes."""
    from tsugiki.data.common.streams import open_stream
    from tsugiki.data.formatters.extraction import normalise

    files = sorted(str(path) for path in Path(pattern).parent.glob(Path(pattern).name))
    if not files:
        raise SystemExit(f"no files match {pattern}")
    texts: list[str] = []
    for file in files:
        size = 0
        with open_stream(file) as stream:
            for line in stream:
                if text := normalise(json.loads(line)["text"]):
                    texts.append(text)
                    size += len(text.encode())
                if size > maximum_bytes // len(files):
                    break
    return texts


def our_steps(language: str) -> dict[str, Callable[[str], object]]:
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import BaseFilter

    from tsugiki.data.common.segmentation import tokenizer_for
    from tsugiki.data.common.stats import DocumentStats
    from tsugiki.data.config import LanguageIdentificationConfig, MinhashSettings
    from tsugiki.data.dedup.minhash import FastSignature, minhash_config
    from tsugiki.data.filters.base import FilterContext
    from tsugiki.data.filters.cleaning import Cleaner
    from tsugiki.data.formatters.extraction import normalise
    from tsugiki.data.profiles import load_profile, profile_steps

    profile = load_profile(language, ["configs/filters"])
    context = FilterContext(profile, LanguageIdentificationConfig(), DocumentStats(0))
    steps = [step for _, step in profile_steps(context)]
    named: dict[str, Callable[[str], object]] = {"normalise": normalise}
    for step in steps:
        if isinstance(step, Cleaner):
            named[step.name] = step.cleaned
        elif isinstance(step, BaseFilter):
            named[step.exclusion_writer.step] = lambda text, step=step: step.filter(Document(text, ""))
    words = tokenizer_for(profile.segmentation)
    signature = FastSignature("unused", minhash_config(MinhashSettings(), profile.units_per_word), words)
    named["minhash"] = lambda text: signature.get_signature(signature.get_shingles(text))
    return named


def stock_steps(language: str) -> dict[str, Callable[[str], object]]:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.typeshelper import Languages

    name = getattr(Languages, STOCK_LANGUAGES[language])
    filters = {
        "GopherRepetition": GopherRepetitionFilter(language=name),
        "GopherQuality": GopherQualityFilter(language=name, min_doc_words=1, min_avg_word_length=0),
        "C4Quality": C4QualityFilter(language=name, filter_no_terminal_punct=False),
    }
    named: dict[str, Callable[[str], object]] = {
        label: lambda text, step=step: step.filter(Document(text, "")) for label, step in filters.items()
    }
    signature = MinhashDedupSignature("unused", MinhashConfig(hash_config=HashConfig(precision=64)), name)
    named["MinHash"] = lambda text: (
        signature.get_signature(shingles) if len(shingles := signature.get_shingles(text)) else None
    )
    return named


def compare_filters(language: str, texts: list[str]) -> dict[str, Any]:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    result: dict[str, Any] = {"documents": len(texts), "megabytes": round(megabytes, 2)}
    for side, make in (("ours", our_steps), ("stock", stock_steps)):
        steps = make(language)
        for work in steps.values():
            work(texts[0])  # models load once, outside the clock
        seconds = dict.fromkeys(steps, 0.0)
        # Document by document, as a pipeline runs: datatrove caches the words of the last few texts.
        for text in texts:
            for label, work in steps.items():
                start = time.process_time()
                work(text)
                seconds[label] += time.process_time() - start
        total = sum(seconds.values())
        result[side] = {
            "megabytes_per_second": round(megabytes / total, 3),
            "seconds": {label: round(value, 2) for label, value in seconds.items()},
        }
    result["speedup"] = round(
        result["ours"]["megabytes_per_second"] / result["stock"]["megabytes_per_second"], 2
    )
    return result


def compare_tokens(texts: list[str], tokenizer_dir: Path) -> dict[str, Any]:
    """Both steps read the same shard of the corpus and write a Megatron dataset."""
    import numpy as np
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    from tsugiki.data.common.jsonl_shards import ShardWriter, read_documents
    from tsugiki.data.config import TokensConfig
    from tsugiki.data.tokenise.tokenise_shards import TokeniseShards, TokeniseTask, Vocabulary

    vocabulary = Vocabulary.load(tokenizer_dir)
    config = TokensConfig.model_validate({"mixture": {"total_tokens": 1}, "add_bos": False})
    tokenizer = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ShardWriter(folder / "shard.jsonl.zst") as writer:
            for number, text in enumerate(texts):
                writer.write(str(number), text, {})
        stock = MegatronDocumentTokenizer(
            name, "stock", str(tokenizer_dir / "tokenizer.json"), tokenizer["eos_token"]
        )
        task = TokeniseTask("ours", "text", "train", folder / "shard.jsonl.zst", "ours")
        ours = TokeniseShards(tokenizer_dir, vocabulary, [task], folder, config)
        start = time.process_time()
        stock.run(read_documents(folder / "shard.jsonl.zst"))
        stock_seconds = time.process_time() - start
        start = time.process_time()
        list(ours.run(None))
        our_seconds = time.process_time() - start
        theirs = np.fromfile(next(folder.glob("stock*.bin")), np.uint16)
        if not np.array_equal(theirs, np.fromfile(folder / "ours.ids", np.uint16)):
            raise SystemExit("the two sides disagree about the tokens")
    return {
        "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 2),
        "tokens": len(theirs),
        "ours_tokens_per_second": round(len(theirs) / our_seconds),
        "stock_tokens_per_second": round(len(theirs) / stock_seconds),
        "speedup": round(stock_seconds / our_seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", action="append", required=True, metavar="LANG=GLOB")
    parser.add_argument("--tokenizer", type=Path, help="directory with tokenizer.json; None skips tokens")
    parser.add_argument("--megabytes", type=float, default=3.0, help="text per language for the filters")
    parser.add_argument("--token-megabytes", type=float, default=30.0)
    parser.add_argument("--only", choices=["filters", "tokens"])
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": platform.machine(), "processors": os.cpu_count()}
    for item in arguments.text:
        language, _, pattern = item.partition("=")
        results[language] = entry = {}
        if arguments.only != "tokens":
            texts = read_texts(pattern, int(arguments.megabytes * 1e6))
            entry["filters"] = compare_filters(language, texts)
        if arguments.tokenizer is not None and arguments.only != "filters":
            texts = read_texts(pattern, int(arguments.token_megabytes * 1e6))
            entry["tokens"] = compare_tokens(texts, arguments.tokenizer)
        print(json.dumps({language: entry}), flush=True)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
