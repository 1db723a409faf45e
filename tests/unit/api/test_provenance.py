"""The bill of materials of a run made by hand: sources, licences, hashes, against CycloneDX's own schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from cyclonedx_schema import check_cyclonedx
from tokenizer_material import write_corpus
from typer.testing import CliRunner

from tsugiki.cli.main import app
from tsugiki.experiment.errors import TsugikiError
from tsugiki.experiment.run.manifest import Manifest, describe_outputs
from tsugiki.provenance import BOM_NAME, differences, properties, provenance, write_provenance

AMOUNT = {"documents": 5, "bytes": 50}


def seal(directory: Path, stage: str, **facts: Any) -> Manifest:
    outputs, digest = describe_outputs(directory)
    fields = {
        **{
            "key": "k",
            "key_parts": {},
            "config": None,
            "inputs": {},
            "counts": {},
            "metrics": {},
            "seconds": 1.0,
        },
        **{
            "started": "2026-01-02T03:04:05+00:00",
            "git_revision": "abc",
            "versions": {"torch": "2.13.0+cpu"},
        },
    }
    manifest = Manifest(stage=stage, outputs=outputs, digest=digest, **{**fields, **facts})
    manifest.save(directory)
    return manifest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A corpus of two sources, and an export."""
    root = tmp_path / "run"
    write_corpus(root / "corpus", {"en": ["one", "two", "three", "four"], "ja": ["一", "二", "三", "四"]})
    sources = [
        {"name": f"src-{language}", "language": language, "kind": "text", "dropped": {"length.short": AMOUNT}}
        | dict.fromkeys(("read", "kept", "train", "heldout"), AMOUNT)
        for language in ("en", "ja")
    ]
    (root / "corpus" / "report.json").write_text(json.dumps({"sources": sources}))
    seal(root / "corpus", "corpus")
    (root / "export").mkdir()
    (root / "export" / "config.json").write_text('{"model_type": "llama"}')
    seal(
        root / "export",
        "export",
        versions={"torch": "2.14.0", "python": "3.11.7"},
        started="2026-01-03T00:00:00+00:00",
    )
    config = {
        **{
            "name": "mine",
            "seed": 7,
            "base": {"path": "/models/Base-7B"},
            "export": {"license": "Apache-2.0"},
        },
        "corpus": {
            "sources": [{"name": "src-en", "license": "CC-BY-SA-4.0", "path": "data/en"}, {"name": "src-ja"}]
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def test_what_went_in(run: Path) -> None:
    bom = provenance(run)
    check_cyclonedx(bom)
    assert json.dumps(bom) == json.dumps(provenance(run)), "the same run gives the same bytes"
    model = bom["metadata"]["component"]
    assert bom["metadata"]["timestamp"].startswith("2026-01-03")
    assert model["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert model["modelCard"]["modelParameters"]["architectureFamily"] == "llama"
    facts = properties(model)
    assert facts["tsugiki:seed"] == "7" and facts["tsugiki:stage:corpus:commit"] == "abc"
    by_ref = {item["bom-ref"]: item for item in bom["components"]}
    assert by_ref["base"]["name"] == "Base-7B", "no path of the machine"
    assert by_ref["data/src-en"]["licenses"] == [{"license": {"name": "CC-BY-SA-4.0"}}]
    assert "licenses" not in by_ref["data/src-ja"]
    source = properties(by_ref["data/src-en"])
    assert source["tsugiki:documents:train"] == "1" and source["tsugiki:dropped:length.short"] == "5"
    shard = Manifest.load(run / "corpus").outputs["src-en/train.jsonl.zst"]
    assert source["tsugiki:sha256:src-en/train.jsonl.zst"] == shard.sha256
    assert by_ref["file/config.json"]["hashes"][0]["alg"] == "SHA-256"
    assert {"package/torch@2.13.0+cpu", "package/torch@2.14.0"} <= set(by_ref), "both versions that were used"
    assert by_ref["package/torch@2.13.0+cpu"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"


def test_the_schema_refuses_what_is_wrong(run: Path) -> None:
    bom = provenance(run)
    bom["components"][0]["type"] = "model"
    with pytest.raises(jsonschema.ValidationError):
        check_cyclonedx(bom)


def test_page_command_and_comparison(run: Path) -> None:
    assert CliRunner().invoke(app, ["provenance", str(run)]).exit_code == 0
    folder = run / "provenance"
    page = (folder / "index.html").read_text(encoding="utf-8")
    for shown in ("CC-BY-SA-4.0", "not stated", "Provenance of mine", "2.13.0+cpu", "src-ja"):
        assert shown in page
    assert (folder / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    against = ["provenance", str(run), "--against", str(folder / BOM_NAME)]
    assert "the same results" in CliRunner().invoke(app, against).stdout
    (run / "export" / "config.json").write_text('{"model_type": "gemma"}')
    seal(run / "export", "export")
    answer = CliRunner().invoke(app, against)
    assert answer.exit_code == 1 and "other results: export" in answer.stdout


def test_what_cannot_be_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(TsugikiError, match="not a bill of materials"):
        differences(run, tmp_path / "x.json")
    for stage in ("corpus", "export"):
        (run / stage / "manifest.json").unlink()
    with pytest.raises(TsugikiError, match="finished stages: none"):
        write_provenance(run)
    assert not (run / "provenance").exists()
