"""What a checkpoint holds: model chunks and optimizer, as Megatron's sharded state dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.checkpoint.writer import Quiet, ShardedState, Shards, reason
from tsugiki.pretrain.formats.torch_dist_metadata import check_before_loading

_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}
_SCHEDULE_KEYS = ("max_lr", "min_lr", "start_wd", "end_wd")
_VOCABULARY_KEYS = ("embedding.word_embeddings.weight", "output_layer.weight")


class TrainingState:
    """The model chunks and the optimizer as one sharded state dictionary.

    Args:
        models: model chunks, not wrapped.
        optimizer: Megatron optimizer, or None for weights alone.
        vocabulary_size: true rows of the embedding.
    """

    def __init__(self, models: list[Any], optimizer: Any | None, vocabulary_size: int) -> None:
        self.models = models
        self.optimizer = optimizer
        self.vocabulary_size = vocabulary_size

    def _model_state(self) -> ShardedState:
        metadata = {
            **_FORMAT,
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        }
        parts = [model.sharded_state_dict(metadata=metadata) for model in self.models]
        keys = ["model"] if len(parts) == 1 else [f"model{number}" for number in range(len(parts))]
        return dict(zip(keys, parts, strict=True))

    def _optimizer_state(self, model_state: ShardedState, *, loading: bool) -> Any:
        assert self.optimizer is not None
        return self.optimizer.sharded_state_dict(model_state, is_loading=loading, metadata=dict(_FORMAT))

    def save(
        self, directory: Path, common: dict[str, Any], *, copy: bool = False, group: Any = None
    ) -> Callable[[], None]:
        """Take the state as it is now; every rank calls this, with an empty directory.

        Args:
            directory: of the checkpoint.
            common: what else to keep.
            copy: take a copy, so that training may go on before it is written.
            group: process group of the write.

        Returns:
            A function that writes it, which every rank calls.
        """
        state = self._model_state()
        if self.optimizer is not None:
            state["optimizer"] = self._optimizer_state(state, loading=False)
        state = _map_tensors(state, lambda tensor: _without_padding(tensor, self.vocabulary_size))
        state["common"] = common
        shards = Shards(copy=copy, group=group)
        with Quiet():
            dist_checkpointing.save(
                state, str(directory), shards, validate_access_integrity=False, content_metadata=_FORMAT
            )
        return shards.write

    def load(self, directory: Path, *, weights_only: bool = False) -> dict[str, Any]:
        """Read everything, or only the model; every rank calls this.

        Returns:
            What was saved as `common` (empty with weights_only).

        Raises:
            CheckpointError: missing, partial, corrupt or of another architecture.
        """
        check_before_loading(directory)
        state = self._model_state()
        if self.optimizer is not None and not weights_only:
            state["optimizer"] = self._optimizer_state(state, loading=True)
        if not weights_only:
            state["common"] = {}
        try:
            with Quiet():
                loaded = dist_checkpointing.load(state, str(directory), validate_access_integrity=False)
            for model, key in zip(
                self.models, [name for name in state if name.startswith("model")], strict=True
            ):
                model.load_state_dict(loaded[key], strict=True)
        except Exception as error:
            # Megatron and torch report a wrong checkpoint in a dozen ways (KeyError, pickle, shapes).
            raise CheckpointError(
                "cannot read a checkpoint",
                where=directory,
                got=f"{type(error).__name__}: {reason(error)}",
                expected="a torch_dist checkpoint of this architecture",
            ) from error
        if self.optimizer is not None and not weights_only:
            for state in _states_with_groups(loaded["optimizer"]):
                forget_schedule(state["param_groups"])
            self.optimizer.load_state_dict(loaded["optimizer"])
        return dict(loaded.get("common", {}))


def forget_schedule(groups: Iterable[dict[str, Any]]) -> None:
    """Take out of parameter groups what Megatron keeps there for its own scheduler.

    Rate and decay are set at every step here. Megatron 0.19 recognises groups by these values too, so that moments
    could not be read under another learning rate.
    """
    for group in groups:
        for name in _SCHEDULE_KEYS:
            group.pop(name, None)


def _states_with_groups(state: Any) -> Iterator[dict[str, Any]]:
    """Torch optimizers' states in that of Megatron's, which nests them in several ways."""
    if isinstance(state, dict):
        if "param_groups" in state:
            yield state
        else:
            for item in state.values():
                yield from _states_with_groups(item)


def _map_tensors(value: Any, change: Any) -> Any:
    if isinstance(value, ShardedTensor):
        return change(value)
    if isinstance(value, dict):
        mapped = {key: _map_tensors(item, change) for key, item in value.items()}
        return {key: item for key, item in mapped.items() if item is not None or value[key] is None}
    if isinstance(value, list):
        return [_map_tensors(item, change) for item in value]
    return value


def _without_padding(tensor: ShardedTensor, vocabulary_size: int) -> ShardedTensor | None:
    """The same tensor without the rows that only the running model has; None for a part of the optimizer that is
    nothing else."""
    if not tensor.key.endswith(_VOCABULARY_KEYS) or tensor.global_shape[0] <= vocabulary_size:
        return tensor
    first = tensor.global_offset[0]
    rows = min(tensor.local_shape[0], vocabulary_size - first)
    if rows <= 0 and tensor.key.startswith("optimizer."):
        return None
    if rows <= 0:
        raise CheckpointError(
            "the vocabulary is too small for the tensor parallelism: a rank would hold only padding",
            got=f"{vocabulary_size} rows",
        )
    return replace(
        tensor,
        data=None if tensor.data is None else tensor.data[:rows].contiguous(),
        local_shape=(rows, *tensor.local_shape[1:]),
        global_shape=(vocabulary_size, *tensor.global_shape[1:]),
        axis_fragmentations=None,
    )
