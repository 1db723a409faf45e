"""datatrove steps that the nodes of the test Slurm import."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep


class Mark(PipelineStep):
    """Appends a line to a file of its rank and sleeps; rank `bad` fails until the file `repaired` exists."""

    name = "mark"
    type = "test"

    def __init__(self, folder: Path, bad: int, seconds: float = 0.0) -> None:
        super().__init__()
        self.folder, self.bad, self.seconds = folder, bad, seconds

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        with (self.folder / f"rank-{rank}").open("a") as file:
            file.write(f"{world_size}\n")
        if rank == self.bad and not (self.folder / "repaired").exists():
            raise ValueError("not yet")
        time.sleep(self.seconds)
        yield from ()
