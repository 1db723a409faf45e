"""Whether the weights of a base are numbers: one NaN in a row spreads over the model with the first step.

The rows are read for this alone, since a plain copy stays inside the kernel; the copy then finds them in the page
cache.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tsugiki.experiment.errors import CheckpointError
from tsugiki.pretrain.formats.hf_tensor import HfTensor
from tsugiki.pretrain.formats.safetensors_files import torch_dtype

if TYPE_CHECKING:
    import torch

    from tsugiki.pretrain.conversion.hf_checkpoint import HfCheckpoint

_READ_BYTES = 4 << 20


def require_finite_rows(source: HfCheckpoint, name: str, row: int, count: int) -> None:
    """Read rows of a tensor of the base and check them, a few megabytes at a time.

    Args:
        source: the base.
        name: of the tensor, in the table.
        row: first row.
        count: rows.

    Raises:
        CheckpointError: one holds NaN or an infinity; names file, tensor and row.
    """
    entry = source.entry(name)
    step = max(1, _READ_BYTES // max(entry.row_bytes, 1))
    for start in range(row, row + count, step):
        require_finite(source.read(name, start, min(start + step, row + count)), entry, start)


def require_finite(rows: torch.Tensor, entry: HfTensor, first: int) -> None:
    """Check rows of ``entry`` from row ``first`` on; rows of another type are what theirs became.

    Raises:
        CheckpointError: as :func:`require_finite_rows`; or a number is too large for the type asked for.
    """
    import torch

    # Infinities are extremes, and NaN is both extremes of what it is among. One core reads bf16 so at 18 GB/s,
    # with isfinite on every number at 0.4.
    if all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(rows)).tolist()):
        return
    per_row = torch.isfinite(rows.reshape(rows.shape[0], -1)).all(dim=1)
    bad = torch.nonzero(~per_row).flatten().tolist()
    values = rows[bad[0]].flatten()
    column = int(torch.nonzero(~torch.isfinite(values))[0])
    converted = rows.dtype != torch_dtype(entry.dtype)
    raise CheckpointError(
        f"a weight is too large for {rows.dtype}" if converted else "a weight of the base is not a finite number",
        where=f"{entry.file}: {entry.name}, row {first + bad[0]}",
        got=f"{values[column].item()} in column {column}; {len(bad)} such rows of {rows.shape[0]} looked at",
        expected="finite numbers",
        fix="keep the type of the base (graft.dtype)" if converted
        else "download the file again; if it is the same, use another release of this model",
    )  # fmt: skip
