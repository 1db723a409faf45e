"""The tokens stage: encodes the corpus into Megatron datasets and plans the mixture.

Shards of the corpus are encoded in parallel into raw parts under ``.work`` (see
:mod:`tsugiki.data.tokenise.tokenise_shards`), then joined in order, so the result does not depend on the number of
workers and a killed run continues where it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsugiki.data.common.executor import ShardProgress
from tsugiki.data.config import CONVERSATIONS, TokensConfig
from tsugiki.data.tokenise.mixture_plan import Available, plan_stretches, plan_tokens
from tsugiki.data.tokenise.tokenise_shards import (
    SPLITS,
    Tokenisation,
    TokeniseTask,
    Vocabulary,
    load_chat_encoder,
    stored_type,
)
from tsugiki.experiment.artefacts.corpus_index import CorpusSource
from tsugiki.experiment.artefacts.indexed_dataset import concatenate
from tsugiki.experiment.artefacts.mixture import (
    Mixture,
    MixtureChange,
    MixtureSource,
    TokenSource,
    save_document_bytes,
)
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.files import atomic_file
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.experiment.text.chat_tokens import TEMPLATE_NAME


def run(
    config: TokensConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Encode the corpus and plan the mixture.

    Args:
        config: the tokens section.
        inputs: ``corpus`` and ``tokenizer``.
        output_dir: gets ``<source>.bin/.idx``, ``<source>.heldout.bin/.idx``, the bytes of each held-out
            document in ``<source>.heldout.bytes.npy``, and ``mixture.json``.
        context: workers.

    Raises:
        ConfigError: a weight that names nothing, more epochs than allowed.
        DataError: an unreadable corpus or tokenizer.
    """
    tokenizer_dir = inputs["tokenizer"].resolve()
    tokenisation = Tokenisation.open(config, inputs, output_dir)
    sources, vocabulary, tasks, work = (
        tokenisation.sources,
        tokenisation.vocabulary,
        tokenisation.tasks,
        tokenisation.work,
    )
    _check_weights(config, sources)
    _check_chat(config, sources, tokenizer_dir)
    start = time.monotonic()
    megabytes = [task.shard.stat().st_size / 1e6 for task in tasks]
    with ShardProgress("tokens encode", megabytes, tokenisation.documents) as progress:
        tokenisation.run(context.workers, on_task_done=progress.finished)
    seconds = time.monotonic() - start
    datasets = {source.name: _join(source, tasks, vocabulary, work, output_dir) for source in sources}
    if config.chat is not None:
        template = expand_path(config.chat.template).read_bytes()
        with atomic_file(output_dir / TEMPLATE_NAME) as file:
            file.write(template)
    mixture = _plan(config, sources, datasets, vocabulary)
    mixture.save(output_dir)
    return _result(mixture, seconds, tokenisation.text_bytes, tokenisation.special_tokens_in_text)


@dataclass(frozen=True)
class _Dataset:
    documents: int
    tokens: int
    bytes: int
    heldout_documents: int
    heldout_tokens: int
    heldout_bytes: int


def _check_weights(config: TokensConfig, sources: list[CorpusSource]) -> None:
    """Find a misspelt weight before hours of tokenisation."""
    weights = config.mixture.weights
    if isinstance(weights, dict) or config.mixture.changes:
        tokens = config.mixture.total_tokens
        pretend = [Available(item.name, item.language, item.weight, tokens) for item in sources]
        relaxed = config.mixture.model_copy(update={"max_epochs": 1e9})
        plan_tokens(relaxed, pretend)
    if not sources:
        raise DataError("the corpus has no documents", fix="run the corpus stage on sources with text")


def _check_chat(config: TokensConfig, sources: list[CorpusSource], tokenizer_dir: Path) -> None:
    """Find a missing or unusable chat template before hours of tokenisation."""
    names = [source.name for source in sources if source.kind in CONVERSATIONS]
    if config.chat is not None:
        load_chat_encoder(config.chat, tokenizer_dir)
    elif names:
        raise ConfigError(
            f"sources of conversations, but no chat template: {', '.join(names)}",
            where="tokens.chat",
            expected="the template conversations are written out with",
            fix="set tokens.chat.template, e.g. to one of configs/chat_templates/",
        )


