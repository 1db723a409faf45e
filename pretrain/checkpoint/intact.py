"""What training reads, compared with its recorded sums by all ranks together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.run.sums import compare, file_sum, recorded_sums


def require_intact(files: Iterable[Path]) -> None:
    """Refuse files that are not what was recorded when they were written; every rank calls this.

    The files are divided among the ranks, largest first. Training reads tokens in random order, and the model's
    weights in slices of the layout, so their sums cannot be taken of the reading itself; each byte is read once by
    one rank of all.

    Raises:
        CheckpointError: on every rank, naming the first damaged file.
        OSError: one cannot be read.
    """
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    problem: Exception | None = None
    try:
        expected = recorded_sums(files)
        order = sorted(expected, key=lambda path: (-path.stat().st_size, path))
        for path in order[rank::size]:
            compare(path, expected[path], file_sum(path))
    except (CheckpointError, OSError) as error:
        problem = error
    problems: list[Any] = [None] * size
    torch.distributed.all_gather_object(problems, problem)
    if first := next((item for item in problems if item is not None), None):
        raise first
