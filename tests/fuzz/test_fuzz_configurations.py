"""Configurations and `--set`: accepted, and then the same after a round trip, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import NASTY, fuzz, mutated_bytes, right_or_refused
from hypothesis import example, given
from hypothesis import strategies as st

from tsugiki.experiment.config.strict import dump_yaml
from tsugiki.experiment.errors import TsugikiError
from tsugiki.pipeline import Experiment, load_experiment

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    ROOT / "configs/smoke.yaml",
    ROOT / "configs/quickstart.yaml",
    *sorted((ROOT / "configs/recipes").glob("*.yaml")),
]
WHOLE = yaml.safe_load(dump_yaml(load_experiment(ROOT / "configs/smoke.yaml").config))


def paths(value: Any, prefix: str = "") -> list[str]:
    """Dotted path of every key."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [f"{prefix}{key}", *paths(item, f"{prefix}{key}.")]
    return found


VALUES = st.one_of(
    st.sampled_from(NASTY).map(lambda value: json.dumps(value) if not isinstance(value, str) else value),
    st.sampled_from(["!!python/object:os.system x", "&a [*a]", "0x10", "1:30", "1_0", "{a: 1, a: 2}", "- 1", "'", "|\n x"]),
    st.text(max_size=12), st.integers().map(str), st.floats().map(str),
)  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A shipped file with lines removed, doubled, moved, indented, given another value; or changed bytes."""
    text = draw(st.sampled_from(SHIPPED)).read_bytes()
    if draw(st.booleans()):
        return draw(mutated_bytes(text))
    lines = text.decode().split("\n")
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines) - 1))
        how = draw(st.sampled_from(("remove", "double", "indent", "value", "value", "move")))
        if how == "remove" and len(lines) > 1:
            del lines[place]
        elif how == "double":
            lines.insert(place, lines[place])
        elif how == "indent":
            lines[place] = " " * draw(st.integers(0, 6)) + lines[place].strip()
        elif how == "value":
            lines[place] = lines[place].split(":")[0] + ": " + draw(VALUES)
        elif how == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(place))
    return "\n".join(lines).encode(errors="surrogatepass")


def accepted_again(experiment: Experiment | TsugikiError, folder: Path) -> None:
    """What is accepted can be shown, and the file that a run writes of it says the same."""
    if isinstance(experiment, TsugikiError):
        return
    repr(experiment), experiment.run_dir
    (folder / "config.yaml").write_text(dump_yaml(experiment.config), encoding="utf-8")
    again = load_experiment(folder / "config.yaml")
    assert again.config.model_dump() == experiment.config.model_dump()
    right_or_refused(lambda: experiment.missing_inputs(list(experiment.graph().stages.values())))
    right_or_refused(lambda: str(experiment.plan()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configurations")


@fuzz(150)
@given(text=texts())
@example(text=b"")
@example(text=b"[]")
@example(text=b"name: &a [*a]")
def test_files(folder: Path, text: bytes) -> None:
    path = folder / "experiment.yaml"
    path.write_bytes(text)
    accepted_again(right_or_refused(lambda: load_experiment(path)), folder)


@fuzz(200)
@given(
    changes=st.lists(
        st.tuples(st.one_of(st.sampled_from(paths(WHOLE)), st.text(max_size=10)), VALUES),
        min_size=1,
        max_size=3,
    )
)
def test_set(folder: Path, changes: list[tuple[str, str]]) -> None:
    overrides = [f"{path}={value}" for path, value in changes]
    accepted_again(right_or_refused(lambda: load_experiment(ROOT / "configs/smoke.yaml", overrides)), folder)
