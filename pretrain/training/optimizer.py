"""Megatron's optimizer, stepped so that a bad gradient changes nothing."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from torch import Tensor

from tsugiki.pretrain.checkpoint.own_parts import save_own_parts
from tsugiki.pretrain.checkpoint.state import forget_schedule
from tsugiki.pretrain.config import OptimizerConfig
from tsugiki.pretrain.runtime.megatron_cpu import has_gpu
from tsugiki.pretrain.training.freeze import RowControl

_CLIP_EPSILON = 1e-6  # as in torch.nn.utils.clip_grad_norm_


def wrap_models(models: list[Any], *, distributed_optimizer: bool) -> list[DistributedDataParallel]:
    """The model chunks with gradient buffers in fp32, reduced over the data-parallel ranks."""
    wrapped = []
    for number, model in enumerate(models):
        config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=has_gpu(),
            use_distributed_optimizer=distributed_optimizer,
            check_for_nan_in_grad=False,  # the training loop looks at loss and gradient norm itself
        )
        for parameter in model.parameters():
            parameter.reduced_early = config.overlap_grad_reduce
        wrapped.append(
            DistributedDataParallel(
                config=model.config,
                ddp_config=config,
                module=model,
                disable_bucketing=number > 0,
            )
        )
    if not has_gpu() and parallel_state.get_data_parallel_world_size(with_context_parallel=True) == 1:
        _spare_exchange_with_itself(wrapped)
    return wrapped


def _spare_exchange_with_itself(wrapped: list[Any]) -> None:
    """gloo copies all gradients and all weights once a step where a rank exchanges them with itself alone."""

    def nothing(**_: Any) -> None:
        return None

    for model in wrapped:
        for group in model.bucket_groups:
            group.start_grad_sync = group.start_param_sync = nothing


def _gradients_of_norm(optimizer: Any) -> Any:
    """Megatron's function for this rank's gradients that count in the global norm, as 0.19 or 0.16 call it."""
    newer = getattr(optimizer, "get_grads_for_grad_norm", None)
    return newer or optimizer.get_main_grads_for_grad_norm


class Optimizer:
    """AdamW over the model chunks.

    Args:
        config: the optimizer section.
        models: wrapped model chunks.
        precision: of the model.
    """

    def __init__(self, config: OptimizerConfig, models: list[Any], precision: str) -> None:
        self.config = config
        half = precision != "fp32"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("megatron.core.optimizer").setLevel(logging.ERROR)
            self.megatron = get_megatron_optimizer(
                MegatronOptimizerConfig(
                    optimizer="adam",
                    lr=config.learning_rate,
                    weight_decay=config.weight_decay,
                    adam_beta1=config.betas[0],
                    adam_beta2=config.betas[1],
                    adam_eps=config.epsilon,
                    clip_grad=config.clip_grad_norm,
                    bf16=half,
                    params_dtype=torch.bfloat16 if half else torch.float32,
                    use_distributed_optimizer=config.distributed,
                ),
                models,
                use_gloo_process_groups=False,
            )
        self.rows: RowControl | None = None
        save_own_parts(self.megatron)
        self._spare_copies_onto_themselves()
        for optimizer in self.torch_optimizers():
            optimizer.register_load_state_dict_pre_hook(_as_the_optimizer_keeps_it)
            forget_schedule(optimizer.param_groups)
        self.prepare_state()

    def prepare_state(self) -> None:
        """Make the moments exist and be each parameter's own; at the start and after loading.

        Megatron can only load moments into torch's optimizer when it has some, and then lets all
        parameters share one step counter, which torch would count up once for each of them.
        """
        for optimizer in self.torch_optimizers():
            if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
                continue
            for group in optimizer.param_groups:
                # One pass over the moments instead of ten; torch has this kernel for CPU and GPU.
                group["foreach"], group["fused"] = False, True
                for parameter in group["params"]:
                    state = optimizer.state[parameter]
                    if not state:
                        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                        state["exp_avg"] = torch.zeros_like(parameter)
                        state["exp_avg_sq"] = torch.zeros_like(parameter)
                    state["step"] = state["step"].clone()

    def _spare_copies_onto_themselves(self) -> None:
        """In fp32 Adam's part of a weight is a view of it, and Megatron copies it to where it is."""
        for item in getattr(self.megatron, "chained_optimizers", [self.megatron]):
            if not hasattr(item, "shard_fp32_groups"):
                continue
            pairs = [
                (shard, model)
                for shards, models in (
                    (item.shard_fp32_groups, item.model_fp32_groups),
                    (item.shard_fp32_from_float16_groups, item.model_float16_groups),
                )
                for shard_group, model_group in zip(shards, models, strict=True)
                for shard, model in zip(shard_group, model_group, strict=True)
            ]
            if all(
                shard.untyped_storage().data_ptr() == model.untyped_storage().data_ptr()
                for shard, model in pairs
            ):
                item._copy_main_params_to_model_params = lambda: None

    def torch_optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers that do the arithmetic."""
        chained = getattr(self.megatron, "chained_optimizers", [self.megatron])
        return [item.optimizer for item in chained if getattr(item, "optimizer", None) is not None]

    def squared_norm(self) -> Tensor:
        """Make the reduced gradients ready; this rank's part of the square of their global norm, fp64.

        The parts of all ranks of the job add up to the square. The host waits for nothing.
        """
        self.megatron.prepare_grads()
        if self.rows is not None:
            self.rows.mask_gradients()
        gradients = [
            gradient
            for item in getattr(self.megatron, "chained_optimizers", [self.megatron])
            for gradient in _gradients_of_norm(item)()
        ]
        # A plain optimizer's gradients are the same on all data-parallel ranks; one of them counts.
        counts = (
            self.config.distributed or parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
        )
        if not (gradients and counts):
            return torch.zeros((), dtype=torch.float64, device=torch.cuda.current_device())
        return torch.nn.utils.get_total_norm(gradients).double().square()

    def step(self, learning_rate: float, gradient_norm: float) -> None:
        """Clip and update; :meth:`squared_norm` was called before.

        Args:
            learning_rate: of this step.
            gradient_norm: the global norm.
        """
        limit = self.config.clip_grad_norm
        factor = limit / (gradient_norm + _CLIP_EPSILON) if limit > 0 else 1.0
        for optimizer in self.torch_optimizers():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group.get("lr_mult", 1.0)
                group["weight_decay"] = self.config.weight_decay * group.get("wd_mult", 1.0)
                gradients = [item.grad for item in group["params"] if item.grad is not None]
                if factor < 1.0 and gradients:
                    torch._foreach_mul_(gradients, factor)
        self.megatron.step_with_ready_grads()

    def control_rows(self, rows: RowControl) -> None:
        """Let a phase decide what moves. Between torch's step and the copy to the model's weights."""
        self.rows = rows
        optimizers = self.torch_optimizers()
        if optimizers:
            optimizers[0].register_step_pre_hook(lambda *_: rows.before_step())
            optimizers[-1].register_step_post_hook(lambda *_: rows.after_step())

    def forget(self) -> None:
        """Zero the moments and take the model's weights as they are (after loading weights alone)."""
        for optimizer in self.torch_optimizers():
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, torch.Tensor):
                        value.zero_()
        self.megatron.reload_model_params()

    def zero_grad(self, models: list[Any]) -> None:
        """Forget the gradients."""
        for model in models:
            model.zero_grad_buffer()
        self.megatron.zero_grad()


def _as_the_optimizer_keeps_it(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A saved state for another implementation of Adam than the one that saved it.

    torch counts steps for every parameter, as a tensor of its state; FusedAdam of apex and transformer-engine once for
    a group, as an int, which their kernels insist on. Each also needs options in the groups that the other does not
    have (`bias_correction`, `fused`).

    Args:
        optimizer: that loads.
        saved: what :meth:`torch.optim.Optimizer.state_dict` gives, of any of them.
    """
    is_torch = isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))
    counts = [item["step"] for item in [*saved["state"].values(), *saved["param_groups"]] if "step" in item]
    groups = []
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        kept = {name: value for name, value in group.items() if name in own}
        groups.append({**{name: value for name, value in own.items() if name != "params"}, **kept})
        groups[-1].pop("step", None)
        if counts and not is_torch:
            groups[-1]["step"] = int(counts[0])
    states = {}
    for number, state in saved["state"].items():
        states[number] = {name: value for name, value in state.items() if name != "step"}
        if counts and is_torch:
            states[number]["step"] = torch.tensor(float(counts[0]))
    return {**saved, "state": states, "param_groups": groups}
