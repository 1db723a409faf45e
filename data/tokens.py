"""The tokens stage: encodes the corpus into Megatron datasets and plans the mixture.

Each document becomes ``[BOS] tokens EOD`` (EOD is the tokenizer's end-of-sequence token). Shards of
the corpus are encoded in parallel into raw parts under ``.work``, then joined in order, so the
result does not depend on the number of workers and a killed run continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data.config import TokensConfig
from data.execution import ProcessExecutor, available_workers
from data.indexed_dataset import concatenate, token_type
from data.mixture_plan import Available, plan_tokens
from data.shardfile import atomic_file, read_json, write_json
from experiment.corpus_index import INDEX_NAME, CorpusIndex, CorpusSource, Split, read_jsonl_zst
from experiment.errors import ConfigError, DataError
from experiment.mixture import Mixture, MixtureSource
from experiment.progress import Progress
from experiment.stage import StageContext, StageResult

TOKENIZER_NAME = "tokenizer.json"
WORK_FOLDER = ".work"
_SPLITS: tuple[Split, Split] = ("train", "heldout")


@dataclass(frozen=True)
class Vocabulary:
    """What the stage needs to know of a tokenizer directory.

    Attributes:
        size: ids are below it.
        bos_id: begin of sequence, None where the tokenizer has none.
        eod_id: end of document, the tokenizer's end of sequence.
        sha256: of ``tokenizer.json``.
    """

    size: int
    bos_id: int | None
    eod_id: int
    sha256: str

    @classmethod
    def load(cls, tokenizer_dir: Path) -> Vocabulary:
        """Read a tokenizer directory.

        Raises:
            DataError: a file is missing or unreadable, or the tokenizer has no end-of-sequence token.
        """
        from tokenizers import Tokenizer

        path = tokenizer_dir / TOKENIZER_NAME
        try:
            tokenizer = Tokenizer.from_file(str(path))
            settings = json.loads((tokenizer_dir / "tokenizer_config.json").read_bytes())
        except Exception as error:  # tokenizers raises bare Exception
            raise DataError("unreadable tokenizer", where=tokenizer_dir, got=error) from error
        eod = _special_id(tokenizer, settings.get("eos_token"))
        if eod is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token to end documents with",
                where=tokenizer_dir / "tokenizer_config.json",
                got=f"eos_token {settings.get('eos_token')!r}",
                expected="eos_token naming a token of the vocabulary",
            )
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        bos = _special_id(tokenizer, settings.get("bos_token"))
        return cls(size, bos, eod, hashlib.sha256(path.read_bytes()).hexdigest())


def _special_id(tokenizer: Any, token: Any) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(content) if isinstance(content, str) else None


@dataclass(frozen=True)
class EncodeTask:
    """One corpus shard to encode."""

    source: str
    split: Split
    shard: Path
    part: str


class EncodeShards(PipelineStep):
    """Task ``rank`` encodes shard ``rank``: raw ids and the length of every document.

    Args:
        tokenizer_dir: the tokenizer.
        vocabulary: its special ids.
        tasks: what to encode.
        work: folder of the parts.
        add_bos: whether documents begin with BOS.
        batch_documents: documents encoded at a time.
    """

    name = "encode"
    type = "tokens"

    def __init__(
        self,
        tokenizer_dir: Path,
        vocabulary: Vocabulary,
        tasks: list[EncodeTask],
        work: Path,
        add_bos: bool,
        batch_documents: int,
    ) -> None:
        super().__init__()
        self.tokenizer_dir = tokenizer_dir
        self.vocabulary = vocabulary
        self.tasks = tasks
        self.work = work
        self.prefix = [vocabulary.bos_id] if add_bos and vocabulary.bos_id is not None else []
        self.batch_documents = batch_documents

    def run(
        self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """Encode one shard; yields nothing."""
        # Set before the library starts its thread pool: processes are the parallelism here.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        task = self.tasks[rank]
        dtype = token_type(self.vocabulary.size)
        lengths: list[int] = []
        text_bytes = 0
        with atomic_file(self.work / f"{task.part}.ids") as file:
            for texts in self._batches(task.shard):
                for ids in self._encode(texts):
                    document = np.array([*self.prefix, *ids, self.vocabulary.eod_id], dtype)
                    file.write(document.tobytes())
                    lengths.append(len(document))
                text_bytes += sum(len(text.encode()) for text in texts)
        with atomic_file(self.work / f"{task.part}.lengths.npy") as file:
            np.save(file, np.array(lengths, np.int32))
        write_json(self.work / f"{task.part}.json", {"bytes": text_bytes})
        yield from ()

    def _batches(self, shard: Path) -> Iterator[list[str]]:
        batch: list[str] = []
        for record in read_jsonl_zst(shard):
            batch.append(record["text"])
            if len(batch) >= self.batch_documents:
                yield batch
                batch = []
        if batch:
            yield batch

    def _encode(self, texts: list[str]) -> list[list[int]]:
        tokenizer = load_tokenizer(str(self.tokenizer_dir / TOKENIZER_NAME))
        return [item.ids for item in tokenizer.encode_batch(texts, add_special_tokens=False)]


_TOKENIZERS: dict[str, Any] = {}


def load_tokenizer(path: str) -> Any:
    """A tokenizer, loaded once per process."""
    if path not in _TOKENIZERS:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _TOKENIZERS[path] = tokenizer
    return _TOKENIZERS[path]


def run(
    config: TokensConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Encode the corpus and plan the mixture.

    Args:
        config: the tokens section.
        inputs: ``corpus`` and ``tokenizer``.
        output_dir: gets ``<source>.bin/.idx``, ``<source>.heldout.bin/.idx`` and ``mixture.json``.
        context: workers.

    Raises:
        ConfigError: a weight that names nothing, more epochs than allowed.
        DataError: an unreadable corpus or tokenizer.
    """
    corpus_dir, tokenizer_dir = inputs["corpus"].resolve(), inputs["tokenizer"].resolve()
    index = CorpusIndex.load(corpus_dir)
    vocabulary = Vocabulary.load(tokenizer_dir)
    sources = [source for source in index.sources if source.train_documents]
    _check_weights(config, sources)
    tasks = [
        EncodeTask(source.name, split, corpus_dir / shard, f"{source.name}/{split}-{number:05d}")
        for source in sources
        for split in _SPLITS
        for number, shard in enumerate(source.train if split == "train" else source.heldout)
    ]
    work = _open_work(output_dir, config, vocabulary, corpus_dir)
    step = EncodeShards(
        tokenizer_dir, vocabulary, tasks, work, config.add_bos, config.batch_documents
    )
    total_bytes = sum(source.train_bytes + source.heldout_bytes for source in sources)
    start = time.monotonic()
    executor = ProcessExecutor(
        [step], len(tasks), available_workers(context.workers, total_bytes), work / "logs", "tokens encode"
    )
    with Progress("encode", len(tasks), "shards") as progress:
        executor.run(lambda rank: progress.advance())
    seconds = time.monotonic() - start
    datasets = {source.name: _join(source, tasks, vocabulary, work, output_dir) for source in sources}
    mixture = _plan(config, sources, datasets, vocabulary)
    mixture.save(output_dir)
    return _result(mixture, seconds, total_bytes)


