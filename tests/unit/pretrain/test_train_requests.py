"""Wrong training requests, each as a user meets it: a YAML file, and a message that names what would do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pipeline import load_experiment
from tsugiki.pretrain.config import ParallelConfig, TrainConfig
from tsugiki.pretrain.planning.divisions import process_problems, refuse
from tsugiki.pretrain.planning.problems import layout_problems

SPEC = ModelSpec(
    family="llama", layers=6, hidden_size=48, ffn_size=96, heads=12, kv_heads=4, head_dim=4,
    vocabulary_size=1000, max_positions=64,
)  # fmt: skip
SCRATCH = {
    "layers": 6, "hidden_size": 48, "ffn_size": 96, "heads": 12, "kv_heads": 4, "max_positions": 64,
    "sequence_length": 64,
}  # fmt: skip
TOTAL_TOKENS = 5200
GOOD = {"sequence_length": 64, "micro_batch": 1, "global_batch": 8, "precision": "fp32"}

WRONG_IN_ITSELF = [
    ({"parallel": {"sequence": True}}, "needs tensor >= 2"),
    ({"parallel": {"virtual_pipeline": 2}}, "needs pipeline >= 2"),
    ({"parallel": {"tensor": 0}}, "greater than or equal to 1"),
    ({"parallel": {"tensr": 2}}, "did you mean 'tensor'?"),
    ({"parallel": {"tensor": "two"}}, "valid integer"),
    ({"micro_batch": 3}, "must be a multiple of micro_batch x parallel.data = 3"),
    ({"parallel": {"data": 3}}, "must be a multiple of micro_batch x parallel.data = 3"),
    ({"sequence_length": 66, "parallel": {"context": 2}}, "must be a multiple of 2 x parallel.context = 4"),
    ({"sequence_length": 63, "parallel": {"tensor": 2, "sequence": True}}, "multiple of parallel.tensor = 2"),
    ({"sequence_length": 4}, "greater than or equal to 8"),
    ({"global_batch": 0}, "greater than or equal to 1"),
    ({"precision": "fp16"}, "'fp32', 'bf16' or 'fp8'"),
    ({"optimizer": {"learning_rate": 0}}, "greater than 0"),
    ({"optimizer": {"learning_rate": 1e-5, "minimum_learning_rate": 1e-4}}, "exceeds learning_rate"),
    ({"optimizer": {"betas": [0.9, 1.0]}}, "betas must be in [0, 1)"),
    ({"optimizer": {"betas": [0.9]}}, "'train.optimizer.betas' is required"),
    ({"optimizer": {"clip_grad_norm": -1}}, "greater than or equal to 0"),
    ({"optimizer": {"new_rows_learning_rate_multiplier": 0}}, "greater than 0"),
    ({"deterministic": True, "precision": "fp8"}, "deterministic: true needs kernels that torch answers for"),
    ({"deterministic": True, "backend": "apex"}, "got backend: apex"),
    ({"straggler_factor": 1.0}, "greater than 1"),
    ({"profile": {"steps": [3, 2]}}, "1 <= first <= last, got [3, 2]"),
    ({"profile": {"steps": [0, 2]}}, "1 <= first <= last"),
    ({"profile": {"steps": [2]}}, "'train.profile.steps"),
    ({"profile": {"steps": [1, 2], "ranks": [0, 0]}}, "different processes, counted from 0, got [0, 0]"),
    ({"profile": {"steps": [1, 2], "ranks": []}}, "at least 1 item"),
    ({"deterministic": "very"}, "valid boolean"),
    ({"schedule": {"kind": "cosin"}}, "'cosine', 'linear', 'wsd', 'infinite', 'cooldown' or 'constant'"),
    ({"schedule": {"kind": "cosine", "decay_tokens": 5}}, "belongs to kind: wsd"),
    (
        {"schedule": {"kind": "linear", "decay_shape": "1-sqrt"}},
        "belongs to kind: wsd or infinite or cooldown",
    ),
    ({"schedule": {"kind": "wsd", "constant_learning_rate": 1e-5}}, "belongs to kind: infinite"),
    ({"schedule": {"kind": "cooldown", "warmup_tokens": 5}}, "cooldown begins at the peak"),
    ({"schedule": {"warmup_tokens": -1}}, "greater than or equal to 0"),
    (
        {"save_interval_steps": 10, "keep_checkpoints_every_steps": 15},
        "must be a multiple of save_interval_steps 10",
    ),
    ({"keep_last_checkpoints": 0}, "greater than or equal to 1"),
    ({"keep_checkpoints": 2}, "did you mean 'keep_last_checkpoints'?"),
    ({"milestone_interval_steps": 100}, "did you mean 'keep_checkpoints_every_steps'?"),
    ({"tier": "apex"}, "did you mean 'backend'?"),
    ({"recompute": "some"}, "'none', 'selective' or 'full'"),
    ({"recompute": "selective", "recompute_layers": 2}, "belongs to recompute: full"),
    ({"z_loss": -1}, "greater than or equal to 0"),
    ({"phases": [{"trains": ["all"]}, {"trains": ["all"]}]}, "every phase but the last needs until_tokens"),
    ({"phases": [{"trains": []}]}, "at least 1 item"),
    ({"phases": [{"until_tokens": 9}, {"until_tokens": 5}]}, "until_tokens must grow"),
    ({"anomalies": {"action": "ignore"}}, "'skip', 'rollback' or 'stop'"),
    ({"anomalies": {"spike_factor": 0.5}}, "greater than 1"),
    ({"watchdog_seconds": 0}, "greater than 0"),
    ({"anomalies": {"action": "rollback", "rollback_steps": 0}}, "greater than or equal to 1"),
    ({"asynchronous_checkpoints": "sometimes"}, "'auto'"),
    ({"peak_tflops": -1}, "peak_tflops must be positive"),
    ({"peak_tflops": "guessed"}, "'measured'"),
]

WRONG_FOR_THE_TOKENS = [
    # 10 steps of 512 tokens and 80 tokens more
    ({"profile": {"steps": [9, 11]}}, "steps to profile come after the training", "within 1 to 10"),
    ({"schedule": {"warmup_tokens": 5120}}, "warm-up is longer", "train.schedule.warmup_tokens"),
    (
        {"schedule": {"kind": "wsd", "decay_tokens": 5121}},
        "do not fit",
        "at most 5,120: phase train has 5,120 tokens",
    ),
    (
        {"schedule": {"kind": "wsd", "warmup_tokens": 1024, "decay_tokens": 4097}},
        "do not fit",
        "at most 4,096",
    ),
    (
        {
            "schedule": {
                "kind": "infinite",
                "warmup_tokens": 1024,
                "descent_tokens": 1024,
                "decay_tokens": 3073,
            }
        },
        "do not fit",
        "at most 3,072",
    ),
    (
        {"schedule": {"kind": "infinite", "constant_learning_rate": 1.1e-4}},
        "not between minimum and peak",
        "1e-05 to 0.0001",
    ),
    (
        {
            "schedule": {"kind": "cooldown", "decay_shape": "exponential"},
            "optimizer": {"minimum_learning_rate": 0.0},
        },
        "never reaches zero",
        "train.schedule.decay_shape",
    ),
    (
        {"phases": [{"until_tokens": 6000}, {}]},
        "a phase ends after the training",
        "train.phases.0.until_tokens",
    ),
    ({"phases": [{"until_tokens": 5201}]}, "a phase ends after", "tokens.mixture.total_tokens = 5,200"),
    ({"phases": [{"until_tokens": 5100}]}, "the last phase ends too early", "train.phases.0.until_tokens"),
    ({"phases": [{"until_tokens": 5120}, {}]}, "no step falls into phase phase-2", "5,120 to 5,120"),
    (
        {"phases": [{"until_tokens": 600}, {"until_tokens": 1000}, {}]},
        "no step falls into phase phase-2",
        "a multiple of global_batch x sequence_length = 512",
    ),
    (
        {"phases": [{"until_tokens": 1024, "schedule": {"warmup_tokens": 1025}}, {}]},
        "warm-up is longer",
        "train.phases.0.schedule.warmup_tokens",
    ),
    (
        {"phases": [{"until_tokens": 1024}, {}], "schedule": {"warmup_tokens": 2048}},
        "warm-up is longer",
        "less than the 1,024 tokens of phase phase-1",
    ),
]

WRONG_FOR_THE_MODEL = [
    (
        {"profile": {"steps": [1, 2], "ranks": [0, 4]}, "parallel": {"tensor": 2, "data": 2}},
        "a process to profile does not exist",
        "numbers from 0 to 3",
    ),
    ({"parallel": {"tensor": 5}}, "12 attention heads", "one of 1, 2, 4"),
    ({"parallel": {"tensor": 6}}, "4 key/value heads", "one of 1, 2, 4"),
    ({"parallel": {"pipeline": 4}}, "6 layers", "one of 1, 2, 3, 6"),
    ({"parallel": {"pipeline": 2, "virtual_pipeline": 2}}, "6 layers", "one of 1, 2, 3"),
    (
        {"parallel": {"pipeline": 2}, "recompute": "full", "recompute_layers": 4},
        "chunk of the model",
        "at most 3",
    ),
    (
        {"parallel": {"pipeline": 3, "virtual_pipeline": 2}},
        "groups of the pipeline's size",
        "multiple of pipeline = 3",
    ),
    ({"sequence_length": 128}, "sequences are longer than the model's positions", "at most 64"),
    ({"phases": [{"trains": ["layers:9"]}]}, "no such layer", "from -6 to 5"),
    ({"phases": [{"trains": ["embedings"]}]}, "no such part of the model", "embeddings"),
]


Loader = Callable[..., str]


@pytest.fixture
def message_of(tmp_path: Path) -> Loader:
    """Loads configs/smoke.yaml with another base and train section; the message, or "" when it is good."""

    def load(train: dict[str, object], base: dict[str, object] | None = None) -> str:
        smoke = yaml.safe_load(Path("configs/smoke.yaml").read_text())
        smoke["base"] = base if base is not None else {"scratch": SCRATCH}
        smoke["train"] = {**GOOD, **train}
        smoke["tokens"]["mixture"]["total_tokens"] = TOTAL_TOKENS
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(smoke))
        try:
            load_experiment(path)
        except ConfigError as error:
            return str(error)
        return ""

    return load


def test_the_good_one_passes(message_of: Loader) -> None:
    assert message_of({}) == ""


@pytest.mark.parametrize(("change", "message"), WRONG_IN_ITSELF)
def test_wrong_in_itself(message_of: Loader, change: dict[str, object], message: str) -> None:
    """With the file and the line where it stands."""
    said = message_of(change)
    assert message in said
    assert re.search(r"'train\b.*\n  where: +\S+/experiment\.yaml:\d+\n", said), said


@pytest.mark.parametrize(("change", "what", "choices"), [*WRONG_FOR_THE_MODEL, *WRONG_FOR_THE_TOKENS])
def test_wrong_for_the_model_or_the_tokens(
    message_of: Loader, change: dict[str, object], what: str, choices: str
) -> None:
    said = message_of(change)
    assert what in said and choices in said
    assert "  where:    train." in said


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": {"warmup_tokens": 5119}},
        {"schedule": {"kind": "wsd", "warmup_tokens": 1024, "decay_tokens": 4096}},
        {
            "schedule": {
                "kind": "infinite",
                "warmup_tokens": 1024,
                "descent_tokens": 1024,
                "decay_tokens": 3072,
            }
        },
        {"schedule": {"kind": "cooldown", "decay_shape": "exponential"}},
        {"phases": [{"until_tokens": 512}, {"until_tokens": 5200}]},
        {"phases": [{"until_tokens": 512}, {"until_tokens": 5120}]},
        {"phases": [{"until_tokens": 512}, {}], "schedule": {"warmup_tokens": 512}},
    ],
)
def test_schedules_that_just_fit(message_of: Loader, change: dict[str, object]) -> None:
    assert message_of(change) == ""


def test_a_batch_that_the_data_parallel_size_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"(?s)whole number of passes.*one of 1, 2, 4, 8"):
        refuse(layout_problems(TrainConfig.model_validate(GOOD), SPEC, 3))


@pytest.mark.parametrize(("data", "size"), [(2, 6), (None, 6), (None, 2)])
def test_a_world_that_does_not_fit(data: int | None, size: int) -> None:
    with pytest.raises(ConfigError, match=r"(?s)does not fit the processes.*fix:"):
        refuse(process_problems(ParallelConfig(tensor=4, data=data), size))


@pytest.mark.parametrize(
    ("scratch", "message"),
    [
        ({"hidden_size": 130}, "must be a multiple of heads"),
        ({"kv_heads": 5}, "must be a multiple of kv_heads"),
        ({"sequence_length": 512}, "exceeds max_positions"),
        ({"global_batch": 9, "processes": 2}, "must be a multiple of processes"),
        ({"micro_batch": 3}, "micro_batch x processes"),
        ({"hidden_size": 36, "heads": 12, "kv_heads": 4}, "must be even"),
    ],
)
def test_wrong_base(message_of: Loader, scratch: dict[str, object], message: str) -> None:
    assert message in message_of({}, {"scratch": {**SCRATCH, **scratch}})


def test_a_base_is_a_path_or_from_scratch(message_of: Loader) -> None:
    for both in ({}, {"path": "x", "scratch": SCRATCH}):
        assert "give either path" in message_of({}, both)
