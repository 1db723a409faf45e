"""Recipes at tiny scale: every one keeps what makes it itself and runs from text to a Hugging Face model.

``TSUGIKI_TINY_RECIPES=swallow-7b,sus-chat-34b`` runs only these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training_case import forked

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pipeline import ExperimentConfig, load_experiment
from tsugiki.pretrain.planning.tiny import PROCESSES, STEPS, tiny_architecture, tiny_layout, write_tiny

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
CHOSEN = os.environ.get("TSUGIKI_TINY_RECIPES", "all")
BY_COMMAND = "swallow-7b"
RUN = [path.stem for path in RECIPES] if CHOSEN == "all" else CHOSEN.split(",")


@pytest.fixture
def recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[ExperimentConfig, ExperimentConfig]]:
    """Every recipe in full and tiny."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tsugiki.pretrain.planning.tiny.write_tiny_base", lambda *_, **__: None)
    found = {}
    for path in RECIPES:
        tiny = write_tiny(path, [f"run_dir={tmp_path / path.stem}"])
        found[path.stem] = (load_experiment(path).config, load_experiment(tiny).config)
    return found


def test_every_tiny_recipe_is_the_same_experiment(
    recipes: dict[str, tuple[ExperimentConfig, ExperimentConfig]],
) -> None:
    for name, (full, tiny) in recipes.items():
        assert tiny.name == f"{name}-tiny"
        same = [(item.name, item.language, item.kind) for item in full.corpus.sources]
        assert [(item.name, item.language, item.kind) for item in tiny.corpus.sources] == same
        assert tiny.tokens.mixture.weights == full.tokens.mixture.weights
        assert tiny.tokens.chat == full.tokens.chat, name
        for unchanged in ("optimizer", "precision", "recompute", "reset_attention_mask", "z_loss"):
            assert getattr(tiny.train, unchanged) == getattr(full.train, unchanged), (name, unchanged)
        assert tiny.train.schedule.kind == full.train.schedule.kind
        assert [phase.trains for phase in tiny.train.phases] == [phase.trains for phase in full.train.phases]
        assert (tiny.tokenizer.extend is None) == (full.tokenizer.extend is None)
        if full.tokenizer.extend is not None and tiny.tokenizer.extend is not None:
            assert tiny.tokenizer.extend.method == full.tokenizer.extend.method
            assert tiny.tokenizer.extend.languages == full.tokenizer.extend.languages
        assert tiny.graft.model_copy(update={"max_positions": full.graft.max_positions}) == full.graft
        steps = tiny.tokens.mixture.total_tokens // (tiny.train.global_batch * tiny.train.sequence_length)
        assert steps == STEPS


def test_layouts_shrink_to_four_processes(
    recipes: dict[str, tuple[ExperimentConfig, ExperimentConfig]],
) -> None:
    for name, (full, tiny) in recipes.items():
        large, small = full.train.parallel, tiny.train.parallel
        assert small.model_processes * (small.data or 1) == PROCESSES, name
        for axis in ("tensor", "pipeline", "context"):
            assert (getattr(large, axis) > 1) == (getattr(small, axis) > 1), (name, axis)
        assert small.sequence == large.sequence
    assert tiny_layout({"tensor": 8, "pipeline": 8, "data": 4})["data"] == 1
    assert tiny_layout({})["data"] == 4
    assert tiny_layout({"tensor": 2, "pipeline": 4, "virtual_pipeline": 5})["virtual_pipeline"] == 2


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "models").glob("*.json")), ids=lambda path: path.stem
)
def test_architectures_shrink_within_their_family(path: Path) -> None:
    full = ModelSpec.from_hf(path)
    tiny = ModelSpec.from_hf(tiny_architecture(json.loads(path.read_text())))
    for unchanged in (
        "family",
        "activation",
        "tied_embeddings",
        "rope_theta",
        "sliding_window",
        "norm_offset",
    ):
        assert getattr(tiny, unchanged) == getattr(full, unchanged)
    assert (tiny.queries_per_group > 1) == (full.queries_per_group > 1)
    assert (tiny.head_dim * tiny.heads > tiny.hidden_size) == (full.head_dim * full.heads > full.hidden_size)


def test_no_document_is_in_two_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tsugiki.pretrain.planning.tiny.write_tiny_base", lambda *_, **__: None)
    config = write_tiny(ROOT / "configs/recipes/swallow-7b.yaml", [f"run_dir={tmp_path / 'run'}"])
    seen: list[str] = []
    for file in sorted((config.parent / "text").iterdir()):
        lines = file.read_text(encoding="utf-8").splitlines()
        seen += [json.loads(line)["text"] for line in lines]
        assert len(lines) >= 10
    assert len(seen) == len(set(seen))


def test_a_recipe_that_does_not_say_what_its_base_is_like(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbase: {path: /models/mine}\ncorpus: {sources: []}\n")
    with pytest.raises(ConfigError, match=r"base\.architecture"):
        write_tiny(path, [f"run_dir={tmp_path / 'run'}"])


@pytest.mark.parametrize("name", RUN)
def test_a_recipe_runs_end_to_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages on four processes: vocabulary, training, export whose logits are those of the checkpoint.

    One of them by the command; the others in this process, whose libraries are loaded already.
    """
    overrides = [f"run_dir={tmp_path / name}", "tracking.enabled=false"]
    if name == BY_COMMAND:
        done = subprocess.run(
            [
                sys.executable, "-m", "tsugiki", "run", f"configs/recipes/{name}.yaml", "--scale", "tiny",
                "--set", overrides[0], "--set", overrides[1],
            ],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    else:
        monkeypatch.chdir(ROOT)
        with forked():
            load_experiment(write_tiny(ROOT / "configs" / "recipes" / f"{name}.yaml", overrides)).run()
    run_dir = tmp_path / f"{name}-tiny"
    config = load_experiment(tmp_path / f"{name}-tiny.inputs" / "config.yaml").config
    exported = json.loads((run_dir / "export" / "config.json").read_text())
    base = json.loads((tmp_path / f"{name}-tiny.inputs" / "base" / "config.json").read_text())
    assert exported["model_type"] == base["model_type"]
    carried = run_dir / "export" / "chat_template.jinja"
    chat = load_experiment(ROOT / "configs" / "recipes" / f"{name}.yaml").config.tokens.chat
    if chat is None:
        assert not carried.exists()
    else:
        assert carried.read_bytes() == (ROOT / chat.template).read_bytes()
    extend = config.tokenizer.extend
    if extend is None:
        assert exported["vocab_size"] == base["vocab_size"]
    else:
        assert 32_000 < exported["vocab_size"] <= 32_000 + 256
        assert exported["vocab_size"] % extend.multiple_of == 0
    if config.graft.max_positions is not None:
        # A base for half the positions that its training sequences have.
        assert (
            config.train.sequence_length == config.graft.max_positions == 2 * base["max_position_embeddings"]
        )
        assert exported["max_position_embeddings"] == config.graft.max_positions
    verified = json.loads((run_dir / "export" / "verify.json").read_text())
    assert verified["logits"]["max_difference"] < 1e-4
    latest = json.loads((run_dir / "train" / "checkpoints" / "latest.json").read_text())
    assert latest["iteration"] == STEPS
    results = json.loads((run_dir / "evaluate" / "results.json").read_text())
    languages = {source.language for source in config.corpus.sources if source.kind == "text"}
    assert set(results["result"]["bits_per_byte"]) == languages
    assert (run_dir / "report" / "index.html").is_file()
