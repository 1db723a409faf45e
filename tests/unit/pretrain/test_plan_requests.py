"""`tsugiki plan`: parameter counts, work, fitting and proposals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.config import BaseConfig, ParallelConfig, ScratchConfig, TrainConfig
from tsugiki.pretrain.planning.described import course
from tsugiki.pretrain.planning.flops import GPUS, find_gpu, training_work
from tsugiki.pretrain.planning.layouts import Machine, proposals
from tsugiki.pretrain.planning.memory import TORCH_KERNELS
from tsugiki.pretrain.planning.plan import Plan, base_spec, extended_rows, make_plan
from tsugiki.pretrain.planning.problems import layout_problems
from tsugiki.tokenizer.config import ExtendConfig

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "configs" / "models"
A100 = Machine(GPUS["a100-40gb"])


def model(name: str) -> ModelSpec:
    return ModelSpec.from_hf(MODELS / f"{name}.json")


def plan(name: str, train: TrainConfig, rows: int = 0, **options: Any) -> Plan:
    base = BaseConfig(path="models/absent", architecture=f"configs/models/{name}.json")
    extension = ExtendConfig(size=rows, languages={"ja": 1.0}, multiple_of=8) if rows else None
    options.setdefault("machine", A100)
    return make_plan(
        name=name, base=base, extension=extension, total_tokens=104_857_600_000, train=train, **options
    )


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.json")), ids=lambda path: path.stem)
def test_parameters_are_those_of_the_hugging_face_class(path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads(path.read_text())
    for rows in (config["vocab_size"], config["vocab_size"] + 11_176):
        hf_config = AutoConfig.for_model(**{**config, "vocab_size": rows})
        with torch.device("meta"):
            reference = AutoModelForCausalLM.from_config(hf_config)
        spec = ModelSpec.from_hf(path).model_copy(update={"vocabulary_size": rows})
        assert spec.parameters == reference.num_parameters()


def test_vocabulary_of_the_published_models() -> None:
    swallow = ExtendConfig(size=11_176, languages={"ja": 1.0}, multiple_of=8)
    assert extended_rows(32_000, swallow) == (43_176, "")
    seallm = ExtendConfig(size=16_384, languages={"th": 1.0})
    assert extended_rows(32_000, seallm)[0] == 48_384
    wide = ExtendConfig(size=11_176, languages={"ja": 1.0}, multiple_of=8, tensor_parallel=8)
    assert extended_rows(32_000, wide)[0] == 43_200  # 675 x 64
    assert extended_rows(256_000, None) == (256_000, "")


def test_automatic_size_is_planned_at_its_maximum_until_it_is_known(tmp_path: Path) -> None:
    automatic = ExtendConfig(size="auto", languages={"ja": 1.0})
    rows, note = extended_rows(32_000, automatic, tmp_path)
    assert rows == 32_000 + 65_536
    assert "maximum" in note
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "pieces.tsv").write_text("id\tpiece\n32000\ta\n32001\tb\n")
    assert extended_rows(32_000, automatic, tmp_path)[0] == 32_002


def test_base_that_is_not_here_needs_its_architecture() -> None:
    with pytest.raises(ConfigError, match=r"base\.architecture"):
        base_spec(BaseConfig(path="models/absent"))
    with pytest.raises(ConfigError, match=r"llama-2-7b\.json"):
        base_spec(BaseConfig(path="models/absent", architecture="configs/models/nothing.json"))
    with pytest.raises(ConfigError, match="TSUGIKI_ABSENT"):
        base_spec(BaseConfig(path="$TSUGIKI_ABSENT/llama"))


def test_base_that_is_here_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((MODELS / "gemma-7b.json").read_text())
    spec, notes = base_spec(BaseConfig(path=str(tmp_path), architecture="configs/models/llama-2-7b.json"))
    assert spec == model("gemma-7b")
    assert notes == []


def test_scratch_describes_itself() -> None:
    spec, _ = base_spec(BaseConfig(scratch=ScratchConfig(hidden_size=64, layers=2)))
    assert (spec.layers, spec.hidden_size, spec.vocabulary_size) == (2, 64, 32_000)
    with pytest.raises(ValueError, match="scratch describes itself"):
        BaseConfig(scratch=ScratchConfig(), architecture="configs/models/llama-2-7b.json")


def test_steps_time_and_storage() -> None:
    train = TrainConfig(save_interval_steps=500, keep_last_checkpoints=2)
    work = training_work(model("llama-2-7b"), train, 104_857_600_001, GPUS["h100"], 0.5, 16)
    assert (work.steps, work.tokens) == (25_000, 104_857_600_000)
    assert work.gpu_hours == pytest.approx(work.flops / (989e12 * 0.5) / 3600)
    assert work.hours == pytest.approx(work.gpu_hours / 16)
    assert work.checkpoint_bytes == 14 * 6_738_415_616
    # Two kept, one being written, the grafted start and the export in bf16.
    assert work.storage_bytes == 3 * work.checkpoint_bytes + 4 * 6_738_415_616
    full = training_work(
        model("llama-2-7b"), train.model_copy(update={"recompute": "full"}), 10**11, GPUS["h100"], 0.5, 16
    )
    plain = training_work(model("llama-2-7b"), train, 10**11, GPUS["h100"], 0.5, 16)
    assert full.hours == pytest.approx(plain.hours * 4 / 3)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"kind": "cosine", "warmup_tokens": 64}, "cosine, peak 0.0001, warm-up until 64, down to 1e-05 until 640"),
        ({"kind": "constant"}, "constant, peak 0.0001, constant until 640"),
        ({"kind": "wsd", "decay_tokens": 100, "decay_shape": "1-sqrt"},
         "wsd, peak 0.0001, constant until 540, decay (1-sqrt) to 1e-05 until 640"),
        ({"kind": "infinite", "warmup_tokens": 64, "constant_learning_rate": 3e-5},
         "infinite, peak 0.0001, warm-up until 64, down to 3e-05 until 128, constant until 640"),
        ({"kind": "cooldown"}, "cooldown, peak 0.0001, decay (linear) to 1e-05 until 640"),
    ],
)  # fmt: skip
def test_the_course_of_a_training(schedule: dict[str, Any], said: str) -> None:
    """10 steps of 64 tokens and 10 tokens more."""
    train = TrainConfig.model_validate({"sequence_length": 16, "global_batch": 4, "schedule": schedule})
    assert course(train, 650) == [said]


def test_the_plan_says_where_a_training_begins_and_when_its_mixture_changes() -> None:
    train = TrainConfig(continue_from="runs/a@25", continue_moments=False)
    made = plan("llama-2-7b", train, mixture_changes=[10_000_000])
    assert (
        "  course       continues runs/a@25, without its moments, what was read comes last\n"
        in made.to_text()
    )
    assert "               the mixture changes at 10,000,000 tokens, with step 4\n" in made.to_text()
    assert len(made.to_json()["course"]) == 3


def test_swallow_7b_fits_the_gpus_it_was_trained_on() -> None:
    train = TrainConfig(
        parallel=ParallelConfig(tensor=2, pipeline=2, data=4, sequence=True), recompute="selective"
    )
    found = plan("llama-2-7b", train, 11_176)
    assert found.fits
    assert found.world_size == 16
    assert found.proposals == []
    report = found.to_json()
    assert report["parameters"] == 6_738_415_616 + 2 * 11_176 * 4096
    assert len(report["gpu_memory_bytes"]) == 2
    # The first stage holds twice the micro-batches, the last one the logits.
    assert report["gpu_memory"][0]["activations"] > report["gpu_memory"][1]["activations"]
    assert report["gpu_memory"][0]["logits"] == 0 < report["gpu_memory"][1]["logits"]


def test_one_gpu_is_too_small_and_the_proposals_fit() -> None:
    found = plan("llama-2-7b", TrainConfig(), 11_176)
    assert not found.fits
    assert found.proposals
    times = [item.relative_time for item in found.proposals]
    assert times == sorted(times)
    for item in found.proposals:
        assert max(item.gpu_memory_bytes) <= A100.usable_bytes
        parallel = item.train.parallel
        assert parallel.model_processes * (parallel.data or 0) == item.world_size
        again = plan("llama-2-7b", item.train, 11_176)
        assert again.fits
        assert again.to_json()["gpu_memory_bytes"] == item.gpu_memory_bytes


def test_proposals_keep_the_number_of_gpus_when_they_can() -> None:
    train = TrainConfig(parallel=ParallelConfig(data=16))
    found = proposals(model("llama-2-7b"), train, 16, A100, TORCH_KERNELS)
    assert {item.world_size for item in found} == {16}


def test_a_layout_that_cannot_run_says_why() -> None:
    train = TrainConfig(parallel=ParallelConfig(tensor=16, pipeline=3), global_batch=1023)
    problems = [str(item) for item in layout_problems(train, model("llama-2-70b"), 2)]
    assert len(problems) == 3
    assert "tensor parallelism does not divide the model's 8 key/value heads" in problems[0]
    assert "pipeline parallelism does not divide the model's 80 layers" in problems[1]
    assert "not a whole number of passes: train.global_batch is 1023" in problems[2]
    found = plan("llama-2-70b", train.model_copy(update={"global_batch": 1024}))
    assert not found.fits
    assert "problem: tensor parallelism does not divide the model's 8 key/value heads" in found.to_text()
    assert found.proposals


def test_preference_tuning_has_a_reference_to_read() -> None:
    """A third of a step's arithmetic (forward of forward and backward), and no memory of its own in training."""
    sizes = {"sequence_length": 2048, "global_batch": 64}
    tuned = plan("llama-2-7b", TrainConfig(objective="dpo", **sizes))
    plain = plan("llama-2-7b", TrainConfig(**sizes))
    assert f"at most {plain.work.flops / 3:.3e} FLOP" in tuned.to_text()
    assert len(tuned.notes) == len(plain.notes) + 1
    assert tuned.stages == plain.stages
    assert "stage reference" not in plan("llama-2-7b", TrainConfig(objective="simpo", **sizes)).to_text()


