"""Megatron's indexed dataset: byte for byte what Megatron's builder writes, and read by its reader."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tsugiki.experiment.artefacts.indexed_dataset import concatenate, token_type, write_indexed

SIZES = [10, 65_499, 65_500, 65_536, 65_537, 256_000]
"""Megatron writes uint16 for fewer than 65,500 ids."""


@pytest.fixture(scope="module")
def megatron() -> ModuleType:
    """Imported by who runs these tests, not by every process that collects them."""
    from megatron.core.datasets import indexed_dataset

    return indexed_dataset


def documents(vocabulary: int) -> list[list[int]]:
    return [[1, 5, vocabulary - 1, 2], [2], [1, *(number % vocabulary for number in range(3, 300)), 2]]


@pytest.mark.parametrize("size", SIZES)
def test_type_of_ids_is_megatrons(megatron: ModuleType, size: int) -> None:
    assert token_type(size) == np.dtype(megatron.DType.optimal_dtype(size))


@pytest.mark.parametrize("vocabulary", SIZES)
def test_bytes_are_those_of_megatrons_builder(megatron: ModuleType, tmp_path: Path, vocabulary: int) -> None:
    dtype = megatron.DType.optimal_dtype(vocabulary)
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for ids in documents(vocabulary):
        builder.add_item(torch.tensor(ids))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert write_indexed(tmp_path / "ours", iter(documents(vocabulary)), vocabulary) == (3, 4 + 1 + 299)
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()
    assert (tmp_path / "ours.idx").stat().st_size == 34 + 20 * 3 + 8


@pytest.mark.parametrize("vocabulary", [65_499, 65_500])
def test_megatron_reads_it(megatron: ModuleType, tmp_path: Path, vocabulary: int) -> None:
    write_indexed(tmp_path / "x", documents(vocabulary), vocabulary)
    data = megatron.IndexedDataset(str(tmp_path / "x"))
    assert [data[number].tolist() for number in range(len(data))] == documents(vocabulary)
    assert data.document_indices.tolist() == [0, 1, 2, 3]
    assert data[0].dtype == (np.uint16 if vocabulary == 65_499 else np.int32)


@pytest.mark.parametrize("vocabulary", [100, 70_000])
def test_parts_that_are_joined_give_the_same_bytes(tmp_path: Path, vocabulary: int) -> None:
    every, dtype = documents(vocabulary), token_type(vocabulary)
    write_indexed(tmp_path / "one", every, vocabulary)
    for number, part in enumerate((every[:2], every[2:])):
        (tmp_path / f"part{number}").write_bytes(np.concatenate(part).astype(dtype).tobytes())
    lengths = np.array([len(ids) for ids in every], np.int32)
    concatenate(tmp_path / "two", [tmp_path / "part0", tmp_path / "part1"], lengths, dtype)
    for ending in ("bin", "idx"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_no_documents(tmp_path: Path) -> None:
    assert write_indexed(tmp_path / "x", [], 100) == (0, 0)
    assert (tmp_path / "x.idx").stat().st_size == 34 + 8


def test_index_is_the_one_datatrove_writes(tmp_path: Path) -> None:
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronTokenizedFile

    theirs = MegatronTokenizedFile(str(tmp_path), "theirs", token_size=2)
    for ids in documents(100):
        theirs.write(ids)
    theirs.close()
    write_indexed(tmp_path / "ours", documents(100), 100)
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()
