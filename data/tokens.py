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
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from data.config import TokensConfig
from data.encoding import Ids, load_encoder
from data.execution import ProcessExecutor, available_workers
from data.indexed_dataset import TokenType, concatenate, token_type
from data.mixture_plan import Available, plan_tokens
from data.shardfile import atomic_file, read_json, write_json
from experiment.chat_tokens import TEMPLATE_NAME, ChatConfig, ChatEncoder
from experiment.config import expand_path
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
    kind: str
    split: Split
    shard: Path
    part: str


def stored_type(kind: str, vocabulary: Vocabulary) -> TokenType:
    """Type of the ids of a source: conversations mark what is not learned by negative numbers."""
    return np.dtype(np.int32) if kind == "instruction" else token_type(vocabulary.size)


class EncodeShards(PipelineStep):
    """Task ``rank`` encodes shard ``rank``: raw ids and the length of every document.

    Args:
        tokenizer_dir: the tokenizer.
        vocabulary: its special ids.
        tasks: what to encode.
        work: folder of the parts.
        config: the tokens section.
    """

    name = "encode"
    type = "tokens"

    def __init__(
        self,
        tokenizer_dir: Path,
        vocabulary: Vocabulary,
        tasks: list[EncodeTask],
        work: Path,
        config: TokensConfig,
    ) -> None:
        super().__init__()
        self.tokenizer_dir = tokenizer_dir
        self.vocabulary = vocabulary
        self.tasks = tasks
        self.work = work
        self.config = config
        self.bos_id = vocabulary.bos_id if config.add_bos else None

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Encode one shard; yields nothing."""
        # Set before the library starts its thread pool: processes are the parallelism here.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        task = self.tasks[rank]
        encode = self._conversations if task.kind == "instruction" else self._texts
        dtype = stored_type(task.kind, self.vocabulary)
        lengths: list[NDArray[np.int64]] = []
        text_bytes = 0
        with atomic_file(self.work / f"{task.part}.ids") as file:
            for records in _batches(read_jsonl_zst(task.shard), self.config.batch_documents):
                ids, counts, size = encode(records)
                file.write(ids.astype(dtype).tobytes())
                lengths.append(counts)
                text_bytes += size
        with atomic_file(self.work / f"{task.part}.lengths.npy") as file:
            np.save(file, np.concatenate([np.empty(0, np.int64), *lengths]).astype(np.int32))
        write_json(self.work / f"{task.part}.json", {"bytes": text_bytes})
        yield from ()

    def _texts(self, records: list[dict[str, Any]]) -> tuple[Ids, Ids, int]:
        """Ids of all documents with BOS and EOD, tokens per document, bytes of text."""
        texts = [record["text"] for record in records]
        ids, counts = load_encoder(self.tokenizer_dir / TOKENIZER_NAME).encode(texts)
        ends = np.cumsum(counts)
        marks = [(ends, self.vocabulary.eod_id)]
        if self.bos_id is not None:
            marks.insert(0, (ends - counts, self.bos_id))
        # Document by document, BOS before EOD: np.insert keeps the order of what goes to one place.
        place = np.stack([places for places, _ in marks], axis=1).ravel()
        value = np.tile([mark for _, mark in marks], len(texts))
        size = sum(len(text.encode()) for text in texts)
        return np.insert(ids, place, value), counts + len(marks), size

    def _conversations(self, records: list[dict[str, Any]]) -> tuple[Ids, Ids, int]:
        """Stored numbers of all conversations, numbers per conversation, bytes of the messages."""
        if self.config.chat is None:
            raise ConfigError("tokens.chat is needed for conversations", where="tokens.chat")
        encoder = load_chat_encoder(self.config.chat, self.tokenizer_dir)
        stored: list[list[int]] = []
        size = 0
        for record in records:
            messages = record["metadata"]["messages"]
            try:
                stored.append(encoder.encode(messages))
            except DataError as error:
                raise DataError(
                    error.what,
                    where=f"document {record['id']}",
                    got=error.got,
                    expected=error.expected,
                    fix=error.fix,
                ) from error
            size += sum(len(message["content"].encode()) for message in messages)
        counts = np.array([len(ids) for ids in stored], np.int64)
        return np.array([token for ids in stored for token in ids], np.int64), counts, size


def _batches(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(records, size)):
        yield batch


@lru_cache(maxsize=1)
def load_chat_encoder(config: ChatConfig, tokenizer_dir: Path) -> ChatEncoder:
    """A chat encoder, loaded once per process."""
    return ChatEncoder.load(config, tokenizer_dir)


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
    _check_chat(config, sources, tokenizer_dir)
    tasks = [
        EncodeTask(source.name, source.kind, split, corpus_dir / shard, f"{source.name}/{split}-{number:05d}")
        for source in sources
        for split in _SPLITS
        for number, shard in enumerate(source.train if split == "train" else source.heldout)
    ]
    work = _open_work(output_dir, config, vocabulary, corpus_dir)
    step = EncodeShards(tokenizer_dir, vocabulary, tasks, work, config)
    total_bytes = sum(source.train_bytes + source.heldout_bytes for source in sources)
    start = time.monotonic()
    executor = ProcessExecutor(
        [step], len(tasks), available_workers(context.workers, total_bytes), work / "logs", "tokens encode"
    )
    with Progress("encode", len(tasks), "shards") as progress:
        executor.run(lambda rank: progress.advance())
    seconds = time.monotonic() - start
    datasets = {source.name: _join(source, tasks, vocabulary, work, output_dir) for source in sources}
    if config.chat is not None:
        template = expand_path(config.chat.template).read_bytes()
        with atomic_file(output_dir / TEMPLATE_NAME) as file:
            file.write(template)
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


def _check_chat(config: TokensConfig, sources: list[CorpusSource], tokenizer_dir: Path) -> None:
    """Find a missing or unusable chat template before hours of encoding."""
    names = [source.name for source in sources if source.kind == "instruction"]
    if config.chat is not None:
        load_chat_encoder(config.chat, tokenizer_dir)
    elif names:
        raise ConfigError(
            f"sources of conversations, but no chat template: {', '.join(names)}",
            where="tokens.chat",
            expected="the template conversations are written out with",
            fix="set tokens.chat.template, e.g. to one of configs/chat_templates/",
        )


def _open_work(output_dir: Path, config: TokensConfig, vocabulary: Vocabulary, corpus_dir: Path) -> Path:
    """The folder of parts; parts of another tokenizer or corpus are removed."""
    work = output_dir / WORK_FOLDER
    corpus = hashlib.sha256((corpus_dir / INDEX_NAME).read_bytes()).hexdigest()
    chat = None if config.chat is None else config.chat.model_dump(mode="json")
    plan = {"tokenizer": vocabulary.sha256, "corpus": corpus, "add_bos": config.add_bos, "chat": chat}
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
                output_dir / name,
                [work / f"{part}.ids" for part in parts],
                lengths,
                stored_type(source.kind, vocabulary),
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
        counts={
            "tokens": sum(source.tokens for source in mixture.sources),
            "documents": sum(source.documents for source in mixture.sources),
            "total_tokens": mixture.total_tokens,
        },
        metrics=metrics,
        artifacts=("mixture.json",),
        summary=summary,
    )
