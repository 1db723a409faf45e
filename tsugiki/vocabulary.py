"""A tokenizer extended without an experiment: plain text files in, a Hugging Face tokenizer directory out."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.folders import (
    bring_back,
    refuse_other_than,
    refuse_overlap,
    refuse_stage_folder,
    remove_entry,
    replace_folder,
)
from tsugiki.results import VocabularyReport
from tsugiki.tools import paths_of

_HELD_OUT_EVERY = 20
"""Every twentieth line is kept apart: gates and report are measured on text that was not learned from."""

_WHAT, _KNOWN = "an extended tokenizer", ["pieces.tsv tokenizer*"]
"""What may be replaced, and the files by which it is known."""


def extend_tokenizer(
    base: Path | str,
    texts: Mapping[str, Path | str | Sequence[Path | str]] | Path | str,
    output: Path | str,
    *,
    languages: Mapping[str, float] | Sequence[str] | None = None,
    size: int | str = 16384,
    seed: int = 1234,
    workers: int = 1,
    overwrite: bool = False,
    **settings: Any,
) -> VocabularyReport:
    """Add pieces for new languages to the vocabulary of a base, prove the gates and write the report.

    Args:
        base: Hugging Face directory with the tokenizer.
        texts: language -> text files (.txt, .jsonl, .gz, .zst), those of protected languages too; or the directory of
            a finished ``corpus`` stage.
        output: new directory: tokenizer files, ``pieces.tsv``, ``report.html``.
        languages: languages to add, with weights; None takes all of ``texts`` but the protected ones.
        size: pieces to add, or ``auto``.
        seed: seed of the sample.
        workers: processes.
        overwrite: replace ``output``.
        settings: any further key of ``tokenizer.extend``: ``protect``, ``quotas``, ``multiple_of``, …

    Raises:
        ConfigError: ``output`` exists, is no extended tokenizer, holds an input or lies in one; or an impossible
            request.
        DataError: no usable text, a corrupt base, or a failed gate; ``output`` is not written then.
    """
    from tsugiki.experiment.config.load import RawConfig
    from tsugiki.experiment.config.validate import validate
    from tsugiki.experiment.run.stage import StageContext
    from tsugiki.tokenizer.config import TokenizerConfig
    from tsugiki.tokenizer.extend import run

    output = Path(output)
    earlier = output.with_name(f".{output.name}.replaced")
    refuse_other_than(earlier, _WHAT, _KNOWN)
    bring_back(earlier, output)
    if output.exists() and not overwrite:
        raise ConfigError(
            "the output directory exists", where=output, fix="overwrite=True, or another directory"
        )
    given = (
        [path for paths in texts.values() for path in paths_of(paths)]
        if isinstance(texts, Mapping)
        else [Path(texts)]
    )
    refuse_overlap([Path(base), *given], output)
    refuse_stage_folder(output, "the output directory")
    refuse_other_than(output, _WHAT, _KNOWN)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        corpus = Path(scratch, "corpus")
        if isinstance(texts, Mapping):
            spoken = write_corpus(texts, corpus)
        else:
            corpus = Path(texts)
            spoken = _languages_of(corpus)
        extend = {"size": size, "protect": ["en"] if "en" in spoken else [], **settings}
        if languages is None:
            languages = [language for language in spoken if language not in extend["protect"]]
        extend["languages"] = (
            dict(languages) if isinstance(languages, Mapping) else dict.fromkeys(languages, 1.0)
        )
        config = validate(TokenizerConfig, RawConfig({"extend": extend}, {}))
        target = Path(scratch, "output")
        target.mkdir()
        run(config, {"base": Path(base), "corpus": corpus}, target, StageContext(seed=seed, workers=workers))
        if earlier.is_dir():  # a kill after the last replacement
            remove_entry(earlier)
        replace_folder(target, output, earlier)
    shutil.rmtree(earlier, ignore_errors=True)
    return VocabularyReport.load(output)


def write_corpus(texts: Mapping[str, Path | str | Sequence[Path | str]], folder: Path) -> list[str]:
    """Text files as the output of the corpus stage, a line a document; the languages of it."""
    import zstandard

    from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
    from tsugiki.tokenizer.measure.efficiency import read_lines

    sources = []
    folder.mkdir(parents=True)
    for language, paths in texts.items():
        names = {"train": f"{language}-00000.jsonl.zst", "heldout": f"{language}-heldout.jsonl.zst"}
        counts = {split: [0, 0] for split in names}
        with (
            zstandard.open(folder / names["train"], "wt", encoding="utf-8") as train,
            zstandard.open(folder / names["heldout"], "wt", encoding="utf-8") as heldout,
        ):
            for number, line in enumerate(read_lines(paths_of(paths), None)):
                split = "train" if number % _HELD_OUT_EVERY else "heldout"
                document = {"id": f"{language}/{number}", "text": line, "metadata": {"language": language}}
                (train if split == "train" else heldout).write(
                    json.dumps(document, ensure_ascii=False) + "\n"
                )
                counts[split][0] += 1
                counts[split][1] += len(line.encode())
        sources.append(
            CorpusSource(
                name=language, language=language, train=[names["train"]], heldout=[names["heldout"]],
                train_documents=counts["train"][0], train_bytes=counts["train"][1],
                heldout_documents=counts["heldout"][0], heldout_bytes=counts["heldout"][1],
            )
        )  # fmt: skip
    CorpusIndex(sources=sources).save(folder)
    return list(texts)


def _languages_of(corpus: Path) -> list[str]:
    from tsugiki.experiment.artefacts.corpus_index import CorpusIndex

    return CorpusIndex.load(corpus).languages
