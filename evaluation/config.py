"""Configuration of the evaluate and report stages."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tsugiki.experiment.config.fingerprint import NotFingerprinted
from tsugiki.experiment.config.strict import StrictModel


class SampleConfig(StrictModel):
    """Greedy continuations of both models, side by side."""

    heldout_prompts_per_language: int = Field(default=2, ge=0)
    """Prompts cut from the beginning of held-out documents, for languages that `prompts` does not name."""
    prompt_characters: int = Field(default=40, gt=0)
    """Length of a prompt cut from a document, at most half of it; how the document really goes on is shown
    beside what the models write."""
    maximum_new_tokens: int = Field(default=48, gt=0)
    """Tokens each model adds, in its own vocabulary, before it is stopped."""
    maximum_new_bytes: int = Field(default=200, gt=0)
    """Text is shown up to this length, so that a model with longer tokens does not seem to say more."""


class PerplexitySetConfig(StrictModel):
    """A perplexity over documents of several languages together, as BiLLa reports it.

    BiLLa's author: "by conditional generation", 1,000 documents of PILE ("English"), the same plus 1,000 of
    WuDao ("mixed"), none of them trained on.
    """

    languages: list[str] = Field(min_length=1)
    """Languages whose held-out documents belong to the set."""
    documents_per_language: int = Field(default=1000, gt=0)
    """The first so many held-out documents of each language."""
    given: float = Field(default=0.0, ge=0, lt=1)
    """Share of every document's tokens that is only read, not scored: the perplexity of its continuation.
    Then there are no bits per byte, since tokenizers cut a document in different places."""


class HarnessConfig(StrictModel):
    """Benchmarks through lm-evaluation-harness (``pip install 'tsugiki[eval]'``)."""

    tasks: list[str] = Field(min_length=1)
    """Suites named after published tables (`swallow-ja`, `seallm-knowledge`, …), columns of one
    (`swallow-ja/JSQuAD`), tasks of ours (`m3exam_th`; `m3exam`: all its variants) or of the harness, and your own: the
    path of a YAML file, or `package.module:NAME` of a mapping. What a file of your own holds is part of the stage's
    key. See docs/how-to-add.md."""
    data: str | None = None
    """Folder with the files that our tasks and your own read, as the benchmarks' authors publish them."""
    chat_template: Literal["none", "result", "both"] = "none"
    """Whose questions are written as conversations in the model's chat template, examples as earlier turns:
    nobody's, the result's, or the base's too. Published tables that were measured without
    (`chat: false` in `evaluation/benchmarks/suites.yaml`) stay without."""
    fewshot: dict[str, int] = Field(default_factory=dict)
    """Examples before a question, by task, where it should not be the published number."""
    limit: int | None = Field(default=None, gt=0)
    """Questions per task; null is all."""
    batch_size: Annotated[int, Field(gt=0), NotFingerprinted] = 8
    """Questions per batch."""


class EvaluateConfig(StrictModel):
    """Base against result on the held-out documents of the corpus."""

    languages: list[str] | None = None
    """Languages to measure; null is every language of the corpus with held-out documents."""
    maximum_bytes_per_language: int = Field(default=200_000, gt=0)
    """UTF-8 bytes of held-out text measured per language; the last document is cut at a character."""
    sequence_length: int | None = Field(default=None, gt=1)
    """Tokens per window; null is what both models can read (`max_position_embeddings`), at most 4096."""
    stride: int | None = Field(default=None, gt=0)
    """Tokens a window moves on in documents longer than one; null is half a window."""
    prompts: dict[str, list[str]] = Field(default_factory=dict)
    """Prompts for the samples, by language."""
    samples: SampleConfig = SampleConfig()
    """Sample generations."""
    perplexity_sets: dict[str, PerplexitySetConfig] = Field(default_factory=dict)
    """Perplexities over several languages together, by name."""
    harness: HarnessConfig | None = None
    """Benchmarks; null runs none."""
    bootstrap_resamples: int = Field(default=1000, ge=0)
    """Resamples of the documents for the confidence intervals; 0 gives none."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of the confidence intervals."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the weights while evaluating; log-probabilities are always summed in higher precision."""
    device: Annotated[str | None, NotFingerprinted] = None
    """Torch device, e.g. `cuda:0`; null is the first GPU when there is one, else the CPU."""
    batch_bytes: Annotated[int, Field(gt=0), NotFingerprinted] = 100_000_000
    """Memory for logits on a GPU, and for those of a model whose output is more than a matrix (soft cap, scale)."""

    @model_validator(mode="after")
    def _stride_within_window(self) -> Self:
        if (
            self.stride is not None
            and self.sequence_length is not None
            and self.stride >= self.sequence_length
        ):
            raise ValueError(
                "stride below sequence_length, or tokens between two windows have no context "
                f"(stride {self.stride}, sequence_length {self.sequence_length})"
            )
        return self


class ReportConfig(StrictModel):
    """The report page."""

    title: str | None = None
    """Heading of the page; null is the name of the experiment."""
    samples_per_language: int = Field(default=1, ge=0)
    """Sample generations shown per language; the others open on a click."""
    published: list[str] = Field(default_factory=list)
    """Rows of the published tables shown beside the benchmarks, e.g. `Swallow 7B`; empty shows all. Rows of
    published perplexities (`BiLLa-7B-LLM`) are shown only when named."""
