"""Configuration of the base and train stages."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tsugiki.experiment.config.fingerprint import (
    FingerprintedAs,
    NotFingerprinted,
    OmittedIfDefault,
    OmittedIfNull,
)
from tsugiki.experiment.config.strict import StrictModel
from tsugiki.experiment.model.family import family_names, find_family
from tsugiki.pretrain.planning.divisions import batch_problems, sequence_problems
from tsugiki.pretrain.profile_config import ProfileConfig

Conversations = Literal["stream", "apart", "shared"]
PreferenceObjective = Literal["dpo", "ipo", "dpo_length_normalised", "dpo_length_regularised", "simpo"]


def _known_family(name: str) -> str:
    known = [item for item in family_names() if find_family(item).converted_to is None]
    if name not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return name


def _run_at_step(setting: str | None) -> str | None:
    if setting is not None and re.fullmatch(r".+@[0-9]{1,18}", setting) is None:
        raise ValueError(
            "RUN@STEP: a run directory and the step of one of its checkpoints, as runs/first@25000"
        )
    return setting


class ScratchConfig(StrictModel):
    """A tiny base model trained from random weights, where no real base model can be downloaded."""

    architecture: Annotated[str, AfterValidator(_known_family)] = "llama"
    """A model family (`model_type` of config.json), whose Hugging Face class is written: llama, mistral, gemma, …"""
    tokenizer: str = "mistral-v1"
    """`mistral-v1` (the genuine Mistral-7B-v0.1 SentencePiece model that ships in mistral-common) or the
    path of a SentencePiece model."""
    language: str = "en"
    """Language of the corpus sources that the base is trained on."""
    layers: int = Field(default=4, ge=1)
    """Transformer layers."""
    hidden_size: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    ffn_size: int = Field(default=352, ge=8)
    """Inner width of the gated feed-forward layer."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    kv_heads: int = Field(default=2, ge=1)
    """Key/value heads of grouped-query attention; divides heads."""
    max_positions: int = Field(default=256, ge=8)
    """Longest sequence the model is made for; written to config.json."""
    tied_embeddings: bool = False
    """Share one matrix between input and output embedding."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random initial weights."""
    train_tokens: int = Field(default=300_000, ge=1)
    """Tokens to train on; the text is repeated when it is shorter."""
    sequence_length: int = Field(default=256, ge=8)
    """Tokens per training sequence."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Sequences per forward pass of one process; null = global_batch / processes."""
    global_batch: int = Field(default=8, ge=1)
    """Sequences per optimizer step."""
    learning_rate: float = Field(default=3.0e-3, gt=0)
    """Peak learning rate; decays to a tenth along a cosine."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of train_tokens in which the learning rate rises."""
    processes: Annotated[int, NotFingerprinted] = Field(default=1, ge=1)
    """Data-parallel processes."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
        if (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size / heads = {self.hidden_size // self.heads} must be even for rotary embeddings"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.sequence_length > self.max_positions:
            raise ValueError(
                f"sequence_length {self.sequence_length} exceeds max_positions {self.max_positions}"
            )
        if self.global_batch % self.processes:
            raise ValueError(
                f"global_batch {self.global_batch} must be a multiple of processes {self.processes}"
            )
        if self.micro_batch is not None and self.global_batch % (self.micro_batch * self.processes):
            raise ValueError(
                f"global_batch {self.global_batch} must be a multiple of micro_batch x processes = "
                f"{self.micro_batch * self.processes}"
            )
        return self

    def hf_config(self, vocabulary_size: int) -> dict[str, Any]:
        """What its config.json says about the architecture."""
        return {
            "model_type": self.architecture,
            "vocab_size": vocabulary_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden_size // self.heads,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tied_embeddings,
            **find_family(self.architecture).full_attention,
        }


class BaseConfig(StrictModel):
    """The base model: a Hugging Face directory, or one trained from scratch."""

    path: str | None = None
    """A Hugging Face model directory; `~` and `$VARIABLES` are expanded."""
    scratch: ScratchConfig | None = None
    """Train a tiny base model instead."""
    architecture: Annotated[str | None, NotFingerprinted] = None
    """Its `config.json` for `tsugiki plan`, while `path` is not on this machine; else ignored."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give either path (a Hugging Face directory) or scratch, not both or neither")
        if self.architecture is not None and self.scratch is not None:
            raise ValueError("architecture describes a base given by path; scratch describes itself")
        return self


