"""The base stage: a tiny model trained from random weights, saved as a Hugging Face directory.

Only for `base: {scratch: ...}`, where no real base model can be downloaded. It goes the way every
model here goes: Hugging Face weights (random ones) -> Megatron -> training -> Hugging Face, with the
same code, so what follows cannot tell it from a published base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, Split
from tsugiki.experiment.artefacts.indexed_dataset import write_indexed
from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource, save_document_bytes
from tsugiki.experiment.config.paths import expand_path
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer
from tsugiki.experiment.text.tokenizer_files import OpenedTokenizer, open_tokenizer
from tsugiki.pretrain import train
from tsugiki.pretrain.config import (
    BaseConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    ScratchConfig,
    TrainConfig,
)
from tsugiki.pretrain.conversion.export_hf import write_export
from tsugiki.pretrain.conversion.import_hf import write_import
from tsugiki.pretrain.conversion.trained_model import find_checkpoint
from tsugiki.pretrain.convert_config import GraftConfig
from tsugiki.pretrain.runtime.job import METRICS_NAME, WORK_NAME

_ENCODED_TOGETHER = 256
_SHARD_BYTES = 5_000_000_000
_LOGS_PER_RUN = 20
_HELDOUT_BYTES = 80_000


def run(
    config: BaseConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Train the base model of `base.scratch` on the corpus and write it to `output_dir`.

    Raises:
        ConfigError: the configuration names a path instead, or an unknown tokenizer.
        DataError: the corpus has no text in the language of the base.
    """
    scratch = config.scratch
    if scratch is None:
        raise ConfigError(
            "there is nothing to train", where="base", got=f"path: {config.path}", expected="base.scratch"
        )
    work = output_dir / WORK_NAME
    tokens, graft, trained, exported = (work / name for name in ("tokens", "graft", "train", "export"))
    for folder in (work / "random", tokens, graft, trained, exported):
        folder.mkdir(parents=True, exist_ok=True)
    write_hf_tokenizer(_tokenizer_model(scratch), output_dir)
    mixture = write_tokens(scratch, inputs["corpus"], output_dir, tokens)
    write_random_model(scratch, mixture, work / "random", context.seed)
    write_import(work / "random", graft, tokenizer_dir=None, config=GraftConfig(), seed=context.seed)
    result = train.run(train_config(scratch), {"graft": graft, "tokens": tokens}, trained, context)
    write_export(
        find_checkpoint(trained),
        exported,  # a conversion that begins anew empties its folder
        tokenizer_dir=None,
        base_dir=None,
        dtype=None,
        shard_bytes=_SHARD_BYTES,
    )
    for path in [*exported.iterdir(), trained / METRICS_NAME]:
        if path.is_file():
            path.replace(output_dir / path.name)
    return StageResult(
        counts={**result.counts, "tokens_available": mixture.sources[0].tokens},
        metrics=result.metrics,
        artifacts=(METRICS_NAME,),
        summary=result.summary,
    )


def _tokenizer_model(config: ScratchConfig) -> Path:
    if config.tokenizer == "mistral-v1":
        return mistral_v1_model()
    path = expand_path(config.tokenizer)
    if not path.is_file():
        raise ConfigError(
            "no such tokenizer",
            where="base.scratch.tokenizer",
            got=config.tokenizer,
            expected="mistral-v1 or the path of a SentencePiece model",
        )
    return path


