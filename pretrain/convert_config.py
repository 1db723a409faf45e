"""Configuration of the graft and export stages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tsugiki.experiment.config.fingerprint import NotFingerprinted, OmittedIfNull
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.errors import ConfigError
from tsugiki.pretrain.conversion.initialisation import INITIALISATIONS, find_initialisation

WeightDtype = Literal["bf16", "fp16", "fp32"]


class RopeScalingConfig(StrictModel):
    """Scaling of the rotary frequencies, as transformers defines it (``modeling_rope_utils.py``)."""

    type: Literal["linear", "llama3", "yarn"]
    """`linear` divides every frequency by the factor (arXiv 2306.15595); `llama3` only the long wavelengths
    (Llama 3.1); `yarn` by parts, with a temperature on attention (arXiv 2309.00071)."""
    factor: float | None = Field(default=None, ge=1)
    """How many times longer; null is graft.max_positions divided by original_positions."""
    original_positions: int | None = Field(default=None, gt=0)
    """Positions before the scaling, which `llama3` and `yarn` need; null is the base's."""
    low_frequency_factor: float | None = Field(default=None, gt=0)
    """`llama3`: wavelengths above original_positions / this are scaled in full; null is 1, Llama 3.1's."""
    high_frequency_factor: float | None = Field(default=None, gt=0)
    """`llama3`: wavelengths below original_positions / this are kept; null is 4, Llama 3.1's."""
    beta_fast: float | None = Field(default=None, gt=0)
    """`yarn`: dimensions that turn more often than this over original_positions are kept; null is 32."""
    beta_slow: float | None = Field(default=None, gt=0)
    """`yarn`: dimensions that turn less often than this are scaled in full; null is 1."""
    attention_factor: float | None = Field(default=None, gt=0)
    """`yarn`: factor on rotated queries and keys; null is 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _of_its_type(self) -> Self:
        for kind, names in _ROPE_SETTINGS.items():
            given = [name for name in names if getattr(self, name) is not None]
            if given and kind != self.type:
                raise ValueError(f"{', '.join(given)}: belongs to type: {kind}, not to type: {self.type}")
        low = 1.0 if self.low_frequency_factor is None else self.low_frequency_factor
        high = 4.0 if self.high_frequency_factor is None else self.high_frequency_factor
        if low >= high:
            raise ValueError(f"low_frequency_factor {low} must be below high_frequency_factor {high}")
        return self


_ROPE_SETTINGS = {
    "llama3": ("low_frequency_factor", "high_frequency_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
}


class DistillationConfig(StrictModel):
    """Token Distillation (arXiv 2505.20133): the new input rows are trained until the base gives the same
    hidden states with a new piece in the text as with the base tokens it is made of. Defaults without
    another source are those of the authors' code (github.com/konstantinjdobler/token-distillation)."""

    contexts_per_piece: int = Field(default=100, ge=1)
    """Contexts looked for per piece. A context counts for every piece in it, so far fewer are read than this
    times the pieces. The paper sees little gain beyond 100."""
    context_tokens: int = Field(default=50, ge=8)
    """Length of a context in tokens of the base, without BOS. The paper sees little gain beyond 50."""
    corpus_bytes_per_language: int = Field(default=50_000_000, ge=1)
    """UTF-8 bytes of training documents searched for contexts, drawn from all sources of a language."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the contexts."""
    learning_rate: float = Field(default=1.0e-4, gt=0)
    """Of AdamW, constant, without weight decay. The authors' for models of billions of parameters; small ones
    need more (docs/graft.md)."""
    batch: int = Field(default=16, ge=1)
    """Contexts per optimizer step."""
    output_rows: Literal["mean", "next_token"] = "mean"
    """Rows of the output layer, which the method does not give: the mean of the base tokens' rows, or trained
    from there on predicting the next token of the same contexts, as the authors' code does by default.
    `next_token` is refused where input and output share one matrix."""
    dtype: WeightDtype | None = None
    """Type the base computes in; rows, loss and optimizer are fp32. Null is bf16 on a GPU, fp32 on a CPU."""
    device: Annotated[str | None, NotFingerprinted] = None
    """Torch device, e.g. `cuda:0`; null is the first GPU when there is one, else the CPU."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Of the choice of documents and the order of contexts; null is the experiment's."""