class ParallelConfig(StrictModel):
    """How the model and the batch are divided over processes."""

    tensor: int = Field(default=1, ge=1)
    """Tensor parallelism: processes that share every matrix; divides heads and kv_heads."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline parallelism: stages of consecutive layers; divides layers."""
    virtual_pipeline: int | None = Field(default=None, ge=2)
    """Interleaved schedule: chunks of layers per pipeline stage; null = not interleaved."""
    context: int = Field(default=1, ge=1)
    """Context parallelism: processes that share one sequence; 2 x context divides sequence_length."""
    data: int | None = Field(default=None, ge=1)
    """Data parallelism: copies of the model. Null = whatever the processes started by Slurm or torchrun leave
    over, and 1 where the stage starts its processes itself."""
    sequence: bool = False
    """Sequence parallelism: norms and dropouts divided along the sequence; needs tensor > 1."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sequence and self.tensor == 1:
            raise ValueError("sequence parallelism needs tensor >= 2: set sequence: false or raise tensor")
        if self.virtual_pipeline is not None and self.pipeline == 1:
            raise ValueError(
                "virtual_pipeline needs pipeline >= 2: set virtual_pipeline: null or raise pipeline"
            )
        return self

    @property
    def model_processes(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context


class OptimizerConfig(StrictModel):
    """AdamW."""

    learning_rate: float = Field(default=1.0e-4, gt=0)
    """Peak learning rate."""
    minimum_learning_rate: float = Field(default=1.0e-5, ge=0)
    """Learning rate at the end of the decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moments."""
    epsilon: float = Field(default=1.0e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay of matrices and embeddings; norms and biases never decay."""
    clip_grad_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 = no clipping."""
    distributed: bool = True
    """Divide the optimizer state over the data-parallel processes."""
    new_rows_learning_rate_multiplier: float = Field(default=1.0, gt=0)
    """Factor on the learning rate of embedding rows that the vocabulary extension added."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum_learning_rate > self.learning_rate:
            raise ValueError(
                f"minimum_learning_rate {self.minimum_learning_rate} exceeds learning_rate "
                f"{self.learning_rate}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {self.betas}")
        return self


class ScheduleConfig(StrictModel):
    """Learning rate over training tokens."""

    kind: Literal["cosine", "linear", "wsd", "infinite", "cooldown", "constant"] = "cosine"
    """Shape after the warm-up: `wsd` holds the peak and decays over the last decay_tokens; `infinite` goes down to
    constant_learning_rate, holds that, and decays where decay_tokens says so; `cooldown` decays from the first
    token to the last, which ends a run of `wsd`, `infinite` or `constant` from any of its checkpoints."""
    warmup_tokens: int = Field(default=0, ge=0)
    """Tokens over which the learning rate rises linearly from zero."""
    decay_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the final decay of `wsd` (null = a tenth of the training) and `infinite` (null = none)."""
    decay_shape: Annotated[Literal["linear", "1-sqrt", "exponential"], OmittedIfDefault] = "linear"
    """How `wsd`, `infinite` and `cooldown` decay to the minimum: a line, 1 minus the root of the share that is
    done, or by equal factors, which needs a minimum above zero."""
    constant_learning_rate: Annotated[float | None, OmittedIfNull] = Field(default=None, gt=0)
    """What `infinite` holds; between minimum and peak. Null = half the peak."""
    descent_tokens: Annotated[int | None, OmittedIfNull] = Field(default=None, ge=1)
    """Tokens in which `infinite` goes down from the peak to its constant part, along a cosine; null = as many as
    the warm-up."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        belongs = {
            "decay_tokens": (self.decay_tokens is not None, ("wsd", "infinite")),
            "decay_shape": (self.decay_shape != "linear", ("wsd", "infinite", "cooldown")),
            "constant_learning_rate": (self.constant_learning_rate is not None, ("infinite",)),
            "descent_tokens": (self.descent_tokens is not None, ("infinite",)),
        }
        for name, (given, kinds) in belongs.items():
            if given and self.kind not in kinds:
                raise ValueError(f"{name} belongs to kind: {' or '.join(kinds)}, not to kind: {self.kind}")
        if self.kind == "cooldown" and self.warmup_tokens:
            raise ValueError("kind: cooldown begins at the peak: warmup_tokens must be 0")
        return self


