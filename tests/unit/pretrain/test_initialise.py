"""New embedding rows against hand calculations and numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tsugiki.cli.main import app
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.pretrain.conversion.initialisation import (
    BaseRows,
    Initialisation,
    averaged,
    initialise_rows,
    rows_of,
)
from tsugiki.pretrain.conversion.new_rows import NewRows, Piece
from tsugiki.pretrain.convert_config import GraftConfig

BASE = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, -2.0], [0.0, 8.0]])
PIECES = [[0, 1], [2], [], [0, 1, 1]]


def test_mean_by_hand():
    rows = initialise_rows(BASE, PIECES)
    assert torch.allclose(rows[0], torch.tensor([2.0, 1.0]))
    assert torch.equal(rows[1], BASE[2])
    assert torch.allclose(rows[3], torch.tensor([7 / 3, 4 / 3]))
    assert torch.allclose(rows[2], rows[[0, 1, 3]].mean(0)), "a reserved row is the mean of the others"


def test_reader_gives_the_same_as_the_matrix():
    rows = initialise_rows(BaseRows(4, lambda ids: BASE[list(ids)]), PIECES)
    assert torch.equal(rows, initialise_rows(BASE, PIECES))


def test_weighted_by_hand():
    rows = averaged(rows_of(BASE), [[0, 1]], [[1.0, 3.0]])
    assert torch.allclose(rows[0], torch.tensor([2.5, 1.5]))
    default = initialise_rows(BASE, [[0, 1]], "weighted")
    assert torch.allclose(default[0], (BASE[0] + 2 * BASE[1]) / 3)


def test_multivariate_has_the_moments_of_the_base():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3000, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 2
    rows = initialise_rows(base, [[0]] * 60_000, "multivariate", seed=3)
    assert np.allclose(rows.mean(0), base.mean(0), atol=0.05)
    expected = np.cov(base.numpy().T, bias=True)
    assert np.allclose(np.cov(rows.numpy().T, bias=True), expected, atol=0.03 * np.abs(expected).max())
    assert torch.equal(rows, initialise_rows(base, [[0]] * 60_000, "multivariate", seed=3))


def test_similarity_stays_in_the_hull_and_moves_towards_neighbours():
    rows = initialise_rows(BASE, [[0], [0, 1], [3]], "similarity")
    means = initialise_rows(BASE, [[0], [0, 1], [3]])
    assert torch.all(rows.min(0).values >= means.min(0).values - 1e-6)
    assert torch.all(rows.max(0).values <= means.max(0).values + 1e-6)
    assert (rows[0] - means[1]).norm() < (means[0] - means[1]).norm()


@pytest.mark.parametrize("method", ["mean", "weighted", "multivariate", "similarity", "random"])
def test_shapes_dtype_and_norms(method):
    base = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).bfloat16() * 0.05
    pieces = [[i, i + 1, i + 2] for i in range(40)] + [[]] * 3
    rows = initialise_rows(base, pieces, method)
    assert rows.shape == (43, 8) and rows.dtype == torch.float32
    assert rows.norm(dim=1).min() > 0
    assert rows.norm(dim=1).max() <= 2 * base.float().norm(dim=1).max()


def test_bad_requests():
    with pytest.raises(DataError, match="does not have"):
        initialise_rows(BASE, [[4]])
    with pytest.raises(ConfigError, match="no such initialisation"):
        initialise_rows(BASE, [[0]], "zeros")
    with pytest.raises(DataError, match="not finite"):
        initialise_rows(BASE * torch.inf, [[0, 1]])


def test_padding_rows_of_the_base_are_overwritten_and_never_averaged():
    # As in Qwen: 10 rows, of which the tokenizer uses 8; new ids go on at 8, over the two rows of padding.
    matrix = torch.arange(20, dtype=torch.float32).reshape(10, 2)
    matrix[8:] = 1e6
    pieces = [Piece(8, (0, 2)), Piece(9, (7,)), Piece(10, (1, 3)), Piece(11, ())]

    def read(name, start, stop):
        assert name == "embedding" and stop <= 8, "padding is not read"
        return matrix[start:stop]

    rows = NewRows(read, 10, pieces, "mean", 1)
    made = rows.rows("embedding", 8, 12)
    assert torch.allclose(made, torch.tensor([[2, 3], [14, 15], [4, 5], [20 / 3, 23 / 3]]))
    assert rows.norms(["embedding"])["embedding"]["base_mean"] == pytest.approx(
        matrix[:8].norm(dim=1).mean().item()
    )
    for method in ("multivariate", "similarity"):
        other = NewRows(read, 10, pieces, method, 1).rows("embedding", 8, 12)
        assert other.norm(dim=1).max() < 100


def test_pieces_made_of_padding_are_refused():
    with pytest.raises(DataError, match="ids the base does not have"):
        NewRows(lambda *_: BASE, 10, [Piece(8, (9,))], "mean", 1)


def test_an_unknown_initialisation_is_refused_with_file_and_line(tmp_path):
    (tmp_path / "graft.yaml").write_text("dtype: bf16\ninit: similarty\n")
    with pytest.raises(ConfigError) as caught:
        load_config(GraftConfig, tmp_path / "graft.yaml")
    message = str(caught.value)
    assert "graft.yaml:2" in message and "'similarty'" in message
    assert "one of distillation, mean, multivariate, random, similarity, weighted" in message
    assert "did you mean 'similarity'?" in message


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("zeros", "one of distillation, mean,"),
        ("no_such_module_here:zeros", "no_such_module_here"),
        ("tsugiki.pretrain.conversion.initialisation:zeros", "has no such name"),
        ("tsugiki.pretrain.conversion.initialisation:RowReaders", "did you mean 'RowReader'"),
        ("tsugiki.pretrain.conversion.new_rows:PIECES_NAME", "not an initialisation"),
    ],
)
def test_the_command_line_refuses_what_it_cannot_find(init, message, tmp_path):
    done = CliRunner().invoke(
        app, ["convert", "import", str(tmp_path), str(tmp_path / "out"), "--init", init]
    )
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda base, pieces, seed: torch.zeros(1, 2), r"\[1, 2\] torch.float32"),
        (lambda base, pieces, seed: torch.zeros(4, 2, dtype=torch.float64), r"\[4, 2\] torch.float64"),
        (lambda base, pieces, seed: None, "NoneType"),
    ],
)
def test_what_is_no_matrix_of_new_rows_is_refused(make, got):
    with pytest.raises(DataError, match=got):
        initialise_rows(BASE, PIECES, Initialisation("mine:make", make))


def test_listing_names_imports_no_torch():
    program = (
        "import sys; from tsugiki.pretrain.convert_config import GraftConfig; GraftConfig(init='similarity');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
