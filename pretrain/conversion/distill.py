"""Token Distillation: input rows of new pieces that let the base model see what it saw in their base tokens.

Method and loss are those of Dobler, Elliott and de Melo, "Token Distillation: Attention-aware Input
Embeddings for New Tokens" (arXiv 2505.20133, at first "AweDist"). The frozen base reads a snippet cut into
its own tokens (teacher) and the same snippet with the new pieces (student). New rows start as the mean of
their base tokens' rows; they alone are trained, by AdamW, to make the mean squared difference of the final
hidden states small, over all tokens of the student, a new piece being compared with the last of its base
tokens.

Hidden states do not depend on the output layer, so its rows are not learned in this way. They stay the mean,
or are trained apart from the input rows on predicting the next token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_
from tsugiki.experiment.progress import Progress
from tsugiki.pretrain.conversion.distill_contexts import Contexts, Expansion, Ids, collate, find_contexts
from tsugiki.pretrain.conversion.new_rows import Piece
from tsugiki.pretrain.convert_config import DistillationConfig
from tsugiki.pretrain.formats.safetensors_files import torch_dtype

_MEASURED_CONTEXTS = 512


class Losses(NamedTuple):
    """Mean squared difference of hidden states and, with trained output rows, nats per predicted token."""

    hidden: Tensor
    next_token: Tensor | None


@dataclass(frozen=True)
class Distilled:
    """Trained rows.

    Attributes:
        input_rows: [N, H] fp32.
        output_rows: [N, H] fp32; None where they were not trained.
        report: what was done, for ``graft.json``.
    """

    input_rows: Tensor
    output_rows: Tensor | None
    report: dict[str, Any]


def distil_rows(
    base_dir: Path,
    tokenizer_dir: Path,
    corpus_dir: Path,
    pieces: Sequence[Piece],
    input_rows: Tensor,
    output_rows: Tensor | None,
    config: DistillationConfig,
    seed: int,
) -> Distilled:
    """Train the rows of added pieces on the corpus. Deterministic on a CPU, for one number of threads.

    Args:
        base_dir: Hugging Face directory of the base.
        tokenizer_dir: the extended tokenizer.
        corpus_dir: artefact of the corpus stage; its training split is read.
        pieces: the added pieces.
        input_rows: rows to start from [N, H].
        output_rows: the same of the output layer; None where it shares the input's matrix.
        config: ``graft.distillation``.
        seed: of the experiment, unless the configuration has its own.

    Raises:
        CheckpointError: transformers cannot load the base.
        ConfigError: output rows to train where there are none.
        DataError: no text with new pieces, or a loss that is not finite.
        EnvironmentError_: the device does not exist or has too little memory.
    """
    if config.output_rows == "next_token" and output_rows is None:
        raise ConfigError(
            "output rows cannot be trained apart from the input rows", where="graft.distillation.output_rows",
            got="next_token, and a base whose input and output share one matrix", expected="mean",
        )  # fmt: skip
    seed = seed if config.seed is None else config.seed
    contexts = find_contexts(corpus_dir, tokenizer_dir, pieces, config, seed)
    try:
        model = load_model(base_dir, config)
        trained_output = output_rows if config.output_rows == "next_token" else None
        student = Student(model, pieces, contexts.start_ids, input_rows, trained_output)
        before, after, steps = _train(student, contexts, config, seed)
    except torch.OutOfMemoryError as error:
        raise EnvironmentError_(
            "not enough memory on the device for distillation", where="graft.distillation.device",
            got=str(error).splitlines()[0],
            fix="lower graft.distillation.batch, or choose dtype bf16 or another device",
        ) from error  # fmt: skip
    made = sum(bool(piece.base_ids) for piece in pieces)
    trained = int((contexts.counts > 0).sum())
    report: dict[str, Any] = {
        "pieces_trained": trained,
        "pieces_without_context": made - trained,
        "reserved_pieces": len(pieces) - made,
        "contexts": len(contexts.snippets),
        "steps": steps,
        "hidden_loss": {"before": float(before.hidden), "after": float(after.hidden)},
        "output_rows": "tied" if output_rows is None else config.output_rows,
    }
    if before.next_token is not None and after.next_token is not None:
        report["next_token_loss"] = {"before": float(before.next_token), "after": float(after.next_token)}
    output = student.output_rows
    return Distilled(
        student.input_rows.detach().cpu(), None if output is None else output.detach().cpu(), report
    )


def load_model(base_dir: Path, config: DistillationConfig) -> Any:
    """The frozen base in transformers, on the device it is to run on.

    Attention is transformers' plain one: contexts are short, and it is deterministic.

    Raises:
        CheckpointError: it cannot be loaded.
        EnvironmentError_: the device does not exist.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch_dtype(config.dtype or ("fp32" if device.type == "cpu" else "bf16"))
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            base_dir, dtype=dtype, attn_implementation="eager", local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            "transformers cannot load the base model, which distillation runs", where=base_dir,
            got=str(error).splitlines()[0], fix="repair the base, or set graft.init to mean",
        ) from error  # fmt: skip
    try:
        model = model.to(device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise EnvironmentError_(
            "the device cannot be used", where="graft.distillation.device", got=f"{device}: {error}"
        ) from error
    return model.eval().requires_grad_(False)


class Student:
    """The frozen base with trainable rows for the added pieces.

    Args:
        model: a causal language model of transformers, frozen.
        pieces: the added pieces.
        start_ids: tokens in front of every context (BOS).
        input_rows: first values of the input rows [N, H].
        output_rows: first values of the output rows [N, H]; None to leave them alone.
    """

    def __init__(
        self,
        model: Any,
        pieces: Sequence[Piece],
        start_ids: Sequence[int],
        input_rows: Tensor,
        output_rows: Tensor | None,
    ) -> None:
        self._model, self._start_ids = model, start_ids
        self._expansion = Expansion(pieces)
        device = model.device
        self.input_rows = input_rows.to(device, torch.float32, copy=True).requires_grad_()
        self.output_rows: Tensor | None = None
        if output_rows is not None:
            self.output_rows = output_rows.to(device, torch.float32, copy=True).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained."""
        return [self.input_rows] if self.output_rows is None else [self.input_rows, self.output_rows]

    def losses(self, snippets: Sequence[Ids]) -> Losses:
        """Losses of a batch of contexts."""
        batch = collate(snippets, self._start_ids, self._expansion)
        ids, base_ids, ends, real = (item.to(self._model.device) for item in batch)
        with torch.no_grad():
            teacher = self._hidden(input_ids=base_ids)  # [B, T, H]
        target = teacher.gather(1, ends.unsqueeze(2).expand(-1, -1, teacher.shape[2]))  # [B, S, H]
        states = self.states(ids)  # [B, S, H]
        hidden = functional.mse_loss(states[real].float(), target[real].float())
        if self.output_rows is None:
            return Losses(hidden, None)
        # Detached: predicting the next token moves output rows only.
        known = self._model.get_output_embeddings().weight[: self._expansion.first_id]
        weight = torch.cat([known, self.output_rows.to(known.dtype)])  # [V + N, H]
        predicts = real[:, 1:]
        logits = functional.linear(states[:, :-1][predicts].detach(), weight).float()  # [P, V + N]
        return Losses(hidden, functional.cross_entropy(logits, ids[:, 1:][predicts]))

    def states(self, ids: Tensor) -> Tensor:
        """Final hidden states [B, S, H] over tokens of the extended vocabulary [B, S]."""
        return self._hidden(inputs_embeds=self._embed(ids))

    def _hidden(self, **inputs: Tensor) -> Tensor:
        """States after the final norm, which the output layer reads."""
        states: Tensor = self._model.base_model(**inputs, use_cache=False).last_hidden_state
        return states

    def _embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [B, S, H] of tokens of the extended vocabulary."""
        table = self._model.get_input_embeddings()
        first = self._expansion.first_id
        new = ids >= first
        known = table(ids.masked_fill(new, 0))
        rows = functional.embedding((ids - first).clamp(min=0), self.input_rows).to(known.dtype)
        scale = getattr(table, "embed_scale", None)  # Gemma scales what it looks up
        if scale is not None:
            rows = rows * scale.to(known.dtype)
        return torch.where(new.unsqueeze(2), rows, known)


def _train(
    student: Student, contexts: Contexts, config: DistillationConfig, seed: int
) -> tuple[Losses, Losses, int]:
    """Train; losses on some of the contexts before and after, and the number of steps."""
    generator = torch.Generator().manual_seed(seed)
    snippets = contexts.snippets
    drawn = torch.randperm(len(snippets), generator=generator)[:_MEASURED_CONTEXTS].tolist()
    measured = [snippets[at] for at in drawn]
    before = _measure(student, measured, config.batch)
    optimizer = torch.optim.AdamW(student.parameters, lr=config.learning_rate, weight_decay=0.0)
    steps = 0
    with Progress("graft: distillation", config.epochs * len(snippets), "contexts") as progress:
        for _ in range(config.epochs):
            order = torch.randperm(len(snippets), generator=generator).tolist()
            for batch in _batches([snippets[at] for at in order], config.batch):
                optimizer.zero_grad()
                losses = student.losses(batch)
                total = losses.hidden if losses.next_token is None else losses.hidden + losses.next_token
                if not bool(torch.isfinite(total)):
                    raise DataError(
                        "the loss of distillation is not finite",
                        where=f"step {steps + 1}",
                        got=total.item(),
                        fix="lower graft.distillation.learning_rate, use dtype fp32, or check the weights",
                    )
                total.backward()
                optimizer.step()
                steps += 1
                progress.advance(len(batch), f"loss {float(losses.hidden.detach()):.4g}")
    return before, _measure(student, measured, config.batch), steps


@torch.no_grad()
def _measure(student: Student, snippets: Sequence[Ids], batch: int) -> Losses:
    """Mean over batches of contexts, each weighing as many as it holds."""
    losses = [(len(group), student.losses(group)) for group in _batches(snippets, batch)]

    def mean(values: list[tuple[int, Tensor]]) -> Tensor:
        return torch.stack([size * value for size, value in values]).sum() / len(snippets)

    hidden = mean([(size, loss.hidden) for size, loss in losses])
    predicted = [(size, loss.next_token) for size, loss in losses if loss.next_token is not None]
    return Losses(hidden, mean(predicted) if predicted else None)


def _batches(snippets: Sequence[Ids], size: int) -> Iterator[Sequence[Ids]]:
    return (snippets[start : start + size] for start in range(0, len(snippets), size))