def test_number_of_gpus() -> None:
    train = TrainConfig(parallel=ParallelConfig(tensor=2, pipeline=2, sequence=True))
    assert plan("llama-2-7b", train, world_size=32).data_parallel_size == 8
    with pytest.raises(ConfigError, match="multiple of tensor x pipeline x context = 4"):
        plan("llama-2-7b", train, world_size=6)
    with pytest.raises(ConfigError, match="h100"):
        find_gpu("gtx1080")


@pytest.mark.slow
def test_command_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tsugiki", "plan", *arguments], cwd=ROOT, capture_output=True, text=True
        )

    for config in ("configs/quickstart.yaml", "configs/smoke.yaml", "configs/recipes/swallow-70b.yaml"):
        done = run(config, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        wanted = ("parameters", "base_parameters", "vocabulary_size", "tokens", "steps", "world_size", "fits")
        assert all(key in report for key in wanted)
        assert isinstance(report["gpu_memory_bytes"], list)
        assert report["fits"] is True
    text = run("configs/recipes/swallow-70b.yaml", "--gpu", "a100-40gb").stdout
    assert "69,159,755,776" in text
    assert "256 GPUs" in text
    assert "8,533 tokens/s a GPU" in run("configs/recipes/swallow-7b.yaml").stdout  # 3,413.3 GPU-hours
    # A layout that `run` refuses is planned, with layouts that would do.
    done = run("configs/recipes/swallow-7b.yaml", "--set", "train.parallel.pipeline=5")
    assert done.returncode == 0, done.stderr
    assert "CANNOT RUN" in done.stdout and "the model's 32 layers" in done.stdout
    assert "layouts that fit, best first" in done.stdout
    assert run("configs/quickstart.yaml", "--gpu", "abacus").returncode == 2


def test_price() -> None:
    from typer.testing import CliRunner

    from tsugiki.cli.main import app

    made = json.loads(CliRunner().invoke(app, ["plan", "swallow-7b", "--price", "2.5", "--json"]).stdout)
    assert made["cost"] == pytest.approx(2.5 * made["gpu_hours"])
    assert "at 2.5 a GPU-hour" in CliRunner().invoke(app, ["plan", "swallow-7b", "--price", "2.5"]).stdout
    assert "cost" not in json.loads(CliRunner().invoke(app, ["plan", "swallow-7b", "--json"]).stdout)
