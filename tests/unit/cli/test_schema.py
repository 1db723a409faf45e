"""The checked-in JSON Schemas: current, fitting to what ships, refusing what the configuration refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tsugiki.cli.main import app
from tsugiki.experiment.config.load import read_yaml
from tsugiki.experiment.errors import ConfigError
from tsugiki.schema import KINDS, schema, schema_text

jsonschema = pytest.importorskip("jsonschema")
ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted(
    [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("recipes/*.yaml"), *CONFIGS.glob("ablation/*.yaml")]
)
CLUSTERS = sorted(CONFIGS.glob("clusters/*.yaml"))
PROFILES = sorted([*CONFIGS.glob("filters/*.yaml"), *(ROOT / "tests/fixtures/filters").glob("*.yaml")])
STUDIES = sorted(CONFIGS.glob("studies/*.yaml"))
SHIPPED = (
    [("experiment", path) for path in EXPERIMENTS]
    + [("cluster", path) for path in CLUSTERS]
    + [("filters", path) for path in PROFILES]
    + [("study", path) for path in STUDIES]
)


def errors(kind: str, values: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(
        json.loads((CONFIGS / "schema" / f"{kind}.json").read_text(encoding="utf-8"))
    )
    return [error.message for error in validator.iter_errors(values)]


@pytest.mark.parametrize("kind", KINDS)
def test_checked_in_schema_is_current(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    checked_in = (CONFIGS / "schema" / f"{kind}.json").read_text(encoding="utf-8")
    assert checked_in == schema_text(kind), (
        f"renew it: tsugiki schema {kind} --out configs/schema/{kind}.json"
    )


@pytest.mark.parametrize(
    ("kind", "path"),
    SHIPPED,
    ids=lambda item: str(item.relative_to(ROOT)) if isinstance(item, Path) else item,
)
def test_shipped_files_fit(kind: str, path: Path) -> None:
    assert errors(kind, read_yaml(path).values) == []


@pytest.mark.parametrize("path", [*EXPERIMENTS, *CLUSTERS, *STUDIES], ids=lambda path: path.stem)
def test_first_line_names_the_schema(path: Path) -> None:
    """Not in filter profiles: their bytes are part of the corpus stage's key, so finished runs would be redone."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    kind = "cluster" if path in CLUSTERS else "study" if path in STUDIES else "experiment"
    assert (path.parent / name).resolve() == CONFIGS / "schema" / f"{kind}.json"


def test_what_the_configuration_refuses_is_refused() -> None:
    good = read_yaml(CONFIGS / "smoke.yaml").values
    for change, message in (
        (lambda values: values["train"].update(precison="fp32"), "precison"),
        (lambda values: values["train"].update(precision="fp99"), "fp99"),
        (lambda values: values["train"].update(global_batch=-1), "-1"),
        (lambda values: values.pop("tokens"), "tokens"),
        (lambda values: values["corpus"]["sources"][0].pop("name"), "name"),
    ):
        bad = copy.deepcopy(good)
        change(bad)
        assert any(message in error for error in errors("experiment", bad)), message


def test_a_file_that_extends_another_may_say_little() -> None:
    assert errors("experiment", {"extends": "smoke.yaml", "tokens": {"mixture": {"max_epochs": 2}}}) == []
    assert errors("experiment", {"extends": ["a.yaml", "b.yaml"]}) == []
    assert errors("experiment", {"name": "x"})
    assert errors("experiment", {"extends": "smoke.yaml", "tokens": {"mixtur": {}}})


def test_command(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, ["schema", "cluster", "--out", str(tmp_path / "deep" / "c.json")])
    assert done.exit_code == 0
    assert (tmp_path / "deep" / "c.json").read_text(encoding="utf-8") == schema_text("cluster")
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout)["title"] == "Tsugiki: experiment"
    with pytest.raises(ConfigError, match="did you mean cluster"):
        schema("clusters")
