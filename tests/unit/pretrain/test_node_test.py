"""A node compared with the others: what is too slow, what is broken, who does not answer."""

import json
from pathlib import Path

import pytest

from tsugiki.pretrain.runtime import node_test
from tsugiki.pretrain.runtime.node_test import LEAST_SHARES, Task, examine_node, judged


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_test, "_CPU_BYTES", 1 << 16)
    monkeypatch.setattr(node_test, "_DISK_BYTES", 1 << 16)
    monkeypatch.setattr("tsugiki.pretrain.runtime.product.CPU_WIDTH", 16)


@pytest.mark.parametrize(
    ("own", "others", "bad"),
    [
        ({"compute": 0.79}, [{"compute": 1.0}] * 2, ["BAD NODE: compute: 0.79 FLOP/s, 79% of the median of 3 nodes"]),
        ({"compute": 0.81}, [{"compute": 1.0}] * 2, []),
        ({"compute": 0.5}, [{"compute": 1.0}], ["BAD NODE: compute: 0.5 FLOP/s, 50%"]),  # of two, the slow one
        ({"compute": 1.0}, [{"compute": 0.5}], []),
        ({"network": 0.0, "disk": 0.2}, [{"network": 1.0, "disk": 1.0}] * 2, ["BAD NODE: network: 0 B/s, 0%"]),
        ({"memory": 1.0}, [{"compute": 1.0}] * 2, []),  # broken there, not here
    ],
)  # fmt: skip
def test_slow_is_told_by_the_median(
    own: dict[str, float], others: list[dict[str, float]], bad: list[str]
) -> None:
    said = judged(own, [own, *others], LEAST_SHARES)
    assert len(said) == len(bad)
    assert all(line.startswith(start) for line, start in zip(said, bad, strict=True))


def test_a_node_alone_shows_its_figures(tmp_path: Path) -> None:
    (line,) = examine_node(Task(0, 1, "a", tmp_path), LEAST_SHARES)
    assert [part.split()[0] for part in line.split(", ")] == ["compute", "memory", "disk"]
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"], "nothing large stays"


def test_what_fails_is_said_and_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: str, dtype: object) -> float:
        raise RuntimeError("CUDA error:\n uncorrectable ECC error")

    monkeypatch.setattr("tsugiki.pretrain.runtime.product.product_flops", broken)
    said = examine_node(Task(0, 1, "a", tmp_path), LEAST_SHARES)
    assert said[0] == "BAD NODE: compute: RuntimeError: CUDA error: uncorrectable ECC error"
    assert set(json.loads((tmp_path / "0.json").read_text())) == {"node", "memory", "disk"}


def test_a_node_without_a_result_is_named_by_the_first_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSUGIKI_CHECKED_NODES", "a b c")
    monkeypatch.setattr(node_test, "_store", lambda *_: None)
    (tmp_path / "2.json").write_text('{"node": "c", "compute": 1.0}')
    said = examine_node(Task(0, 3, "a", tmp_path), dict.fromkeys(LEAST_SHARES, 0.0), wait_seconds=0.3)
    assert said[1:] == ["BAD NODE at b: no result in 0 s"]
    (tmp_path / "2.json").unlink()
    (tmp_path / "0.json").unlink()
    (tmp_path / "1.json").write_text('{"node": "b"}')
    said = examine_node(Task(2, 3, "c", tmp_path), dict.fromkeys(LEAST_SHARES, 0.0), wait_seconds=0.3)
    assert len(said) == 1, "node b says it"
