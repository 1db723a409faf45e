"""Configuration of traces."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tsugiki.experiment.config.strict import StrictModel


class ProfileConfig(StrictModel):
    """A trace of some steps, for Chrome or Perfetto."""

    steps: tuple[int, int]
    """First and last step, counted from 1 as in the log."""
    ranks: list[int] = Field(default=[0], min_length=1)
    """Processes that write a trace each."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        first, last = self.steps
        if not 1 <= first <= last:
            raise ValueError(f"steps must be [first, last] with 1 <= first <= last, got {list(self.steps)}")
        if any(rank < 0 for rank in self.ranks) or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"ranks must be different processes, counted from 0, got {self.ranks}")
        return self