class PhaseConfig(StrictModel):
    """One phase of staged training: what trains, until when, at which learning rate."""

    name: str = ""
    """Shown in logs; default is phase-<number>."""
    trains: list[Literal["new_input_rows", "new_output_rows", "embeddings", "all"] | str] = Field(
        default=["all"], min_length=1
    )
    """`new_input_rows`, `new_output_rows` (rows the extension added), `embeddings` (both matrices whole),
    `layers:0,1,-2,-1` (transformer layers, negative from the end), `final_norm`, `all`."""
    until_tokens: int | None = Field(default=None, ge=1)
    """Tokens, counted from the start of training, at which the phase ends; null = the end of training."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the phase; null = the optimizer's."""
    minimum_learning_rate: float | None = Field(default=None, ge=0)
    """Final learning rate of the phase; null = the optimizer's."""
    schedule: ScheduleConfig | None = None
    """Schedule of the phase, over its own tokens; null = the one of the training."""


class AnomalyConfig(StrictModel):
    """What to do when the loss is not finite or jumps."""

    action: Literal["skip", "rollback", "stop"] = "skip"
    """`skip` leaves the weights unchanged for that batch; `rollback` goes back to an earlier checkpoint
    and skips the data from there to the anomaly; `stop` ends the training with an error."""
    rollback_steps: int = Field(default=1, ge=1)
    """`rollback` goes back this many steps at least, to the newest checkpoint that is old enough: the weights
    may have been harmed before the loss showed it. Keep enough of them (keep_last_checkpoints)."""
    spike_factor: float | None = Field(default=None, gt=1)
    """A loss above this multiple of the median of recent losses is an anomaly; null = only NaN and Inf."""
    window_steps: int = Field(default=32, ge=4)
    """Recent losses the median is taken over."""
    maximum_anomalies: int = Field(default=10, ge=1)
    """Training ends with an error after this many anomalies."""


class PreferenceConfig(StrictModel):
    """Numbers of the objectives over pairs of answers; formulas: pretrain/training/preference/losses.py."""

    beta: float = Field(default=0.1, gt=0)
    """How much a log-ratio weighs: the smaller, the farther from the reference. Losses over means of tokens want more:
    `dpo_length_normalised` 5, `simpo` 2 to 10."""
    length_weight: float = Field(default=0.0, ge=0)
    """`dpo_length_regularised`: alpha, reward of a token of length."""
    target_margin: float = Field(default=0.0, ge=0)
    """`simpo`: gamma, by how much the rewards should differ."""