@dataclass(frozen=True)
class _Dataset:
    documents: int
    tokens: int
    bytes: int
    heldout_documents: int
    heldout_tokens: int
    heldout_bytes: int


def _check_weights(config: TokensConfig, sources: list[CorpusSource]) -> None:
    """Find a misspelt weight before hours of encoding."""
    weights = config.mixture.weights
    if isinstance(weights, dict):
        tokens = config.mixture.total_tokens
        pretend = [Available(item.name, item.language, item.weight, tokens) for item in sources]
        relaxed = config.mixture.model_copy(update={"max_epochs": 1e9})
        plan_tokens(relaxed, pretend)
    if not sources:
        raise DataError("the corpus has no documents", fix="run the corpus stage on sources with text")


def _open_work(output_dir: Path, config: TokensConfig, vocabulary: Vocabulary, corpus_dir: Path) -> Path:
    """The folder of parts; parts of another tokenizer or corpus are removed."""
    work = output_dir / WORK_FOLDER
    corpus = hashlib.sha256((corpus_dir / INDEX_NAME).read_bytes()).hexdigest()
    plan = {"tokenizer": vocabulary.sha256, "corpus": corpus, "add_bos": config.add_bos}
    marker = work / "plan.json"
    if not marker.is_file() or read_json(marker) != plan:
        for item in output_dir.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        write_json(marker, plan)
    return work


