"""YAML that is hostile, damaged or reads as something else than it says: an error with its line, in bounded time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import pytest
from patience import patience
from test_config import Root, write

from tsugiki.experiment.config.load import load_raw
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.status import read_status

_ALIASES = "\n".join(
    ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
)


class Numbers(StrictModel):
    count: int = 1
    rate: float = 0.5
    maybe: int | None = None
    weights: dict[str, float] = {}
    pairs: list[tuple[int, float]] = []
    flag: bool = False
    size: int | Literal["auto"] = "auto"
    either: bool | int = 1
    anything: Any = None
    text: str = ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\nsources: &a [*a]\n", r"anchor stands within itself[\s\S]*a\.yaml:2"),
        ("name: x\nweights: &a {b: {c: *a}}\n", r"anchor stands within itself[\s\S]*a\.yaml:2"),
        ("name: x\nextend: !python/object:os.system {}\n", r"'extend'[\s\S]*a\.yaml:2[\s\S]*tag !python"),
        ("name: !!binary aGk=\n", r"'name'[\s\S]*a\.yaml:1[\s\S]*binary"),
        ("name: !mine x\n", r"'name'[\s\S]*a\.yaml:1[\s\S]*!mine"),
        ("sources: !mine [x]\n", r"'sources'[\s\S]*a\.yaml:1"),
        ("name: x\nextend: 2024-13-45\n", r"'extend'[\s\S]*a\.yaml:2[\s\S]*2024-13-45"),
        (f"name: x\nlog_interval: {'9' * 5000}\n", r"'log_interval'[\s\S]*a\.yaml:2[\s\S]*5,000 characters"),
        (
            f"name: x\nlog_interval: 0x{'f' * 5000}\n",
            r"'log_interval'[\s\S]*a\.yaml:2[\s\S]*an integer up to",
        ),
        ("name: x\nlog_interval: 0777\n", r"'log_interval'[\s\S]*a\.yaml:2[\s\S]*octal[\s\S]*write 777"),
        ("name: x\nlog_interval: -010\n", r"octal"),
        ("[" * 20_000, "nested hundreds of levels deep"),
        ("a: " + "{a: " * 20_000, "nested hundreds of levels deep"),
        (_ALIASES, "over 100,000, aliases opened"),
        ("a: &a x\nb: [" + "*a," * 400_000 + "]", r"too large for a configuration"),
        ("? [a, b]\n: c\n", r"a key is a word[\s\S]*a\.yaml:1"),
        ("name: '\0'\n", "not valid YAML"),
        ("- a\n", "a mapping of keys"),
        ("text\n", "a mapping of keys"),
        ("name: =\n", r"'name'[\s\S]*a\.yaml:1"),
    ],
)
def test_hostile_yaml_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(Root, write(tmp_path / "a.yaml", text))
    assert len(str(caught.value)) < 2000
    assert time.monotonic() - began < patience(5)


@pytest.mark.parametrize(
    "override",
    [
        "sources.²=3", f"sources.{'1' * 5000}=3", "name=2024-13-45", f"log_interval={'9' * 5000}", "log_interval=010",
        "sources=&a [*a]", "name=!mine x", "name=" + "[" * 20_000, "name=[", "log_interval=yes",
        "optimizer.learning_rate=.inf",
    ],
)  # fmt: skip
def test_hostile_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set"):
        load_config(Root, write(tmp_path / "a.yaml", "name: x\nsources: [{name: ja}]\n"), [override])


@pytest.mark.parametrize("value", ["yes", "no", "on", "off", "true", "False"])
@pytest.mark.parametrize(
    "line", ["count: {}", "rate: {}", "maybe: {}", "weights: {{ja: {}}}", "pairs: [[1, {}]]", "size: {}"]
)
def test_boolean_for_a_number_is_refused(tmp_path: Path, line: str, value: str) -> None:
    text = "text: x\n" + line.format(value) + "\n"
    if line.startswith("size"):
        expected = r"'size'[\s\S]*a\.yaml:2"
    else:
        expected = rf"'{line.split(':')[0]}'[\s\S]*a\.yaml:2[\s\S]*are booleans"
    with pytest.raises(ConfigError, match=expected):
        load_config(Numbers, write(tmp_path / "a.yaml", text))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "inf", "nan", "1e999"])
@pytest.mark.parametrize("line", ["rate: {}", "weights: {{ja: {}}}", "pairs: [[1, {}]]"])
def test_number_that_is_not_finite_is_refused(tmp_path: Path, line: str, value: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:1[\s\S]*finite number"):
        load_config(Numbers, write(tmp_path / "a.yaml", line.format(value) + "\n"))


def test_booleans_and_numbers_where_they_are_meant(tmp_path: Path) -> None:
    text = (
        "flag: on\neither: off\nanything: {deep: [yes, 1]}\nrate: 1e-4\ncount: 1_000\nmaybe: null\n"
        "weights: {no: 0.5, on: 0}\ntext: 12:30:00\n"
    )
    config = load_config(Numbers, write(tmp_path / "a.yaml", text))
    assert (config.flag, config.either, config.anything) == (True, False, {"deep": [True, 1]})
    assert (config.rate, config.count, config.maybe) == (1e-4, 1000, None)
    assert config.weights == {"no": 0.5, "on": 0}
    assert config.text == "12:30:00", "as written, not a number to base 60"


def test_aliases_and_overrides_of_everyday_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\nweights: &w {a: 1}\nsources: [{name: ja, weight: 2}]\n")
    raw = load_raw(path, ["weights={b: 1, no: 2}", "sources.ja.weight=3", "sources.0.name='012'", "extend="])
    assert raw.values["weights"] == {"b": 1, "no": 2}
    assert raw.values["sources"] == [{"name": "012", "weight": 3}]
    assert raw.values["extend"] is None
    assert str(raw.mark(("sources", 0, "weight"))) == "--set sources.ja.weight=3"


def test_paths_that_no_system_takes() -> None:
    for text in ("~nosuchuser_here/x", "a\0b", "x" * 5000):
        with pytest.raises(ConfigError, match="a path"):
            expand_path(text)


def test_configuration_that_is_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"a link that leads nowhere[\s\S]*nowhere\.yaml"):
        load_config(Root, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"1", b"{", b"\xff\xfe", b"[" * 100_000, b"&a [*a]", b'{"base": 3}']
)
def test_status_of_damaged_files_is_told(tmp_path: Path, damage: bytes) -> None:
    run = tmp_path / "run"
    for folder in ("train.partial", "tokens", "corpus", "base"):
        (run / folder).mkdir(parents=True)
    (run / "train.partial" / "metrics.jsonl").write_bytes(
        b'{"train/loss": 1.0, "step": 3, "consumed_tokens": 5, "throughput/tokens_per_second": 2}\n' + damage
    )
    for name in ("config.yaml", "tokens/mixture.json", "corpus/manifest.json"):
        (run / name).write_bytes(damage)
    found = read_status(run)
    assert "step 3" in found.to_text()
    assert {stage.name: stage.state for stage in found.stages}["train"] == "partial"


def test_status_of_numbers_out_of_range(tmp_path: Path) -> None:
    for folder in ("train.partial", "tokens"):
        (tmp_path / folder).mkdir()
    (tmp_path / "config.yaml").write_text("name: x")
    for loss, rate, total in (
        ("NaN", "1e-300", "7"),
        ("1e999", "NaN", "1e999"),
        ("1" * 400, "1" * 400, '"x"'),
    ):
        (tmp_path / "train.partial" / "metrics.jsonl").write_text(
            f'{{"train/loss": {loss}, "consumed_tokens": 5, "throughput/tokens_per_second": {rate}}}\n'
        )
        (tmp_path / "tokens" / "mixture.json").write_text(f'{{"total_tokens": {total}}}')
        assert "training" in read_status(tmp_path).to_text()


def test_manifest_keeps_metrics_that_are_not_finite(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "stage": "x", "key": "k", "key_parts": {}, "config": None, "inputs": {}, "outputs": {}, "digest": "d",
        "versions": {}, "git_revision": None, "counts": {}, "started": "", "seconds": 1.0,
        "metrics": {"perplexity": float("inf"), "loss": float("nan")},
    }  # fmt: skip
    Manifest(**values).save(tmp_path)
    found = Manifest.load(tmp_path)
    assert found is not None and found.metrics["perplexity"] == float("inf")