def write_tokens(config: ScratchConfig, corpus_dir: Path, tokenizer_dir: Path, tokens_dir: Path) -> Mixture:
    """Encode the corpus's text of the base's language; writes a mixture of that one source.

    Raises:
        DataError: the corpus has no text in that language, or the tokenizer no end-of-sequence token.
    """
    index = CorpusIndex.load(corpus_dir)
    sources = [source for source in index.sources if source.language == config.language]
    size = sum(source.train_bytes for source in sources)
    if size == 0:
        raise DataError(
            "the corpus has no text to train the base on",
            where="base.scratch.language",
            got=config.language,
            expected=f"one of {', '.join(index.languages)}",
            fix="add a source in that language to corpus.sources, or set base.scratch.language",
        )
    tokenizer = open_tokenizer(tokenizer_dir, special_tokens_in_text=False)
    bos, eod = tokenizer.bos_id, tokenizer.require_eos("to end documents with")
    counts = {}
    sizes = [len(text.encode()) for text in _texts(index, corpus_dir, config.language, "heldout")]
    save_document_bytes(tokens_dir, "base.heldout", sizes)
    for split, name in (("train", "base"), ("heldout", "base.heldout")):
        texts = _texts(index, corpus_dir, config.language, split)  # type: ignore[arg-type]
        documents = _encode(tokenizer, texts, bos, eod)
        counts[split] = write_indexed(tokens_dir / name, documents, tokenizer.size)
    mixture = Mixture(
        vocabulary_size=tokenizer.size,
        bos_id=bos,
        eod_id=eod,
        total_tokens=max(config.train_tokens, config.global_batch * config.sequence_length),
        sources=[
            MixtureSource(
                name="base",
                language=config.language,
                prefix="base",
                heldout_prefix="base.heldout" if counts["heldout"][0] else None,
                documents=counts["train"][0],
                tokens=counts["train"][1],
                bytes=size,
                heldout_documents=counts["heldout"][0],
                heldout_tokens=counts["heldout"][1],
                heldout_bytes=sum(sizes),
                share=1.0,
                planned_tokens=config.train_tokens,
                epochs=config.train_tokens / counts["train"][1],
            )
        ],
    )
    mixture.save(tokens_dir)
    return mixture


def _texts(index: CorpusIndex, corpus_dir: Path, language: str, split: Split) -> Iterator[str]:
    for document in index.documents(corpus_dir, split, language=language):
        if document["text"]:
            yield document["text"]


def _encode(
    tokenizer: OpenedTokenizer, texts: Iterator[str], bos: int | None, eod: int
) -> Iterator[list[int]]:
    prefix = [] if bos is None else [bos]
    while group := list(islice(texts, _ENCODED_TOGETHER)):
        for ids in tokenizer.encode_batch(group):
            yield [*prefix, *ids, eod]


def write_random_model(config: ScratchConfig, mixture: Mixture, directory: Path, seed: int) -> None:
    """Save a randomly initialised model of the configured shape with transformers."""
    import torch
    import transformers

    shape = transformers.AutoConfig.for_model(
        **config.hf_config(mixture.vocabulary_size),
        initializer_range=config.initializer_range,
        bos_token_id=mixture.bos_id,
        eos_token_id=mixture.eod_id,
    )
    with torch.random.fork_rng(devices=[]), _quiet_transformers():
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(directory)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar over the one shard of a tiny model."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def train_config(config: ScratchConfig) -> TrainConfig:
    """The training of a base as a train section."""
    tokens_per_step = config.global_batch * config.sequence_length
    steps = max(config.train_tokens // tokens_per_step, 1)
    return TrainConfig(
        parallel=ParallelConfig(data=config.processes),
        sequence_length=config.sequence_length,
        micro_batch=config.micro_batch or config.global_batch // config.processes,
        global_batch=config.global_batch,
        precision="fp32",
        optimizer=OptimizerConfig(
            learning_rate=config.learning_rate,
            minimum_learning_rate=config.learning_rate / 10,
        ),
        schedule=ScheduleConfig(
            kind="cosine",
            warmup_tokens=min(int(config.train_tokens * config.warmup_fraction), steps * tokens_per_step - 1),
        ),
        save_interval_steps=steps,
        keep_last_checkpoints=1,
        log_interval_steps=max(steps // _LOGS_PER_RUN, 1),
        validation_interval_steps=steps,
        validation_bytes_per_language=_HELDOUT_BYTES,
    )
