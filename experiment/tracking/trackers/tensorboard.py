"""TensorBoard: event files in a folder a run, ``tensorboard/<experiment>/<stage>`` beside the run directories.

Metrics are scalars; parameters and tags, which event files do not know, are texts under their names. A line of
a curve is one record with a checksum, so what the files hold is read back from themselves when a run goes on,
and a record that a kill cut off is skipped.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.tracking.tracker import TRACKERS, Point, RunRequest, RunStatus, Tracker

_TEXT = "text"


class TensorboardOptions(StrictModel):
    """``tracking.options.tensorboard``."""

    directory: str | None = None
    """Folder of all runs; null is `tensorboard` beside the run directories."""


@TRACKERS.register("tensorboard")
class TensorboardTracker(Tracker):
    """One folder of event files; a run that goes on adds a file."""

    Options = TensorboardOptions
    library = "tensorboard"
    extra = "tensorboard"

    def __init__(self, root: Path, run_id: str) -> None:
        self.directory, self._run_id = root / run_id, run_id
        self.directory.mkdir(parents=True, exist_ok=True)
        self._steps: dict[str, int] = {}
        self._scalars: set[str] = set()
        self._texts: set[str] = set()
        for step, tags, is_text in _written(self.directory):
            (self._texts if is_text else self._scalars).update(tags)
            if not is_text:
                kind = tags[0].split("/")[0]
                self._steps[kind] = max(step, self._steps.get(kind, -1))

    @classmethod
    def open(cls, request: RunRequest) -> Self:
        """Open a folder, or the one of that id again."""
        options: TensorboardOptions = request.options
        root = (
            expand_path(options.directory)
            if options.directory
            else request.run_dir.resolve().parent / "tensorboard"
        )
        if request.run_id is not None:
            return cls(root, request.run_id)
        name = request.name if request.parent_run_id is None else f"{request.parent_run_id}/{request.name}"
        taken = (root / name).exists()
        numbered = (f"{name}-{number}" for number in range(2, 10_000))
        return cls(root, next(item for item in numbered if not (root / item).exists()) if taken else name)

    @property
    def run_id(self) -> str:
        """The folder's path below the folder of all runs, which is how TensorBoard calls it."""
        return self._run_id

    @functools.cached_property
    def _writer(self) -> Any:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        return EventFileWriter(str(self.directory))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Texts; keys the run already has are left alone."""
        self._write_texts({key: str(value) for key, value in params.items() if key not in self._texts})

    def send(self, points: Sequence[Point], logged: Mapping[str, int]) -> None:
        """One record a line."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for point in points:
            values = [
                Summary.Value(tag=key, simple_value=float(value)) for key, value in point.metrics.items()
            ]
            self._writer.add_event(
                Event(wall_time=point.milliseconds / 1000, step=point.step, summary=Summary(value=values))
            )
            self._scalars.update(point.metrics)
        self._writer.flush()

    def read_logged(self) -> Mapping[str, int]:
        """From the event files, read when the run was opened."""
        return self._steps

    def metric_names(self) -> Collection[str]:
        """Scalars."""
        return self._scalars

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A copy in ``artifacts``."""
        target = self.directory / "artifacts" / folder
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Texts; the last one counts."""
        self._write_texts(tags)

    def terminate(self, status: RunStatus) -> None:
        """Write the status and close the file."""
        self._write_texts({"status": status})
        self._writer.close()
        del self._writer  # a result that comes later opens another file

    def _write_texts(self, texts: Mapping[str, str]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING
        from tensorboard.plugins.text.metadata import create_summary_metadata

        if not texts:
            return
        values = [
            Summary.Value(
                tag=key,
                metadata=create_summary_metadata(display_name=key, description=""),
                tensor=TensorProto(dtype=DT_STRING, string_val=[value.encode()]),
            )
            for key, value in texts.items()
        ]
        self._writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=values)))
        self._writer.flush()
        self._texts.update(texts)


def _written(directory: Path) -> Iterator[tuple[int, list[str], bool]]:
    """Step, tags and whether they are texts, of every record that is there."""
    files = sorted(directory.glob("events.out.tfevents.*"))
    if not files:
        return
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            if values := list(event.summary.value):
                is_text = values[0].metadata.plugin_data.plugin_name == _TEXT
                yield event.step, [value.tag for value in values], is_text
