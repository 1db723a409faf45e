"""What a merge is: the YAML of `tsugiki merge`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tsugiki.experiment.config.strict import StrictModel
from tsugiki.pretrain.convert_config import WeightDtype

Group = Literal["embeddings", "attention", "mlp", "norms"]


class MergedModelConfig(StrictModel):
    """A model that is merged."""

    path: str
    """Hugging Face directory."""
    weight: float = 1.0
    """Factor of the model, or of its difference to the base; may be negative."""
    density: float = Field(default=1.0, gt=0, le=1)
    """`ties`, `dare_linear`, `dare_ties`: share of the numbers of the difference that is kept."""


class MergeConfig(StrictModel):
    """A merge of models of one architecture."""

    method: Literal["linear", "task_arithmetic", "dare_linear", "ties", "dare_ties"]
    """`linear`: mean of models; the others add differences to `base`."""
    models: list[MergedModelConfig] = Field(min_length=1)
    """What is merged."""
    base: str | None = None
    """What differences are taken to; none for `linear`."""
    onto: str | None = None
    """What differences are added to, and whose tokenizer and configuration the result has; null = `base`, for `linear`
    the first model. A chat vector is `method: task_arithmetic`, an instruct model, its base, and ours here."""
    normalise: bool | None = None
    """Divide by the sum of the weights; null = for `linear` and `ties`."""
    groups: dict[Group, float] = {}
    """Factors on all weights of a group of parameters (others: 1); `linear` has none."""
    dtype: WeightDtype | None = None
    """Type of the result; null = as `onto`."""
    seed: int = 1234
    """Of what `dare_*` drops."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.base is None) != (self.method == "linear"):
            raise ValueError("a base for every method but linear, which has none")
        if self.groups and self.method == "linear":
            raise ValueError("groups belong to methods with a base")
        if self.method in ("linear", "task_arithmetic") and any(model.density != 1 for model in self.models):
            raise ValueError(f"density belongs to ties, dare_linear and dare_ties, not to {self.method}")
        return self

    @property
    def folders(self) -> list[str]:
        """Everything that is read."""
        return [
            path
            for path in (*(model.path for model in self.models), self.base, self.onto)
            if path is not None
        ]
