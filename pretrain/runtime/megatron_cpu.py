"""Lets Megatron-core run on a machine without a GPU.

Megatron-core names `cuda` in its constructors, random state and type checks. :func:`install` answers
those calls with their CPU counterparts, so that tests and small runs use the real tensor, pipeline,
sequence and data parallelism over gloo. It does nothing where a GPU is present, and it must run
before anything of Megatron is imported. Call it in processes that train, not in a library user's.

What Megatron asks for (0.16.1 and 0.19.2), and what it gets:

- factories with `device="cuda"` (loss scale, token counts, gradient norm): the CPU;
- `torch.cuda.current_device()`: `torch.device("cpu")`; `.cuda()`: the tensor itself;
- streams, events and synchronisation: nothing;
- the CUDA random state: the CPU generator's;
- `Tensor.type()`, which the optimizers compare with `torch.cuda.FloatTensor`: that string;
- `torch.compile` as a decorator of fused element-wise functions, none of which is used here: the
  function itself. That also saves importing the compiler, half of Megatron's import time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tsugiki.experiment.errors import EnvironmentError_

_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "rand",
    "randn",
    "tensor",
    "zeros",
    "zeros_like",
)
_CPU = torch.device("cpu")
_installed = False


def has_gpu() -> bool:
    """Whether this machine trains on a GPU."""
    return torch.cuda.is_available()


def install() -> None:
    """Make Megatron-core importable and runnable here; once, and only without a GPU.

    Raises:
        EnvironmentError_: psutil is missing; without it Megatron's checkpoint writers die silently and
            `save` waits for them for ever.
    """
    global _installed
    if importlib.util.find_spec("psutil") is None:
        raise EnvironmentError_(
            "psutil is not installed; Megatron's checkpoint writers need it",
            fix="pip install psutil",
        )
    if has_gpu() or _installed:
        return
    _installed = True
    _patch_factories()
    _patch_tensor()
    _patch_cuda()
    with _without_compiler(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import megatron.core.tensor_parallel.random as megatron_random
    setattr(megatron_random, "_get_cuda_rng_state", _get_rng_state)  # noqa: B010
    setattr(megatron_random, "_set_cuda_rng_state", _set_rng_state)  # noqa: B010


def import_megatron() -> None:
    """Install the shim and import all of Megatron that training uses.

    A process that forks its ranks calls this first: importing takes seconds, forking does not.
    """
    install()
    # torch's optimizers import it on their first step; better once, before ranks are forked.
    import torch._dynamo  # noqa: F401

    with _without_compiler() if not has_gpu() else contextlib.nullcontext(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that apex and transformer-engine are absent: `doctor` says so
        import megatron.core.datasets.blended_megatron_dataset_builder
        import megatron.core.datasets.gpt_dataset
        import megatron.core.dist_checkpointing
        import megatron.core.distributed
        import megatron.core.models.gpt
        import megatron.core.models.gpt.gpt_layer_specs
        import megatron.core.optimizer
        import megatron.core.pipeline_parallel  # noqa: F401


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """While Megatron is imported, `torch.compile` returns its function unchanged."""
    original = torch.compile

    def unchanged(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        return functools.partial(unchanged, **options) if function is None else function

    torch.compile = unchanged  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = original


def _patch_factories() -> None:
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def on_cpu(*arguments: Any, **options: Any) -> Any:
        if "device" in options and _is_cuda(options["device"]):
            options["device"] = _CPU
        options.pop("pin_memory", None)
        return factory(*arguments, **options)

    return on_cpu


def _is_cuda(device: Any) -> bool:
    # A bare number is how Megatron names "my GPU".
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) or (isinstance(device, str) and device.startswith("cuda"))


def _patch_tensor() -> None:
    original_type = torch.Tensor.type

    def cuda(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return tensor

    def type_(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        answer = original_type(tensor, *arguments, **options)
        return answer.replace("torch.", "torch.cuda.") if isinstance(answer, str) else answer

    torch.Tensor.cuda = cuda  # type: ignore[method-assign, assignment]
    torch.Tensor.type = type_  # type: ignore[assignment, method-assign]
    torch.nn.Module.cuda = lambda module, *_: module  # type: ignore[method-assign]


class _Stream:
    """A stream on a machine where everything is in order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = 0

    def wait_stream(self, _: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, _: Any) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> Any:
        """The event itself."""
        return event if event is not None else _Event()

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _Event(_Stream):
    """An event that has always happened."""

    def record(self, *_: Any) -> None:
        """Nothing to record."""

    def wait(self, *_: Any) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """It has happened."""
        return True


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _patch_cuda() -> None:
    def nothing() -> Callable[..., None]:
        # One function each: the compiler, where something imports it, refuses one under two names.
        def do_nothing(*_: Any, **__: Any) -> None:
            return None

        return do_nothing

    def seed(value: int) -> None:
        # Not torch.manual_seed, which itself calls torch.cuda.manual_seed_all.
        torch.default_generator.manual_seed(int(value))

    replacements: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "set_device": nothing(),
        "synchronize": nothing(),
        "empty_cache": nothing(),
        "Stream": _Stream,
        "Event": _Event,
        "current_stream": lambda *_: _Stream(),
        "default_stream": lambda *_: _Stream(),
        "stream": lambda *_: contextlib.nullcontext(),
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
        "manual_seed": seed,
        "manual_seed_all": nothing(),
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, replacement)