def _known_initialisation(name: str) -> str:
    try:
        find_initialisation(name)
    except ConfigError as error:
        # As a mistake in the configuration it is shown with file and line.
        raise ValueError(
            "; ".join(str(item) for item in (error.what, error.expected, error.fix) if item)
        ) from error
    return name


class GraftConfig(StrictModel):
    """Hugging Face base -> Megatron checkpoint with the extended vocabulary."""

    init: Annotated[str, AfterValidator(_known_initialisation)] = "mean"
    """How the rows of added pieces start, input and output alike: the mean of the rows of the base
    tokens a piece is made of (mean), later tokens counting more (weighted), moved towards similar
    pieces (similarity); or drawn from the distribution of the base rows (multivariate) or from
    N(0, 0.02) (random, an ablation). Or the mean first, then input rows trained on text of the corpus to
    stand for those base tokens (distillation). Or `package.module:function`, one of your own."""
    distillation: Annotated[DistillationConfig | None, OmittedIfNull] = None
    """Settings of `init: distillation`; null is their defaults there."""
    dtype: WeightDtype | None = None
    """Type of the weights in the checkpoint; null keeps the type of every tensor of the base."""
    trim_padding_rows: bool = False
    """Without an extension, drop the rows that the matrices have beyond the tokenizer (Qwen2 pads
    its own); false refuses such a base."""
    max_positions: int | None = Field(default=None, gt=0)
    """Longest sequence the grafted model is made for, in tokens: `max_position_embeddings` of the export;
    null keeps the base's. Not below the base's."""
    rope_theta: float | None = Field(default=None, gt=0)
    """Base of the rotary frequencies; null keeps the base model's."""
    rope_scaling: RopeScalingConfig | None = None
    """Scaling of the rotary frequencies; null keeps the base model's, if it has one."""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        init = values.get("init") if isinstance(values, dict) else None
        if isinstance(init, str) and init in INITIALISATIONS and find_initialisation(init).learns_from_corpus:
            return {**values, "distillation": values.get("distillation") or {}}
        return values

    @model_validator(mode="after")
    def _of_its_init(self) -> Self:
        if self.distillation is not None and not find_initialisation(self.init).learns_from_corpus:
            raise ValueError(f"distillation belongs to init: distillation, not to init: {self.init}")
        return self


class SamplingConfig(StrictModel):
    """How text is drawn unless the user says otherwise: transformers and vLLM read it from generation_config.json."""

    temperature: float | None = Field(default=None, ge=0)
    """Logits are divided by it; 0 takes the most likely token always."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Of the likeliest tokens, as few as have this probability together."""
    top_k: int | None = Field(default=None, gt=0)
    """This many likeliest tokens."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Above 1, tokens that stand in the text already become less likely."""

    def settings(self) -> dict[str, Any]:
        """As generation_config.json names them."""
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        if given.get("temperature") == 0:
            del given["temperature"]
            return {"do_sample": False, **given}
        return {"do_sample": True, **given}


class ExportConfig(StrictModel):
    """Megatron checkpoint -> Hugging Face directory."""

    sampling: Annotated[SamplingConfig | None, OmittedIfNull] = None
    """Sampling settings of generation_config.json; null keeps the base's."""

    iteration: int | None = Field(default=None, ge=0)
    """Checkpoint to export; null is the last one."""
    dtype: WeightDtype | None = None
    """Type of the exported weights; null is the type the base model was published in."""
    shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    """Largest safetensors file; a single larger tensor gets a file of its own."""
    verify: bool = True
    """Compare the logits of the exported directory in transformers with those of the training
    checkpoint in Megatron, both in fp32, on held-out text."""
    verify_tokens: Annotated[int, NotFingerprinted] = Field(default=512, ge=8)
    """Tokens of held-out text the logits are compared on."""
    verify_tolerance: float = Field(default=1e-4, gt=0)
    """Largest absolute difference of a logit that passes."""
    license: str | None = None
    """Licence for the model card (an SPDX id or a name); null takes the base model's, if it says."""
    base_model: str | None = None
    """Name of the base model for the model card, e.g. mistralai/Mistral-7B-v0.1; null is what the
    base's config.json says, or the name of its folder."""
