"""Which backend a run gets: the choice alone, with packages that are only pretended to be there."""

import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tsugiki.experiment import accelerators
from tsugiki.experiment.errors import ConfigError
from tsugiki.pretrain.model import backend as backends
from tsugiki.pretrain.model.backend import CPU, REFERENCE, Acceleration, resolve

ENGINE = {"transformer_engine", "transformer_engine_torch"}
APEX = {"apex", "amp_C"}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    def pretend(*names: str) -> None:
        monkeypatch.setattr(accelerators, "_found", lambda name: name in names)

    return pretend


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        (set(), "torch"),
        (APEX, "apex"),
        (ENGINE, "transformer_engine"),
        (APEX | ENGINE, "transformer_engine"),
        ({"apex"}, "torch"),  # PyPI's unrelated project of that name
        ({"transformer_engine"}, "torch"),  # without its torch bindings
    ],
)
def test_auto_takes_the_best_that_is_installed(install, packages: set[str], expected: str) -> None:
    install(*packages)
    chosen = resolve("auto", precision="bf16", gpu=True)
    assert chosen == Acceleration(
        backend=expected, compile=True, fused_loss=True, accumulate=True, attention="fast"
    )


def test_a_tier_can_be_forced(install) -> None:
    install(*APEX, *ENGINE)
    for backend in ("torch", "apex", "transformer_engine"):
        assert resolve(backend, precision="bf16", gpu=True).backend == backend
    assert not resolve("torch", precision="bf16", gpu=True, compile=False).compile


@pytest.mark.parametrize("backend", ["apex", "transformer_engine"])
def test_a_forced_backend_that_is_missing_is_an_error(install, backend: str) -> None:
    install()
    with pytest.raises(ConfigError, match=r"(?s)not installed.*train.backend.*auto or torch.*environment.sh"):
        resolve(backend, precision="bf16", gpu=True)


def test_fp8(install) -> None:
    install(*ENGINE)
    assert resolve("auto", precision="fp8", gpu=True).fp8_recipe == "tensorwise"
    assert resolve("auto", precision="fp8", gpu=True, fp8_recipe="delayed").fp8_recipe == "delayed"
    with pytest.raises(ConfigError, match=r"(?s)fp8 with backend torch.*which is installed"):
        resolve("torch", precision="fp8", gpu=True)
    install(*APEX)
    with pytest.raises(ConfigError, match=r"(?s)fp8 with backend apex.*not installed.*bf16"):
        resolve("auto", precision="fp8", gpu=True)


def test_a_cpu_has_kernels_of_its_own_in_fp32(install) -> None:
    install(*APEX, *ENGINE)
    assert resolve("auto", precision="bf16", gpu=False) is REFERENCE
    assert resolve("torch", precision="fp32", gpu=False) is CPU
    with pytest.raises(ConfigError, match="needs a GPU"):
        resolve("apex", precision="bf16", gpu=False)
    with pytest.raises(ConfigError, match=r"(?s)fp8.*train.precision: bf16"):
        resolve("auto", precision="fp8", gpu=False)


@pytest.mark.parametrize(
    ("backend", "module"),
    [("apex", "apex.optimizers"), ("transformer_engine", "transformer_engine.pytorch.optimizers")],
)
def test_the_optimizer_is_the_backends(monkeypatch: pytest.MonkeyPatch, backend: str, module: str) -> None:
    """Megatron takes what can be imported; a forced backend overrides that."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:length]), types.ModuleType(parts[length - 1]))
    fused = type("FusedAdam", (torch.optim.Optimizer,), {})
    monkeypatch.setattr(sys.modules[module], "FusedAdam", fused, raising=False)
    assert backends._adam(backend) == (fused, False)
    assert backends._adam("torch") == (torch.optim.AdamW, True)


def test_gradient_accumulation_of_apex_where_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fused_weight_gradient_mlp_cuda"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(accelerators, "_found", lambda found: found == name)
    assert backends._gradient_accumulation("apex") is module
    assert backends._gradient_accumulation("torch") is not module  # torch's own product
    monkeypatch.setattr(accelerators, "_found", lambda _: False)
    assert backends._gradient_accumulation("apex").__name__ == "TorchGradientAccumulation"


def test_training_refuses_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsugiki.experiment.run.stage import StageContext
    from tsugiki.pretrain import train
    from tsugiki.pretrain.config import TrainConfig

    (tmp_path / "checkpoint").mkdir()
    monkeypatch.setattr(train.ModelSpec, "load", lambda _: None)
    monkeypatch.setattr(train.Mixture, "load", lambda _: SimpleNamespace(total_tokens=10**9, sources=[]))
    monkeypatch.setattr(train, "layout_problems", lambda *_, **__: [])
    with pytest.raises(ConfigError, match=r"train\.backend"):
        train.run(
            TrainConfig(backend="apex"),
            {"graft": tmp_path, "tokens": tmp_path},
            tmp_path / "out",
            StageContext(),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("packages", "gpu", "backend", "missing"),
    [
        (set(), False, "plain torch", {"transformer-engine", "apex"}),
        (set(), True, "torch: flash attention", {"transformer-engine", "apex"}),
        (APEX, True, "apex: its norms", {"transformer-engine", "apex"}),  # without its gradient accumulation
        (APEX | {"fused_weight_gradient_mlp_cuda"} | ENGINE, True, "transformer_engine: its linear", set()),
    ],
)
def test_doctor_says_what_is_active_and_how_to_get_the_rest(
    install, monkeypatch: pytest.MonkeyPatch, packages: set[str], gpu: bool, backend: str, missing: set[str]
) -> None:
    from tsugiki.experiment import doctor

    install(*packages)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    checks = doctor.accelerator()
    found = {check.name: check.detail for check in checks}
    assert found["backend"].startswith(backend)
    assert ("NVIDIA H200" in found["device"]) is gpu
    absent = [check for check in checks if check.state == "absent"]
    assert {check.name for check in absent} == missing
    assert all("slurm/environment.sh" in check.detail or "APEX_CUDA_EXT" in check.detail for check in absent)
