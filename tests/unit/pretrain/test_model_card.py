"""The model card shows what the base says of itself, and is not written by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.pretrain.conversion.model_card import write_card
from tsugiki.pretrain.conversion.trained_model import TrainedModel
from tsugiki.pretrain.convert_config import ExportConfig

SPEC = ModelSpec(
    family="llama", layers=1, hidden_size=8, ffn_size=8, heads=1, kv_heads=1, head_dim=8, vocabulary_size=9,
    max_positions=8,
)  # fmt: skip
HOSTILE = "mit\n---\n# Owned\n| a | b |\n<script>x</script> [x](http://y) | z"


def card(
    folder: Path, config: ExportConfig, base: str = "", name: object = None, base_dir: str | None = "base"
) -> str:
    (folder / "out").mkdir()
    inputs = {}
    if base_dir is not None:
        inputs["base"] = folder / base_dir
        inputs["base"].mkdir(parents=True, exist_ok=True)
        (inputs["base"] / "README.md").write_text(base, encoding="utf-8")
    model = TrainedModel(folder, SPEC, {"_name_or_path": name}, None, {}, folder)
    write_card(folder / "out", config, model, inputs, "exp", {})
    return (folder / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("origin", ["configuration", "base"])
def test_licence_and_base_name_stay_in_their_places(tmp_path: Path, origin: str) -> None:
    if origin == "configuration":
        text = card(tmp_path, ExportConfig(license=HOSTILE, base_model=HOSTILE))
    else:
        front = yaml.safe_dump({"license": HOSTILE})
        text = card(tmp_path, ExportConfig(), f"---\n{front}\n---\n", HOSTILE)
    lines = text.splitlines()
    assert lines[0] == "---"
    assert lines.count("---") == 2 and [line for line in lines if line.startswith("#")] == ["# exp"]
    metadata = yaml.safe_load(text.split("\n---\n")[0][4:])
    assert metadata["license"] == metadata["base_model"] == " ".join(HOSTILE.split())
    row = next(line for line in lines if line.startswith("| Licence"))
    assert row.replace("\\|", "").count("|") == 3 and "\\<script\\>" in row and "\\[x\\]" in row


@pytest.mark.parametrize(
    "front",
    ["license: &a [*a]", "a: &a {x: 1}\nlicense: *a", "license: {a: b}", "license: 2001-99-99", "[" * 5000, "license: !!python/object/apply:os.getcwd []"],
)  # fmt: skip
def test_a_base_card_that_cannot_be_used_says_nothing(tmp_path: Path, front: str) -> None:
    text = card(tmp_path, ExportConfig(), f"---\n{front}\n---\n")
    assert "| Licence | not stated by the base model |" in text


def test_usual_names_are_shown_as_they_are(tmp_path: Path) -> None:
    text = card(tmp_path, ExportConfig(), "---\nlicense: [apache-2.0]\n---\n", "meta-llama/Llama-2-7b_hf")
    assert "| Base model | meta-llama/Llama-2-7b_hf |" in text and "| Licence | apache-2.0 |" in text


def base_shown(text: str) -> tuple[str, str | None]:
    """The row and the metadata."""
    row = next(line for line in text.splitlines() if line.startswith("| Base model"))
    return row.split("|")[2].strip(), yaml.safe_load(text.split("\n---\n")[0][4:]).get("base_model")


@pytest.mark.parametrize(
    ("base_dir", "name", "expected"),
    [
        ("my-llama", None, ("my-llama (a local folder)", None)),
        ("my-llama", "/scratch/someone/llama", ("my-llama (a local folder)", None)),
        ("models--ab--Cd-7b/snapshots/0f1e", None, ("ab/Cd-7b", "ab/Cd-7b")),
        (None, "/scratch/someone/llama", ("llama (a local folder)", None)),
        (None, None, ("not stated", None)),
        ("my-llama", "ab/Cd-7b", ("ab/Cd-7b", "ab/Cd-7b")),
    ],
)
def test_the_origin_is_what_is_known_and_never_made_up(
    tmp_path: Path, base_dir: str | None, name: str | None, expected: tuple[str, str | None]
) -> None:
    assert base_shown(card(tmp_path, ExportConfig(), "", name, base_dir)) == expected


def test_the_base_of_the_base_is_not_the_base(tmp_path: Path) -> None:
    text = card(tmp_path, ExportConfig(), "---\nbase_model: ab/Cd-7b\n---\n")
    assert base_shown(text) == ("base (a local folder), whose own base is ab/Cd-7b", None)


def test_a_base_made_in_the_experiment_is_said_to_be_from_scratch(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    Manifest(
        stage="base", key="", key_parts={}, config=None, inputs={}, outputs={}, digest="", versions={},
        git_revision=None, counts={}, metrics={}, started="", seconds=0,
    ).save(tmp_path / "base")  # fmt: skip
    assert (
        base_shown(card(tmp_path, ExportConfig()))[0]
        == "none: trained from random weights in this experiment"
    )
