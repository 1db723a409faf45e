"""Megatron's side of the logits comparison: ``python -m tsugiki.pretrain.conversion.verify_megatron REQUEST.json``.

The request names a checkpoint, its architecture, token sequences, the types the tensors were
exported in, and the file that takes the logits: a list of [tokens, vocabulary] fp32 tensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.parent import die_with_parent
from tsugiki.pretrain.conversion.weights import merge, split, weight_table
from tsugiki.pretrain.runtime import megatron_cpu


def main(request_path: Path) -> None:
    """Compute the logits of one request."""
    request: dict[str, Any] = json.loads(request_path.read_text(encoding="utf-8"))
    spec = ModelSpec.model_validate(request["spec"])
    megatron_cpu.install()
    import torch

    from tsugiki.pretrain.checkpoint.state import TrainingState
    from tsugiki.pretrain.config import ParallelConfig
    from tsugiki.pretrain.model.gpt import build_model
    from tsugiki.pretrain.runtime.process_groups import initialise
    from tsugiki.pretrain.runtime.world import World

    parallel = ParallelConfig()
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    initialise(World(0, 1, 0), parallel, seed=0, store=store)
    models = build_model(spec, parallel, precision="fp32")
    TrainingState(list(models), None, spec.vocabulary_size).load(
        Path(request["checkpoint"]), weights_only=True
    )
    model = models[0].eval()
    _round(model, spec, request["dtypes"])
    logits = []
    with torch.inference_mode():
        for ids in request["sequences"]:
            tokens = torch.tensor([ids])
            positions = torch.arange(len(ids))[None]
            result = model(tokens, positions, None)  # [b, s, padded vocabulary]
            logits.append(result[0, :, : spec.vocabulary_size].float().cpu().clone())
    torch.save(logits, request["output"])


def _round(model: Any, spec: ModelSpec, dtypes: dict[str, str]) -> None:
    """Round the weights to the types they were exported in, as the other side sees them."""
    import torch

    from tsugiki.pretrain.conversion.verify import narrowed

    state = dict(model.named_parameters())
    for weight in weight_table(spec):
        for layer in weight.layers(spec):
            parameter = state[_parameter_name(weight.megatron, layer)]
            names = weight.names(layer)
            with torch.no_grad():
                if weight.vocabulary:
                    parameter.copy_(narrowed(parameter, dtypes[names[0]]))
                    continue
                parts = split(weight, parameter.data, spec)
                rounded = [narrowed(part, dtypes[name]) for part, name in zip(parts, names, strict=True)]
                parameter.copy_(merge(weight, rounded, spec))


def _parameter_name(key: str, layer: int) -> str:
    """Name of a parameter in the module tree from its key in the checkpoint."""
    norms = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    }
    stack = "decoder.layers."
    if not key.startswith(stack):
        return key
    rest = key.removeprefix(stack)
    return f"{stack}{layer}.{norms.get(rest, rest)}"


if __name__ == "__main__":
    die_with_parent()
    main(Path(sys.argv[1]))
