"""The distributed optimizer in a checkpoint: every rank's own part of whole tensors, nothing gathered.

Megatron's distributed optimizer gives each data-parallel rank a stretch of a flat buffer, which cuts parameters
anywhere. Its layout-free form (`fully_reshardable`) gathers the buffer on every rank to save whole tensors, and reads
them whole to keep a stretch; its `dp_reshardable` saves stretches, which only an equal layout can read; and
`fully_sharded_model_space`, which described stretches within tensors, is no longer accepted.

A stretch of a row-major tensor is at most a piece of a row, whole rows and a piece of a row (recursively in more axes),
and torch.distributed.checkpoint stores and reads any box of a tensor. So this writes the layout-free form, same keys
and shapes, in boxes: the tensors of the optimizer are written as they lie, and read to where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

_PREFIX = "optimizer.state"


class Box(NamedTuple):
    """An axis-aligned part of a tensor, contiguous in it.

    Attributes:
        offset: of its first element, along each axis.
        shape: elements along each axis.
        start: of its first element, in the tensor laid out row by row.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The elements start..stop of a tensor laid out row by row, as boxes in that order.

    Args:
        shape: of the tensor.
        start: first element.
        stop: behind the last one.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield Box((start,), (stop - start,), start)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows
    if first > last:
        yield from _within(shape, first - 1, start, stop)
        return
    yield from _within(shape, first - 1, start, first * row)
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]), first * row)
    yield from _within(shape, last, last * row, stop)


def _within(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Box]:
    """The same of elements that lie in one row."""
    begin = index * math.prod(shape[1:])
    for box in boxes(shape[1:], start - begin, stop - begin):
        yield Box((index, *box.offset), (1, *box.shape), begin + box.start)


def save_own_parts(optimizer: Any) -> None:
    """Let a Megatron optimizer describe its own parts where it would gather whole tensors, and read them in place.

    Args:
        optimizer: of :func:`megatron.core.optimizer.get_megatron_optimizer`; a plain one stays as it is.
    """
    for item in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not hasattr(item, "sharded_param_state_fully_reshardable"):
            continue

        def describe(model_state: Any, *_: Any, item: Any = item, **__: Any) -> dict[str, ShardedTensor]:
            return _own_parts(item, model_state)

        item.sharded_param_state_fully_reshardable = describe
        item.load_parameter_state_from_fully_reshardable = lambda _: None  # it was read to its place


def _own_parts(optimizer: Any, model_state: Any) -> dict[str, ShardedTensor]:
    described = {
        item.data: item
        for item in nested_values(model_state)
        if isinstance(item, (ShardedTensor, ShardedTensorFactory))
    }
    found = {}
    for buckets in (item for ranges in optimizer.gbuf_ranges for item in ranges.values()):
        for parameter, ranges in (item for bucket in buckets for item in bucket["param_map"].items()):
            stretch = ranges["param"]
            tensors = optimizer._get_main_param_and_optimizer_states(parameter)
            for whole in _wholes(described[parameter]):
                first = whole.data.storage_offset() - parameter.storage_offset()
                for name, tensor in tensors.items():
                    if name == "step":  # Megatron keeps it in the groups
                        continue
                    for part in _parts(whole, name, tensor.detach(), stretch.start - first):
                        found[f"{part.key} {part.global_offset}"] = part
    return found


def _wholes(described: Any) -> list[ShardedTensor]:
    """This rank's tensors of the checkpoint that a parameter consists of: views of it, row by row."""
    if isinstance(described, ShardedTensorFactory):  # gate and up projection are one parameter
        return list(nested_values({"parts": described.build()}))
    return [described]


def _parts(whole: ShardedTensor, name: str, stretch: Any, start: int) -> Iterator[ShardedTensor]:
    """Boxes of a stretch that lie in a tensor.

    Args:
        whole: the tensor, as the model saves it.
        name: of the optimizer's state.
        stretch: its elements on this rank, flat.
        start: where the stretch begins in the tensor; negative = before it.
    """
    shape = tuple(whole.data.shape)
    before = whole.prepend_axis_num
    for box in boxes(shape, max(start, 0), min(start + stretch.numel(), math.prod(shape))):
        local = (*(1 for _ in range(before)), *box.shape)
        inner = zip(whole.global_offset[before:], box.offset, strict=True)
        yield replace(
            whole,
            key=f"{_PREFIX}.{name}.{whole.key}",
            data=stretch[box.start - start :][: math.prod(box.shape)].view(local),
            dtype=stretch.dtype,
            local_shape=local,
            global_offset=(*whole.global_offset[:before], *(sum(pair) for pair in inner)),
            axis_fragmentations=None,
            prepend_axis_num=0,
            replica_id=(*whole.replica_id[:2], 0),  # no other data-parallel rank has it
        )
