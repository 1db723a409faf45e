"""Encodes the shards of the corpus with the final tokenizer: independent tasks, each with its files.

Each document becomes ``[BOS] tokens EOD`` (EOD is the tokenizer's end-of-sequence token). A task
leaves ``<part>.ids`` (raw ids), ``<part>.lengths.npy`` (tokens of every document), ``<part>.bytes.npy``
(bytes of text) and ``<part>.special.npy`` (how often the text spells a special token, which stays text) in the work
folder, and datatrove's completion marker in ``logs``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from tsugiki.data.common.executor import ProcessExecutor, available_workers
from tsugiki.data.common.workspace import open_work
from tsugiki.data.config import CONVERSATIONS, TokensConfig
from tsugiki.experiment.artefacts.corpus_index import (
    INDEX_NAME,
    CorpusIndex,
    CorpusSource,
    Split,
)
from tsugiki.experiment.artefacts.indexed_dataset import TokenType, token_type
from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.files import atomic_file, sha256_file
from tsugiki.experiment.text.cached_bpe import Ids, load_encoder
from tsugiki.experiment.text.chat_tokens import ChatConfig, ChatEncoder
from tsugiki.experiment.text.tokenizer_files import open_tokenizer

TOKENIZER_NAME = "tokenizer.json"
SPLITS: tuple[Split, Split] = ("train", "heldout")


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
        path = tokenizer_dir / TOKENIZER_NAME
        tokenizer = open_tokenizer(path)
        eod = tokenizer.require_eos("to end documents with")
        return cls(tokenizer.size, tokenizer.bos_id, eod, sha256_file(path))


@dataclass(frozen=True)
class TokeniseTask:
    """One corpus shard to encode."""

    source: str
    kind: str
    split: Split
    shard: Path
    part: str


def stored_type(kind: str, vocabulary: Vocabulary) -> TokenType:
    """Type of the ids of a source: conversations mark what is not learned by negative numbers."""
    return np.dtype(np.int32) if kind in CONVERSATIONS else token_type(vocabulary.size)


class TokeniseShards(PipelineStep):
    """Task ``rank`` encodes shard ``rank``: raw ids, and of every document its tokens and bytes of text.

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
        tasks: list[TokeniseTask],
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
        encode = self._conversations if task.kind in CONVERSATIONS else self._texts
        dtype = stored_type(task.kind, self.vocabulary)
        spelt, special = 0, load_special_tokens(self.tokenizer_dir)
        lengths, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        with atomic_file(self.work / f"{task.part}.ids") as file:
            for records in _batches(read_shard(task.shard), self.config.batch_documents):
                ids, counts, text_bytes = encode(records)
                spelt += sum(len(special.findall(text)) for record in records for text in _texts_of(record))
                file.write(ids.astype(dtype).tobytes())
                lengths.append(counts)
                sizes.append(text_bytes)
        with atomic_file(self.work / f"{task.part}.lengths.npy") as file:
            np.save(file, np.concatenate(lengths).astype(np.int32))
        with atomic_file(self.work / f"{task.part}.bytes.npy") as file:
            np.save(file, np.concatenate(sizes))
        with atomic_file(self.work / f"{task.part}.special.npy") as file:
            np.save(file, np.array([spelt], np.int64))
        yield from ()

    def _texts(self, records: list[dict[str, Any]]) -> tuple[Ids, Ids, Ids]:
        """Ids of all documents with BOS and EOD; tokens and bytes of text of each document."""
        texts = [record["text"] for record in records]
        ids, counts = load_encoder(self.tokenizer_dir / TOKENIZER_NAME).encode(texts)
        ends = np.cumsum(counts)
        marks = [(ends, self.vocabulary.eod_id)]
        if self.bos_id is not None:
            marks.insert(0, (ends - counts, self.bos_id))
        # Document by document, BOS before EOD: np.insert keeps the order of what goes to one place.
        place = np.stack([places for places, _ in marks], axis=1).ravel()
        value = np.tile([mark for _, mark in marks], len(texts))
        sizes = np.array([len(text.encode()) for text in texts], np.int64)
        return np.insert(ids, place, value), counts + len(marks), sizes

    def _conversations(self, records: list[dict[str, Any]]) -> tuple[Ids, Ids, Ids]:
        """Stored numbers of all conversations; numbers and bytes of the messages of each conversation.

        A pair of answers is two conversations, the chosen one first.
        """
        if self.config.chat is None:
            raise ConfigError("tokens.chat is needed for conversations", where="tokens.chat")
        encoder = load_chat_encoder(self.config.chat, self.tokenizer_dir)
        stored: list[list[int]] = []
        sizes: list[int] = []
        for record in records:
            messages, rejected = record["metadata"]["messages"], record["metadata"].get("rejected")
            try:
                if rejected is None:
                    conversations = [messages]
                    stored.append(encoder.encode(messages))
                else:
                    conversations = [messages, [*messages[:-1], *rejected]]
                    stored += encoder.encode_pair(*conversations)
            except DataError as error:
                raise DataError(
                    error.what,
                    where=f"document {record['id']}",
                    got=error.got,
                    expected=error.expected,
                    fix=error.fix,
                ) from error
            sizes += [sum(len(message["content"].encode()) for message in each) for each in conversations]
        counts = np.array([len(ids) for ids in stored], np.int64)
        ids = np.array([token for ids in stored for token in ids], np.int64)
        return ids, counts, np.array(sizes, np.int64)


