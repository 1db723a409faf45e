"""`train.continue_from` before anything starts: found, part of the stage's key, refused by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tsugiki.experiment.errors import CheckpointError, ConfigError, TsugikiError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pipeline import Experiment, load_experiment, stages
from tsugiki.pretrain.config import TrainConfig
from tsugiki.pretrain.training.continuing import check_origin, find_origin

SPEC = ModelSpec(
    family="llama", layers=2, hidden_size=8, ffn_size=16, heads=2, kv_heads=1, head_dim=4, vocabulary_size=90,
    max_positions=64,
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with checkpoints of the steps 3 and 6, of which 6 was not finished."""
    run = tmp_path / "run"
    for step in (3, 6):
        (run / "train" / "checkpoints" / f"iter_{step:07d}").mkdir(parents=True)
    mark = run / "train" / "checkpoints" / "iter_0000003" / "checkpoint.json"
    mark.write_text(json.dumps({"iteration": 3, "precision": "fp32", "files": {}}))
    (run / "train" / "model.json").write_text(SPEC.model_dump_json())
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "pieces.tsv").write_text("a")
    return run


def refused(run: Path, step: int = 3, precision: str = "fp32", **spec: object) -> TsugikiError:
    setting = f"{run}@{step}"
    config = TrainConfig.model_validate({"continue_from": setting, "precision": precision})
    other = run.parent / "tokenizer"
    other.mkdir(exist_ok=True)
    (other / "pieces.tsv").write_text(str(spec.pop("pieces", "a")))
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        check_origin(find_origin(setting), config, SPEC.model_copy(update=spec), other)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 4}, r"no checkpoint of that step[\s\S]*one of the steps 3\n"),
        ({"step": 6}, r"is not finished[\s\S]*iter_0000006[\s\S]*one of the steps 3\n"),
        ({"vocabulary_size": 98}, r"another vocabulary[\s\S]*90 rows[\s\S]*98 rows"),
        ({"pieces": "b"}, r"another vocabulary[\s\S]*pieces\.tsv"),
        (
            {"layers": 4, "qkv_bias": True},
            r"another architecture[\s\S]*layers 2, qkv_bias False[\s\S]*layers 4",
        ),
        ({"precision": "bf16"}, r"moments [\s\S]*another precision[\s\S]*continue_moments: false"),
    ],
)
def test_what_cannot_be_continued(run: Path, changes: dict[str, object], message: str) -> None:

    said = str(refused(run, **changes))  # type: ignore[arg-type]
    assert re.search(message, said), said


def test_what_can_be_continued(run: Path) -> None:
    """At a longer context; with other precision, without moments."""
    config = TrainConfig(continue_from=f"{run}@3", precision="bf16", continue_moments=False)
    longer = SPEC.model_copy(update={"max_positions": 128, "rope_theta": 1e6})
    origin = find_origin(str(config.continue_from))
    check_origin(origin, config, longer, run / "tokenizer")
    assert (origin.step, origin.mark.name) == (3, "checkpoint.json")


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Experiment]:
    def load(**values: object) -> Experiment:
        return load_experiment("smoke", values={"run_dir": tmp_path / "mine", **values})

    return load


def test_the_checkpoint_is_part_of_the_key(load: Callable[..., Experiment], run: Path) -> None:
    """Not its place; a run that is not here is said, one that does not fit is refused by the dry run."""
    experiment = load(**{"train.continue_from": f"{run.parent}/elsewhere@3"})
    graph = experiment.graph()
    missing = experiment.missing_inputs(graph.select("train", "train"))
    assert [place for place, _ in missing] == [("train", "continue_from")]
    with pytest.raises(CheckpointError, match=r"another (architecture|vocabulary)"):
        load(**{"train.continue_from": f"{run}@3"})
    moved = experiment.config.train.model_copy(update={"continue_from": f"{run}@3"})
    train = next(
        stage
        for stage in stages(experiment.config.model_copy(update={"train": moved}))
        if stage.name == "train"
    )
    assert train.sources is not None
    assert train.sources() == {find_origin(f"{run}@3").mark: Path("continue_from")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train.continue_from": "runs/first"}, "continue_from"),
        ({"train.continue_moments": False}, "belong to continue_from"),
    ],
)
def test_wrong_in_itself(load: Callable[..., Experiment], values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**values)
