"""What trains in a phase, and how fast: whole parameters, or rows of the vocabulary matrices.

The gradient of what does not train is zero (so it counts neither in the gradient norm nor in the
moments), and after the optimizer's step frozen values are put back as they were, bit for bit: weight
decay would move them otherwise. Rows with a learning-rate multiplier m move by m times the step.

The distributed optimizer holds a flat slice of every parameter; rows are found in it by their offset.
The plain one holds it whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from torch import Tensor

from tsugiki.pretrain.model.trainable import Selection

INPUT_NAME = "embedding.word_embeddings.weight"
OUTPUT_NAME = "output_layer.weight"
_FINAL_NORM = "decoder.final_layernorm.weight"
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class _Rule:
    """How a slice of a parameter moves: `factor` times the optimizer's step."""

    parameter: Tensor  # the optimizer's own tensor
    start: int
    end: int
    factor: float


class RowControl:
    """Applies a selection to the optimizer's steps.

    Args:
        optimizer: Megatron optimizer, or a chain of them.
        models: model chunks, not wrapped.
        layers: transformer layers of the whole model.
        new_rows: first and end row that the extension added.
        multiplier: learning-rate factor of the new rows.
        tied: the input matrix is also the output matrix.
    """

    def __init__(
        self,
        optimizer: Any,
        models: list[Any],
        layers: int,
        new_rows: tuple[int, int],
        multiplier: float,
        tied: bool,
    ) -> None:
        self._layers, self._new_rows, self._multiplier, self._tied = layers, new_rows, multiplier, tied
        self._places = list(optimizer_places(optimizer, models))
        self._rules: list[_Rule] = []
        self._saved: list[tuple[_Rule, Tensor]] = []

    def select(self, selectors: tuple[str, ...]) -> None:
        """Train this from now on."""
        selection = Selection.parse(selectors, self._layers)
        self._rules = [
            rule for place in self._places for rule in self._rules_of(place, selection) if rule.factor != 1
        ]

    def _rules_of(self, place: Place, selection: Selection) -> Iterator[_Rule]:
        size = place.parameter.numel()
        whole = float(selection.everything)
        if place.name in (INPUT_NAME, OUTPUT_NAME):
            first, end = (place.element_of_row(row) for row in self._new_rows)
            old = whole or float(selection.embeddings)
            chosen = selection.new_input if place.name == INPUT_NAME else selection.new_output
            if self._tied:
                chosen = selection.new_input or selection.new_output
            new = self._multiplier * max(old, float(chosen))
            yield from (
                _Rule(place.parameter, start, stop, factor)
                for start, stop, factor in ((0, first, old), (first, end, new), (end, size, old))
                if stop > start
            )
            return
        if place.layer is not None:
            whole = whole or float(place.layer in selection.layers)
        elif place.name == _FINAL_NORM:
            whole = whole or float(selection.final_norm)
        yield _Rule(place.parameter, 0, size, whole)

    def mask_gradients(self) -> None:
        """Forget the gradients of what is frozen; before the gradient norm is taken."""
        for rule in self._rules:
            if rule.factor == 0 and rule.parameter.grad is not None:
                rule.parameter.grad.view(-1)[rule.start : rule.end].zero_()

    def before_step(self) -> None:
        """Remember what must not move freely."""
        self._saved = [
            (rule, rule.parameter.detach().view(-1)[rule.start : rule.end].clone()) for rule in self._rules
        ]

    def after_step(self) -> None:
        """Put frozen values back, shorten or lengthen the step of the others."""
        with torch.no_grad():
            for rule, before in self._saved:
                values = rule.parameter.view(-1)[rule.start : rule.end]
                if rule.factor == 0:
                    values.copy_(before)
                else:
                    values.sub_(before).mul_(rule.factor).add_(before)
        self._saved = []


@dataclass(frozen=True)
class Place:
    """A parameter's slice in this rank's optimizer: a part of it where the optimizer is distributed."""

    name: str
    layer: int | None
    parameter: Tensor
    offset: int  # first element of the slice in the rank's whole parameter
    first_row: int  # vocabulary row of the rank's first row
    row_size: int

    def element_of_row(self, row: int) -> int:
        """Where a vocabulary row starts in the slice, cut to the slice."""
        element = (row - self.first_row) * self.row_size - self.offset
        return min(max(element, 0), self.parameter.numel())


def optimizer_places(optimizer: Any, models: list[Any]) -> Iterator[Place]:
    """Where every parameter of the model chunks is in a Megatron optimizer or a chain of them."""
    names = {}
    for model in models:
        for name, parameter in model.named_parameters():
            match = _LAYER.match(name)
            layer = model.decoder.layers[int(match[1])].layer_number - 1 if match else None
            names[parameter] = (name, layer)
    tensor_rank = parallel_state.get_tensor_model_parallel_rank()

    def place(parameter: Tensor, own: Tensor, offset: int) -> Place:
        name, layer = names[parameter]
        vocabulary = name in (INPUT_NAME, OUTPUT_NAME)
        return Place(
            name=name,
            layer=layer,
            parameter=own,
            offset=offset,
            first_row=tensor_rank * parameter.shape[0] if vocabulary else 0,
            row_size=parameter.shape[1] if vocabulary else 1,
        )

    for item in getattr(optimizer, "chained_optimizers", [optimizer]):
        slices = getattr(item, "model_param_group_index_map", None)
        if slices is not None:
            for parameter, (group, order) in slices.items():
                own = item.optimizer.param_groups[group]["params"][order]
                yield place(parameter, own, item._get_model_param_range_map(parameter)["param"].start)
            continue
        held = {id(own) for group in item.optimizer.param_groups for own in group["params"]}
        for parameter in names:
            own = getattr(parameter, "main_param", parameter)
            if id(own) in held:
                yield place(parameter, own, 0)
