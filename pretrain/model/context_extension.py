"""Longer sequences than the base was made for: positions and rotary frequencies of the grafted model.

Weights do not change. What changes is written to ``model.json``, from which training builds the Megatron
model, and to the exported ``config.json``, from which transformers builds the same function.
"""

from __future__ import annotations

from typing import Any

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.convert_config import GraftConfig, RopeScalingConfig

# Llama 3.1's (its config.json).
_LOW_FREQUENCY_FACTOR = 1.0
_HIGH_FREQUENCY_FACTOR = 4.0


def extended_context(spec: ModelSpec, config: GraftConfig) -> ModelSpec:
    """The architecture with the positions and rotary frequencies that the graft section asks for.

    Args:
        spec: architecture of the base.
        config: the graft section.

    Raises:
        ConfigError: fewer positions than the base, or a scaling whose factor nothing says.
    """
    changes: dict[str, Any] = {}
    if config.max_positions is not None:
        if config.max_positions < spec.max_positions:
            raise ConfigError(
                "the grafted model would have fewer positions than the base",
                where="graft.max_positions",
                got=config.max_positions,
                expected=f"at least {spec.max_positions} (max_position_embeddings of the base)",
            )
        changes["max_positions"] = config.max_positions
    if config.rope_theta is not None:
        changes["rope_theta"] = config.rope_theta
    if config.rope_scaling is not None:
        changes["rope_scaling"] = _scaling(config.rope_scaling, spec, config.max_positions)
    return spec.model_copy(update=changes)


def _scaling(asked: RopeScalingConfig, spec: ModelSpec, max_positions: int | None) -> dict[str, Any]:
    """The scaling in transformers' terms."""
    before = spec.rope_scaling or {}
    original = asked.original_positions or before.get("original_max_position_embeddings", spec.max_positions)
    factor = asked.factor
    if factor is None:
        if max_positions is None:
            raise ConfigError(
                "how much to scale is not said",
                where="graft.rope_scaling.factor",
                expected="a factor, or graft.max_positions to derive it from",
            )
        factor = max_positions / original
    scaling: dict[str, Any] = {"rope_type": asked.type, "factor": float(factor)}
    if asked.type == "linear":
        return scaling
    scaling["original_max_position_embeddings"] = int(original)
    if asked.type == "llama3":
        scaling["low_freq_factor"] = asked.low_frequency_factor or _LOW_FREQUENCY_FACTOR
        scaling["high_freq_factor"] = asked.high_frequency_factor or _HIGH_FREQUENCY_FACTOR
        return scaling
    for name in ("beta_fast", "beta_slow", "attention_factor"):
        if getattr(asked, name) is not None:
            scaling[name] = getattr(asked, name)
    return scaling


def with_context(config: dict[str, Any], base: ModelSpec, spec: ModelSpec) -> dict[str, Any]:
    """A ``config.json`` with the positions and rotary frequencies of ``spec``, in the style it is written in.

    transformers 5 writes ``rope_parameters``; before it were ``rope_theta`` and ``rope_scaling``, which
    version 5 still reads.
    """
    changed = dict(config)
    if spec.max_positions != base.max_positions:
        changed["max_position_embeddings"] = spec.max_positions
    if (spec.rope_theta, spec.rope_scaling) == (base.rope_theta, base.rope_scaling):
        return changed
    scaling = spec.rope_scaling or {"rope_type": "default"}
    if "rope_parameters" in config:
        changed["rope_parameters"] = {**scaling, "rope_theta": spec.rope_theta}
    else:
        changed["rope_theta"] = spec.rope_theta
        changed["rope_scaling"] = spec.rope_scaling
    return changed
