"""A shard that is cut short is an error that names it, in every stage that reads shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tsugiki.data.common.jsonl_shards import ShardWriter, read_documents
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.errors import DataError

DOCUMENTS = 60


def write_corpus(folder: Path) -> Path:
    """A corpus of one source; both splits hold the same, in one shard each."""
    for split in ("train", "heldout"):
        with ShardWriter(folder / f"s/{split}.jsonl.zst") as writer:
            for number in range(DOCUMENTS):
                # Text that zstandard cannot make much smaller, so that there is something to cut.
                text = " ".join(f"{(number * 7919 + place * 104729) % 99991:x}" for place in range(400))
                writer.write(f"{split}-{number}", text, {"language": "en"})
    size = writer.bytes
    CorpusIndex(
        sources=[
            CorpusSource(
                name="s", language="en", train=["s/train.jsonl.zst"], heldout=["s/heldout.jsonl.zst"],
                train_documents=DOCUMENTS, train_bytes=size, heldout_documents=DOCUMENTS, heldout_bytes=size,
            )
        ]
    ).save(folder)  # fmt: skip
    return folder


def by_index(corpus: Path) -> Iterator[Any]:
    return CorpusIndex.load(corpus).documents(corpus, "heldout")


def by_tokenizer(corpus: Path) -> Iterator[Any]:
    from tsugiki.tokenizer.base.sample import draw

    return draw(CorpusIndex.load(corpus), corpus, "en", 1 << 40, "heldout", 1)


def by_tokens(corpus: Path) -> Iterator[Any]:
    from tsugiki.data.config import TokensConfig
    from tsugiki.data.tokenise.tokenise_shards import Tokenisation
    from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

    write_hf_tokenizer(mistral_v1_model(), corpus / "tokenizer")
    (corpus / "tokens").mkdir()
    config = TokensConfig.model_validate({"mixture": {"total_tokens": 100}})
    Tokenisation.open(config, {"corpus": corpus, "tokenizer": corpus / "tokenizer"}, corpus / "tokens").run(1)
    return iter(range(DOCUMENTS))


def by_base(corpus: Path) -> Iterator[Any]:
    from tsugiki.pretrain.base import _texts

    return _texts(CorpusIndex.load(corpus), corpus, "en", "heldout")


def by_distillation(corpus: Path) -> Iterator[Any]:
    from tsugiki.pretrain.conversion.distill_contexts import _draw

    (corpus / "s/heldout.jsonl.zst").rename(corpus / "s/train.jsonl.zst")  # it reads what is trained on
    return _draw(CorpusIndex.load(corpus), corpus, "en", 1 << 40, 1, 1)


def by_export(corpus: Path) -> Iterator[Any]:
    from tsugiki.pretrain.export import _texts

    return _texts({"corpus": corpus})


def by_evaluate(corpus: Path) -> Iterator[Any]:
    from tsugiki.evaluation.scoring.heldout import heldout_documents

    return iter(heldout_documents(CorpusIndex.load(corpus), corpus, "en"))


def by_corpus(corpus: Path) -> Iterator[Any]:
    return read_documents(corpus / "s/heldout.jsonl.zst")


READERS = [by_index, by_tokenizer, by_tokens, by_base, by_distillation, by_export, by_evaluate, by_corpus]


@pytest.mark.parametrize("read", READERS)
def test_a_whole_shard_is_read(tmp_path: Path, read: Callable[[Path], Iterator[Any]]) -> None:
    assert len(list(read(write_corpus(tmp_path)))) == DOCUMENTS


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("read", READERS)
def test_a_truncated_shard_is_an_error_that_names_it(
    tmp_path: Path, read: Callable[[Path], Iterator[Any]], share: float
) -> None:
    """Cut to nothing, within the header, within the first and a later block, and by the last byte."""
    corpus = write_corpus(tmp_path)
    shard = corpus / "s/heldout.jsonl.zst"
    data = shard.read_bytes()
    shard.write_bytes(data[: min(int(len(data) * share) + (3 if 0 < share < 0.01 else 0), len(data) - 1)])
    with pytest.raises(DataError) as caught:
        list(read(corpus))
    assert ".jsonl.zst" in str(caught.value) and str(corpus) in str(caught.value)


def test_garbage_behind_a_shard_and_frames_one_after_another(tmp_path: Path) -> None:
    shard = write_corpus(tmp_path) / "s/heldout.jsonl.zst"
    data = shard.read_bytes()
    shard.write_bytes(data * 2)
    assert len(list(by_corpus(tmp_path))) == 2 * DOCUMENTS
    shard.write_bytes(data + b"garbage")
    with pytest.raises(DataError, match="unreadable shard"):
        list(by_corpus(tmp_path))


def test_the_message_says_line_and_reason(tmp_path: Path) -> None:
    shard = write_corpus(tmp_path) / "s/heldout.jsonl.zst"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(
        DataError, match=r"(?s)unreadable shard.*heldout.jsonl.zst, line \d+.*ends within a zstandard frame"
    ):
        list(by_index(tmp_path))