def _join(
    source: CorpusSource, tasks: list[TokeniseTask], vocabulary: Vocabulary, work: Path, output_dir: Path
) -> _Dataset:
    numbers: list[int] = []
    for split in SPLITS:
        parts = [task.part for task in tasks if task.source == source.name and task.split == split]
        lengths, sizes = (
            np.concatenate([np.empty(0, dtype), *(np.load(work / f"{part}.{name}.npy") for part in parts)])
            for name, dtype in (("lengths", np.int32), ("bytes", np.int64))
        )
        if len(lengths):
            name = source.name if split == "train" else f"{source.name}.heldout"
            concatenate(
                output_dir / name,
                [work / f"{part}.ids" for part in parts],
                lengths,
                stored_type(source.kind, vocabulary),
            )
            if split == "heldout":
                save_document_bytes(output_dir, name, sizes)
        numbers += [len(lengths), int(lengths.sum(dtype=np.int64)), int(sizes.sum())]
    return _Dataset(*numbers)


def _plan(
    config: TokensConfig,
    sources: list[CorpusSource],
    datasets: Mapping[str, _Dataset],
    vocabulary: Vocabulary,
) -> Mixture:
    available = [
        Available(source.name, source.language, source.weight, datasets[source.name].tokens)
        for source in sources
    ]
    planned = plan_tokens(config.mixture, available)
    total = config.mixture.total_tokens
    entries: list[MixtureSource] = []
    untrained: list[TokenSource] = []
    for source in sources:
        dataset, tokens = datasets[source.name], planned.get(source.name, 0)
        encoded = TokenSource(
            name=source.name,
            language=source.language,
            kind=source.kind,
            prefix=source.name,
            heldout_prefix=f"{source.name}.heldout" if dataset.heldout_documents else None,
            **vars(dataset),
        )
        if tokens == 0:
            untrained.append(encoded)
            continue
        share, epochs = tokens / total, tokens / dataset.tokens
        entries.append(MixtureSource(**vars(encoded), share=share, planned_tokens=tokens, epochs=epochs))
    if not entries:
        raise ConfigError("no source has a share of the mixture", where="tokens.mixture")
    return Mixture(
        vocabulary_size=vocabulary.size,
        bos_id=vocabulary.bos_id if config.add_bos else None,
        eod_id=vocabulary.eod_id,
        total_tokens=total,
        sources=entries,
        changes=[
            MixtureChange(from_tokens=start, shares=shares)
            for start, _, shares in (
                plan_stretches(config.mixture, available) if config.mixture.changes else ()
            )
        ],
        untrained=untrained,
    )


def _result(mixture: Mixture, seconds: float, text_bytes: int, special_tokens_in_text: int) -> StageResult:
    tokens = sum(source.tokens + source.heldout_tokens for source in mixture.sources)
    metrics: dict[str, float] = {
        "tokens/total": float(sum(source.tokens for source in mixture.sources)),
        "tokens/encode_megabytes_per_second": text_bytes / 1e6 / max(seconds, 1e-9),
        "tokens/encode_tokens_per_second": tokens / max(seconds, 1e-9),
    }
    for source in mixture.sources:
        metrics[f"tokens/{source.name}/tokens"] = source.tokens
        metrics[f"tokens/{source.name}/share"] = source.share
        metrics[f"tokens/{source.name}/epochs"] = source.epochs
        metrics[f"tokens/{source.name}/bytes_per_token"] = source.bytes / source.tokens
    summary = [
        f"{source.name}: {source.tokens:,} tokens ({source.bytes / 1e6:,.2f} MB), share {source.share:.1%}, "
        f"{source.planned_tokens:,} planned = {source.epochs:.2f} epochs"
        for source in mixture.sources
    ]
    if mixture.untrained:
        names = ", ".join(f"{source.name} {source.tokens:,}" for source in mixture.untrained)
        summary.append(f"not trained on, as no weight names them (validated only): {names} tokens")
    if special_tokens_in_text:
        summary.append(f"{special_tokens_in_text:,} times a text spells a special token: encoded as text")
    return StageResult(
        counts={
            "special_tokens_in_text": special_tokens_in_text,
            "tokens": sum(source.tokens for source in mixture.sources),
            "documents": sum(source.documents for source in mixture.sources),
            "total_tokens": mixture.total_tokens,
        },
        metrics=metrics,
        artifacts=("mixture.json",),
        summary=tuple(summary),
    )
