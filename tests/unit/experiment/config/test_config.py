from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from tsugiki.experiment.config.fingerprint import FingerprintedAs, NotFingerprinted, fingerprint
from tsugiki.experiment.config.load import load_raw
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.strict import StrictModel, dump_yaml
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import ConfigError


class Optimizer(StrictModel):
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    betas: list[float] = [0.9, 0.95]


class Source(StrictModel):
    name: str
    weight: float = 1.0


class Extend(StrictModel):
    size: int
    """Pieces to add."""


class Root(StrictModel):
    name: str
    optimizer: Optimizer = Optimizer()
    sources: list[Source] = []
    extend: Extend | None = None
    weights: dict[str, float] = {}
    log_interval: Annotated[int, NotFingerprinted] = 10


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_loads_and_dumps_to_the_same_values(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        "name: x\noptimizer: {learning_rate: 1e-3}\nsources:\n  - {name: ja}\nextend: {size: 12}\nweights: {no: 0.5}\n",
    )
    config = load_config(Root, path)
    assert config.optimizer.learning_rate == 1e-3
    assert config.weights == {"no": 0.5}, "a language code, not a boolean"
    again = load_config(Root, write(tmp_path / "b.yaml", dump_yaml(config)))
    assert again == config


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(
        tmp_path / "base" / "base.yaml",
        "name: base\noptimizer: {learning_rate: 1e-3, betas: [0.9, 0.99]}\nsources: [{name: a}, {name: b}]\n",
    )
    write(tmp_path / "middle.yaml", "extends: base/base.yaml\noptimizer: {learning_rate: 2e-3}\n")
    config = load_config(
        Root, write(tmp_path / "top.yaml", "extends: middle.yaml\nname: top\nsources: [{name: c}]\n")
    )
    assert config.name == "top"
    assert config.optimizer == Optimizer(learning_rate=2e-3, betas=[0.9, 0.99])
    assert [source.name for source in config.sources] == ["c"]


def test_extends_several_in_order(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "name: a\nlog_interval: 1\n")
    write(tmp_path / "b.yaml", "name: b\n")
    config = load_config(Root, write(tmp_path / "c.yaml", "extends: [a.yaml, b.yaml]\n"))
    assert (config.name, config.log_interval) == ("b", 1)


def test_null_replaces_a_section(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "name: a\nextend: {size: 3}\n")
    assert load_config(Root, write(tmp_path / "b.yaml", "extends: a.yaml\nextend: null\n")).extend is None


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\nsources: [{name: ja}, {name: en}]\n")
    config = load_config(
        Root,
        path,
        [
            "optimizer.learning_rate=3e-4",
            "sources.en.weight=2",
            "sources.0.weight=5",
            "extend.size=7",
            "weights={a: 1}",
        ],
    )
    assert config.optimizer.learning_rate == 3e-4
    assert [source.weight for source in config.sources] == [5, 2]
    assert config.extend == Extend(size=7)
    assert config.weights == {"a": 1}


MISTAKES = {
    "unknown key names the nearest": (
        "name: x\noptimizer:\n  learnin_rate: 1\n",
        ["unknown key 'optimizer.learnin_rate'", "a.yaml:3", "did you mean 'learning_rate'?", "betas, learning_rate"],
    ),
    "wrong type": (
        "name: x\noptimizer: {learning_rate: fast}\n",
        ["wrong value for 'optimizer.learning_rate'", "got:      'fast'", "valid number", "a.yaml:2"],
    ),
    "out of range": (
        "name: x\noptimizer: {learning_rate: -1}\n", ["'optimizer.learning_rate'", "greater than 0"],
    ),
    "missing": ("optimizer: {}\n", ["'name' is required"]),
    "missing below an optional section": (
        "name: x\nextend: {}\n", ["'extend.size' is required", "Pieces to add.", "a.yaml:2"],
    ),
    "unknown key in a list item": (
        "name: x\nsources:\n  - name: ja\n    wieght: 2\n", ["unknown key 'sources.0.wieght'", "a.yaml:4", "'weight'"],
    ),
    "a list where a mapping belongs": ("name: x\noptimizer: [1]\n", ["'optimizer'", "a.yaml:2"]),
    "key twice": ("name: x\nname: y\n", ["key 'name' is written twice", "a.yaml:2", "a.yaml:1"]),
    "not YAML": ("name: [x\n", ["not valid YAML", "line"]),
    "not a mapping": ("- a\n", ["mapping of keys"]),
    "extends a missing file": ("extends: b.yaml\n", ["extends names a file that does not exist", "a.yaml:1"]),
    "extends itself": ("extends: a.yaml\n", ["circular extends"]),
    "extends a number": ("extends: 3\n", ["extends names one file"]),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_explained(tmp_path: Path, case: str) -> None:
    text, expected = MISTAKES[case]
    with pytest.raises(ConfigError) as caught:
        load_config(Root, write(tmp_path / "a.yaml", text))
    for part in expected:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Root, write(tmp_path / "a.yaml", "nme: x\noptimizer: {learning_rate: 0}\n"))
    message = str(caught.value)
    assert "'nme'" in message and "'name' is required" in message and "learning_rate" in message


def test_mistake_in_an_extended_file_names_that_file(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "name: x\n\noptimizer: {learning_rate: 0}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:3"):
        load_config(Root, write(tmp_path / "a.yaml", "extends: base.yaml\n"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.learning_rate", "malformed --set"),
        ("optimizer.learning_rate=0", "--set optimizer.learning_rate=0"),
        ("sources.zh.weight=1", "one of ja, en"),
        ("sources.7.weight=1", "one of ja, en"),
        ("name.first=1", "below a value that has no keys"),
        ("name=[", "not valid YAML"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, expected: str) -> None:
    path = write(tmp_path / "a.yaml", "name: x\nsources: [{name: ja}, {name: en}]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Root, path, [override])
    assert expected in str(caught.value)


def test_missing_file_suggests(tmp_path: Path) -> None:
    write(tmp_path / "quickstart.yaml", "")
    with pytest.raises(
        ConfigError, match=r"no such configuration file[\s\S]*did you mean .*quickstart\.yaml"
    ):
        load_raw(tmp_path / "quikstart.yaml")


def test_an_earlier_name_is_refused_with_the_present_one(tmp_path: Path) -> None:
    class Renamed(StrictModel):
        keep_last: Annotated[int, NotFingerprinted, FingerprintedAs("milestones")] = 2
        milestone: int = 1

    with pytest.raises(ConfigError, match=r"unknown key 'milestones'[\s\S]*did you mean 'keep_last'"):
        load_config(Renamed, write(tmp_path / "a.yaml", "milestones: 3\n"))


def test_fingerprint_ignores_only_fields_so_marked() -> None:
    one = Root(name="x")
    assert fingerprint(one) == fingerprint(Root(name="x", log_interval=99))
    assert fingerprint(one) != fingerprint(Root(name="y"))
    assert fingerprint(one) != fingerprint(Root(name="x", optimizer=Optimizer(learning_rate=1)))


def test_paths_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", "/m")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert expand_path("$MODELS/llama") == Path("/m/llama")
    assert expand_path("~/x") == Path.home() / "x"
    with pytest.raises(ConfigError, match="variable that is not set"):
        expand_path("$NOWHERE/x")
