"""The section ``tracking``."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.tracking.tracker import tracker_class


class TrackingConfig(StrictModel):
    """Where runs are tracked. ``metrics.jsonl`` is written whatever stands here."""

    enabled: bool = True
    """False switches tracking off, as `trackers: [none]` does."""
    trackers: list[str] = Field(default=["mlflow"], min_length=1)
    """`mlflow`, `wandb`, `tensorboard`, `none`, or your own as `package.module:Class`; several at once."""
    uri: str | None = None
    """MLflow tracking URI; null is an SQLite file ``mlflow.db`` beside the run directories."""
    experiment: str = "tsugiki"
    """Name that runs are grouped under: experiment of MLflow, project of Weights & Biases."""
    options: dict[str, dict[str, Any]] = {}
    """Options of single trackers by their name, e.g. `{wandb: {entity: my-team}}`."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers: every tracker once, got {self.trackers}")
        for name in [*self.trackers, *self.options]:
            try:
                tracker_class(name).Options.model_validate(self.options.get(name, {}))
            except ValidationError as error:
                faults = "; ".join(
                    f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
                    for fault in error.errors()
                )
                raise ValueError(f"options.{name}: {faults}") from error
            except ConfigError as error:
                parts = [error.what, f"got {error.got}", f"expected {error.expected}"]
                raise ValueError("; ".join([*parts, *([str(error.fix)] if error.fix else [])])) from error
        return self

    @property
    def active(self) -> list[str]:
        """Names of the trackers that are written to."""
        return [name for name in self.trackers if name != "none"] if self.enabled else []
