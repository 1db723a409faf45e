"""Which held-out text training validates on: the same documents whatever the vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tsugiki.experiment.artefacts.indexed_dataset import write_indexed
from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource, save_document_bytes
from tsugiki.experiment.errors import DataError
from tsugiki.pretrain.training.validation import read_heldout

SIZES = {"news": [300, 500, 400, 100], "web": [2_000, 50]}  # bytes of the held-out documents of two sources


def write_tokens(directory: Path, bytes_per_token: int) -> Mixture:
    """Both sources encoded by a vocabulary whose tokens are so many bytes; ids are the document's number."""
    directory.mkdir()
    sources = []
    for name, sizes in SIZES.items():
        documents = [[number] * (size // bytes_per_token) for number, size in enumerate(sizes)]
        count, tokens = write_indexed(directory / f"{name}.heldout", documents, 100)
        save_document_bytes(directory, f"{name}.heldout", sizes)
        source = MixtureSource(
            name=name, language="ja", prefix=name, heldout_prefix=f"{name}.heldout", documents=1, tokens=1,
            bytes=1, heldout_documents=count, heldout_tokens=tokens, heldout_bytes=sum(sizes), share=0.5,
            planned_tokens=1, epochs=1.0,
        )  # fmt: skip
        sources.append(source)
    return Mixture(vocabulary_size=100, bos_id=None, eod_id=0, total_tokens=2, sources=sources)


@pytest.mark.parametrize(
    ("limit", "news", "web"),
    [(1, [0], [0]), (1_599, [0], [0]), (1_600, [0, 1], [0]), (2_600, [0, 1, 2, 3], [0]), (9_000, [0, 1, 2, 3], [0, 1])],
)  # fmt: skip
def test_same_documents_for_every_vocabulary(
    limit: int, news: list[int], web: list[int], tmp_path: Path
) -> None:
    for bytes_per_token in (1, 5, 10):
        directory = tmp_path / str(bytes_per_token)
        (text,) = read_heldout(write_tokens(directory, bytes_per_token), directory, limit)
        chosen = [(SIZES["news"], number) for number in news] + [(SIZES["web"], number) for number in web]
        assert text.bytes == sum(sizes[number] for sizes, number in chosen)
        expected = [np.full(sizes[number] // bytes_per_token, number) for sizes, number in chosen]
        assert np.array_equal(text.stream, np.concatenate(expected))


def test_missing_sizes_are_named(tmp_path: Path) -> None:
    mixture = write_tokens(tmp_path / "tokens", 1)
    (tmp_path / "tokens" / "web.heldout.bytes.npy").unlink()
    with pytest.raises(DataError, match=r"(?s)web\.heldout\.bytes\.npy.*run the tokens stage again"):
        read_heldout(mixture, tmp_path / "tokens", 9_000)