def _batches(records: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(records, size)):
        yield batch


def _texts_of(record: dict[str, Any]) -> list[str]:
    """What is encoded of a document, messages one by one."""
    messages = record["metadata"].get("messages")
    rejected = record["metadata"].get("rejected") or []
    return [message["content"] for message in [*messages, *rejected]] if messages else [record["text"]]


@lru_cache(maxsize=1)
def load_special_tokens(tokenizer_dir: Path) -> re.Pattern[str]:
    """Finds the surfaces of special tokens in a text."""
    opened = open_tokenizer(tokenizer_dir / TOKENIZER_NAME, special_tokens_in_text=False)
    added = opened.fast.get_added_tokens_decoder().values()
    surfaces = sorted((token.content for token in added if token.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, surfaces)) or r"(?!)")


@lru_cache(maxsize=1)
def load_chat_encoder(config: ChatConfig, tokenizer_dir: Path) -> ChatEncoder:
    """A chat encoder, loaded once per process."""
    return ChatEncoder.load(config, tokenizer_dir)


@dataclass(frozen=True)
class Tokenisation:
    """What is encoded, and where the parts go.

    Attributes:
        sources: the corpus' sources that have documents.
        vocabulary: of the tokenizer.
        tasks: one for each shard of the corpus.
        work: folder of the parts.
        step: datatrove step; task ``rank`` encodes ``tasks[rank]``.
    """

    sources: list[CorpusSource]
    vocabulary: Vocabulary
    tasks: list[TokeniseTask]
    work: Path
    step: TokeniseShards

    @classmethod
    def open(cls, config: TokensConfig, inputs: Mapping[str, Path], output_dir: Path) -> Tokenisation:
        """Plan the tasks; parts that another tokenizer or corpus left in ``output_dir`` are removed.

        Args:
            config: the tokens section.
            inputs: ``corpus`` and ``tokenizer``.
            output_dir: the stage's partial directory.

        Raises:
            DataError: an unreadable corpus or tokenizer.
        """
        corpus_dir, tokenizer_dir = inputs["corpus"].resolve(), inputs["tokenizer"].resolve()
        vocabulary = Vocabulary.load(tokenizer_dir)
        sources = [source for source in CorpusIndex.load(corpus_dir).sources if source.train_documents]
        tasks = [
            TokeniseTask(
                source.name, source.kind, split, corpus_dir / shard, f"{source.name}/{split}-{number:05d}"
            )
            for source in sources
            for split in SPLITS
            for number, shard in enumerate(source.train if split == "train" else source.heldout)
        ]
        work = _open_work(output_dir, config, vocabulary, corpus_dir)
        return cls(
            sources, vocabulary, tasks, work, TokeniseShards(tokenizer_dir, vocabulary, tasks, work, config)
        )

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return sum(source.train_bytes + source.heldout_bytes for source in self.sources)

    @property
    def special_tokens_in_text(self) -> int:
        """How often the finished tasks met the surface of a special token in a text."""
        files = (self.work / f"{task.part}.special.npy" for task in self.tasks)
        return sum(int(np.load(file)[0]) for file in files if file.exists())

    def documents(self, rank: int) -> int:
        """Documents of a finished task."""
        return len(np.load(self.work / f"{self.tasks[rank].part}.lengths.npy", mmap_mode="r"))

    def run(
        self, workers: int, share: tuple[int, int] = (0, 1), on_task_done: Callable[[int], None] | None = None
    ) -> None:
        """Encode the shards that have no completion marker.

        Args:
            workers: processes at a time.
            share: ``(k, n)``: only tasks k, k + n, k + 2n …, for the k-th of n jobs.
            on_task_done: hears the number of each finished task of the share.

        Raises:
            DataError, EnvironmentError_: as :meth:`tsugiki.data.common.executor.ProcessExecutor.run`.
        """
        workers = available_workers(workers, self.text_bytes)
        executor = ProcessExecutor([self.step], len(self.tasks), workers, self.work / "logs", "tokens encode")
        executor.run(on_task_done, share)


def _open_work(output_dir: Path, config: TokensConfig, vocabulary: Vocabulary, corpus_dir: Path) -> Path:
    """The folder of parts; parts of another tokenizer or corpus are removed."""
    corpus = sha256_file(corpus_dir / INDEX_NAME)
    chat = None if config.chat is None else config.chat.model_dump(mode="json")
    plan = {"tokenizer": vocabulary.sha256, "corpus": corpus, "add_bos": config.add_bos, "chat": chat}
    return open_work(output_dir, plan)