class TrainConfig(StrictModel):
    """Continued pretraining. Its length is the mixture's total_tokens."""

    parallel: Annotated[ParallelConfig, NotFingerprinted] = ParallelConfig()
    """Division over processes. A run may be continued with another one."""
    sequence_length: int = Field(default=4096, ge=8)
    """Tokens per training sequence."""
    micro_batch: Annotated[int, NotFingerprinted] = Field(default=1, ge=1)
    """Sequences per forward pass of one process."""
    global_batch: int = Field(default=1024, ge=1)
    """Sequences per optimizer step."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    """Arithmetic of forward and backward; gradients and optimizer are fp32. fp8 needs transformer-engine and
    a GPU that has it."""
    fp8_recipe: Literal["tensorwise", "blockwise", "delayed"] = "tensorwise"
    """Scaling of fp8 products: by each tensor's current maximum, by blocks, or by past maxima."""
    backend: Annotated[
        Literal["auto", "torch", "apex", "transformer_engine"], NotFingerprinted, FingerprintedAs("tier")
    ] = "auto"
    """What the layers are made of on a GPU; auto = the fastest one installed. Checkpoints are the same."""
    compile: Annotated[bool, NotFingerprinted] = True
    """Let torch's compiler make norm, activation, rotation and loss kernels; only on a GPU."""
    deterministic: Annotated[bool, OmittedIfDefault] = False
    """The same bits every time the same layout trains the same: slower kernels and reductions, and an error where
    torch has none. Only with `backend: auto` or `torch`, and not with fp8."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over tokens."""
    continue_from: Annotated[str | None, NotFingerprinted, AfterValidator(_run_at_step)] = None
    """`RUN@STEP`: start from a checkpoint of another run directory (`runs/NAME@25000`) instead of the graft, with this
    run's schedule, mixture, batch and length. The checkpoint's content, not its place, decides whether a result is
    still valid."""
    continue_moments: Annotated[bool, OmittedIfDefault] = True
    """With `continue_from`: take the optimizer's moments over; false = the weights alone."""
    continue_repeats_data: Annotated[bool, OmittedIfDefault] = False
    """With `continue_from`: begin every source anew; false = documents that were read come last."""
    phases: list[PhaseConfig] = []
    """Staged training; empty = everything trains from the start."""
    objective: Annotated[Literal["next_token"] | PreferenceObjective, OmittedIfDefault] = "next_token"
    """What is minimised: the cross entropy of the next token, or a loss over pairs of answers, whose sources are of
    `kind: preference`. All of these but `simpo` compare with the first weights: the stage `reference`."""
    preference: Annotated[PreferenceConfig, OmittedIfDefault] = PreferenceConfig()
    """Numbers of the objectives over pairs."""
    z_loss: float = Field(default=0.0, ge=0)
    """Coefficient of the mean squared log partition function (PaLM used 1e-4)."""
    reset_position_ids: bool = False
    """Positions start at 0 again after every document boundary of a packed sequence."""
    reset_attention_mask: bool = False
    """Tokens attend only to their own document of a packed sequence."""
    mask_end_of_document: bool = False
    """Do not train on predicting what follows the end-of-document token."""
    conversations: Annotated[Conversations, OmittedIfDefault] = "stream"
    """How sources of `kind: instruction` fill sequences: `stream` cuts them as it cuts text, and an answer can lose
    its prompt; `apart` packs whole conversations, of which each sees itself alone and begins at position 0;
    `shared` packs whole ones that see those before them in their sequence (SUS-Chat)."""
    recompute: Annotated[Literal["none", "selective", "full"], NotFingerprinted] = "none"
    """Recompute activations in the backward pass: `selective` only core attention, `full` whole layers."""
    recompute_layers: Annotated[int | None, NotFingerprinted] = Field(default=None, ge=1)
    """With `recompute: full`: only that many layers of each pipeline stage, or of each of its virtual_pipeline chunks,
    the first ones; as many as memory asks for, each a third of its time more. Null = all."""
    save_interval_steps: Annotated[int, NotFingerprinted] = Field(default=500, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_last_checkpoints: Annotated[int, NotFingerprinted, FingerprintedAs("keep_checkpoints")] = Field(
        default=2, ge=1
    )
    """Newest checkpoints kept."""
    asynchronous_checkpoints: Annotated[Literal["auto"] | bool, NotFingerprinted] = "auto"
    """Write checkpoints in the background while training goes on, from a copy in host memory; auto = with a
    GPU. A checkpoint becomes the latest only when it is complete, at the end of a later step."""
    keep_checkpoints_every_steps: Annotated[
        int | None, NotFingerprinted, FingerprintedAs("milestone_interval_steps")
    ] = Field(default=None, ge=1)
    """Checkpoints at multiples of this are kept for ever; a multiple of save_interval_steps."""
    log_interval_steps: Annotated[int, NotFingerprinted] = Field(default=10, ge=1)
    """Steps between log lines."""
    profile: Annotated[ProfileConfig | None, NotFingerprinted] = None
    """Write a trace of some steps to `profiles/`; null = none."""
    straggler_factor: Annotated[float | None, NotFingerprinted] = Field(default=1.2, gt=1)
    """A rank whose own time a step is above this multiple of the median of the ranks with the same share of the
    model, in log windows one after another, is named; null = none is."""
    peak_tflops: Annotated[float | Literal["measured"] | None, NotFingerprinted] = None
    """Peak TFLOP/s of one process, for MFU: a number, or `measured` (matrix products at the start). Null =
    the dense bf16 figure of the GPU's data sheet; no MFU where that is unknown, on a CPU and in fp32."""
    validation_interval_steps: Annotated[int | None, NotFingerprinted] = Field(default=500, ge=1)
    """Steps between validations on the held-out documents; also at the end; null = never."""
    validation_bytes_per_language: Annotated[int, NotFingerprinted] = Field(default=1_000_000, ge=1)
    """Bytes of held-out text evaluated per language, sources evenly: whole documents, as many as fit and at
    least one of each source. The same documents for every vocabulary, so that runs compare."""
    anomalies: AnomalyConfig = AnomalyConfig()
    """NaN, Inf and loss spikes."""
    watchdog_seconds: Annotated[float | None, NotFingerprinted] = Field(default=480.0, gt=0)
    """A step that takes longer is a hang: stacks and collectives of all processes are written and the run ends.
    Null = never."""
    startup_watchdog_seconds: Annotated[float, NotFingerprinted] = Field(default=1800.0, gt=0)
    """The same for what takes longer than a step: the time until the first step after a start is done (loading,
    verification, compilation), and the writing of a checkpoint."""
    threads: Annotated[int | None, NotFingerprinted] = Field(default=None, ge=1)
    """CPU threads per process; null = cores / processes on a CPU."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in [*batch_problems(self, self.parallel.data or 1), *sequence_problems(self)]:
            if (
                problem.where != "train.parallel.virtual_pipeline"
            ):  # said when the data-parallel size is known
                raise ValueError(f"{problem.where.removeprefix('train.')} {problem.got} {problem.expected}")
        if isinstance(self.peak_tflops, float) and self.peak_tflops <= 0:
            raise ValueError(f"peak_tflops must be positive, or `measured`, got {self.peak_tflops}")
        if self.deterministic and (self.precision == "fp8" or self.backend not in ("auto", "torch")):
            raise ValueError(
                f"deterministic: true needs kernels that torch answers for: backend: auto or torch and precision: bf16 "
                f"or fp32, got backend: {self.backend} and precision: {self.precision}"
            )
        if self.keep_checkpoints_every_steps is not None and (
            self.keep_checkpoints_every_steps % self.save_interval_steps
        ):
            raise ValueError(
                f"keep_checkpoints_every_steps {self.keep_checkpoints_every_steps} must be a multiple of "
                f"save_interval_steps {self.save_interval_steps}"
            )
        if self.recompute_layers is not None and self.recompute != "full":
            raise ValueError(
                f"recompute_layers belongs to recompute: full, not to recompute: {self.recompute}"
            )
        if self.conversations == "shared" and (self.reset_attention_mask or self.reset_position_ids):
            raise ValueError(
                "conversations: shared lets conversations of a sequence see each other: set reset_attention_mask and "
                "reset_position_ids to false, or conversations: apart"
            )
        self._check_objective()
        if self.continue_from is None and (self.continue_repeats_data or not self.continue_moments):
            raise ValueError("continue_moments and continue_repeats_data belong to continue_from: RUN@STEP")
        ends = [phase.until_tokens for phase in self.phases]
        if any(end is None for end in ends[:-1]):
            raise ValueError("phases: every phase but the last needs until_tokens")
        known = [end for end in ends if end is not None]
        if known != sorted(set(known)):
            raise ValueError(f"phases: until_tokens must grow from phase to phase, got {known}")
        return self

    def _check_objective(self) -> None:
        preference = self.preference
        if self.objective == "next_token":
            if preference != PreferenceConfig():
                raise ValueError("preference belongs to an objective over pairs: set objective: dpo")
            return
        belongs = {"length_weight": "dpo_length_regularised", "target_margin": "simpo"}
        for name, objective in belongs.items():
            if getattr(preference, name) and self.objective != objective:
                raise ValueError(
                    f"preference.{name} belongs to objective: {objective}, not to {self.objective}"
                )
        if self.z_loss:
            raise ValueError(f"z_loss belongs to objective: next_token; set z_loss: 0 with {self.objective}")
        if self.continue_from is not None:
            raise ValueError(
                f"objective: {self.objective} begins with the graft, which is its reference: export the run that "
                "continue_from names and set base.path to it"
            )

    @property
    def compares(self) -> bool:
        """Whether the objective compares with a reference model."""
        return self.objective not in ("next_token", "simpo")
