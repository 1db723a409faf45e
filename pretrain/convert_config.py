"""Configuration of the graft and export stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from experiment.config import Cosmetic, StrictModel

WeightDtype = Literal["bf16", "fp16", "fp32"]
InitMethod = Literal["mean", "weighted", "multivariate", "similarity", "random"]


class GraftConfig(StrictModel):
    """Hugging Face base -> Megatron checkpoint with the extended vocabulary."""

    init: InitMethod = "mean"
    """How the rows of added pieces start, input and output alike: the mean of the rows of the base
    tokens a piece is made of (mean), later tokens counting more (weighted), moved towards similar
    pieces (similarity); or drawn from the distribution of the base rows (multivariate) or from
    N(0, 0.02) (random, an ablation)."""
    dtype: WeightDtype | None = None
    """Type of the weights in the checkpoint; null keeps the type of every tensor of the base."""
    trim_padding_rows: bool = False
    """Without an extension, drop the rows that the matrices have beyond the tokenizer (Qwen2 pads
    its own); false refuses such a base."""


class ExportConfig(StrictModel):
    """Megatron checkpoint -> Hugging Face directory."""

    iteration: int | None = Field(default=None, ge=0)
    """Checkpoint to export; null is the last one."""
    dtype: WeightDtype | None = None
    """Type of the exported weights; null is the type the base model was published in."""
    shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    """Largest safetensors file; a single larger tensor gets a file of its own."""
    verify: bool = True
    """Compare the logits of the exported directory in transformers with those of the training
    checkpoint in Megatron, both in fp32, on held-out text."""
    verify_tokens: Annotated[int, Cosmetic] = Field(default=512, ge=8)
    """Tokens of held-out text the logits are compared on."""
    verify_tolerance: float = Field(default=1e-4, gt=0)
    """Largest absolute difference of a logit that passes."""
    license: str | None = None
    """Licence for the model card (an SPDX id or a name); null takes the base model's, if it says."""
    base_model: str | None = None
    """Name of the base model for the model card, e.g. mistralai/Mistral-7B-v0.1; null is what the
    base's config.json says, or its directory name."""