def _join(
    source: CorpusSource, tasks: list[EncodeTask], vocabulary: Vocabulary, work: Path, output_dir: Path
) -> _Dataset:
    numbers: list[int] = []
    for split in _SPLITS:
        parts = [task.part for task in tasks if task.source == source.name and task.split == split]
        lengths = np.concatenate(
            [np.empty(0, np.int32), *(np.load(work / f"{part}.lengths.npy") for part in parts)]
        )
        if len(lengths):
            name = source.name if split == "train" else f"{source.name}.heldout"
            concatenate(
                output_dir / name, [work / f"{part}.ids" for part in parts], lengths,
                token_type(vocabulary.size),
            )
        text_bytes = sum(read_json(work / f"{part}.json")["bytes"] for part in parts)
        numbers += [len(lengths), int(lengths.sum(dtype=np.int64)), text_bytes]
    return _Dataset(*numbers)


def _plan(
    config: TokensConfig,
    sources: list[CorpusSource],
    datasets: Mapping[str, _Dataset],
    vocabulary: Vocabulary,
) -> Mixture:
    available = [
        Available(source.name, source.language, source.weight, datasets[source.name].tokens)
        for source in sources
    ]
    planned = plan_tokens(config.mixture, available)
    total = config.mixture.total_tokens
    entries: list[MixtureSource] = []
    for source in sources:
        dataset, tokens = datasets[source.name], planned.get(source.name, 0)
        if tokens == 0:
            continue
        entries.append(
            MixtureSource(
                name=source.name,
                language=source.language,
                kind=source.kind,
                prefix=source.name,
                heldout_prefix=f"{source.name}.heldout" if dataset.heldout_documents else None,
                share=tokens / total,
                planned_tokens=tokens,
                epochs=tokens / dataset.tokens,
                **vars(dataset),
            )
        )
    if not entries:
        raise ConfigError("no source has a share of the mixture", where="tokens.mixture")
    return Mixture(
        vocabulary_size=vocabulary.size,
        bos_id=vocabulary.bos_id if config.add_bos else None,
        eod_id=vocabulary.eod_id,
        total_tokens=total,
        sources=entries,
    )


def _result(mixture: Mixture, seconds: float, text_bytes: int) -> StageResult:
    tokens = sum(source.tokens + source.heldout_tokens for source in mixture.sources)
    metrics: dict[str, float] = {
        "tokens/total": float(sum(source.tokens for source in mixture.sources)),
        "tokens/encode_megabytes_per_second": text_bytes / 1e6 / max(seconds, 1e-9),
        "tokens/encode_tokens_per_second": tokens / max(seconds, 1e-9),
    }
    for source in mixture.sources:
        metrics[f"tokens/{source.name}/tokens"] = source.tokens
        metrics[f"tokens/{source.name}/share"] = source.share
        metrics[f"tokens/{source.name}/epochs"] = source.epochs
        metrics[f"tokens/{source.name}/bytes_per_token"] = source.bytes / source.tokens
    summary = tuple(
        f"{source.name}: {source.tokens:,} tokens ({source.bytes / 1e6:,.2f} MB), share {source.share:.1%}, "
        f"{source.planned_tokens:,} planned = {source.epochs:.2f} epochs"
        for source in mixture.sources
    )
    return StageResult(
        counts={"tokens": sum(source.tokens for source in mixture.sources),
                "documents": sum(source.documents for source in mixture.sources),
                "total_tokens": mixture.total_tokens},
        metrics=metrics,
        artifacts=("mixture.json",),
        summary=summary,
    )
