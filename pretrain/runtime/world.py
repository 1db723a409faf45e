"""Which of the processes of a job this one is, known without importing torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """Where this process runs.

    Attributes:
        rank: number of the process, from 0.
        size: number of processes.
        local_rank: number on this machine, the index of its GPU.
    """

    rank: int
    size: int
    local_rank: int

    @classmethod
    def from_environment(cls) -> World | None:
        """As torchrun or Slurm's srun describe it; None for a process that neither started."""
        environment = os.environ
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            return cls(rank, size, int(environment.get("LOCAL_RANK", rank)))
        if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_ID" in environment:
            return cls(
                int(environment["SLURM_PROCID"]),
                int(environment["SLURM_NTASKS"]),
                int(environment.get("SLURM_LOCALID", "0")),
            )
        return None
