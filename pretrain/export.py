"""The export stage: trained checkpoint -> Hugging Face directory, verified."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.run.stage import StageContext, StageResult
from tsugiki.experiment.text.chat_tokens import TEMPLATE_NAME
from tsugiki.pretrain.conversion.export_hf import export_and_verify
from tsugiki.pretrain.conversion.model_card import CARD_NAME, write_card
from tsugiki.pretrain.conversion.verify import VERIFY_NAME
from tsugiki.pretrain.convert_config import ExportConfig


def run(
    config: ExportConfig, inputs: Mapping[str, Path], output_dir: Path, context: StageContext
) -> StageResult:
    """Write a Hugging Face directory with tokenizer, model card and ``verify.json``.

    Args:
        config: the ``export`` section.
        inputs: ``train`` and ``tokenizer``; ``base``, ``tokens`` and ``corpus`` add to the model card.
        output_dir: exists; what an interrupted export of the same left there is gone on with.
        context: workers and name of the experiment.

    Raises:
        ConfigError: the iteration does not exist.
        CheckpointError: the checkpoint is damaged, or the verification failed.
        DataError: tokenizer and matrices differ in size.
        EnvironmentError_: not enough disk space.
    """
    model, counts, verification = export_and_verify(
        inputs["train"],
        output_dir,
        config,
        tokenizer_dir=inputs["tokenizer"],
        base_dir=inputs.get("base"),
        texts=lambda: _texts(inputs),
        workers=min(context.workers, 4),
    )
    if "tokens" in inputs and (template := inputs["tokens"] / TEMPLATE_NAME).is_file():
        shutil.copyfile(template, output_dir / TEMPLATE_NAME)
    write_card(output_dir, config, model, inputs, context.experiment_name, verification)
    summary = [f"{counts['parameters']:,} parameters in {counts['files']} files, {counts['dtype']}"]
    metrics: dict[str, float] = {}
    if (logits := verification.get("logits")) is not None:
        summary.append(
            f"logits of transformers and Megatron at most {logits['max_difference']:.2g} apart"
            f" over {logits['tokens']} tokens"
        )
        metrics = {
            "verify/max_logit_difference": logits["max_difference"],
            "verify/argmax_agreement": logits["argmax_agreement"],
        }
    if (told := _misread(verification.get("tokenizer", {}))) is not None:
        summary.append(told)
    artifacts = (CARD_NAME, "config.json", *((VERIFY_NAME,) if config.verify else ()))
    return StageResult(counts=counts, metrics=metrics, artifacts=artifacts, summary=tuple(summary))


def _misread(found: Mapping[str, Any]) -> str | None:
    """What to say where ``AutoTokenizer`` of the exported folder does not cut text as the model was trained."""
    if "error" in found:
        return f"AutoTokenizer cannot read the tokenizer: {found['error']}"
    if not found.get("differ"):
        return None
    return (
        f"AutoTokenizer takes {found['class']} for this model_type, which cuts {found['differ']} of {found['texts']} "
        "texts otherwise than the model was trained: load tokenizer.json with PreTrainedTokenizerFast (verify.json)"
    )


def _texts(inputs: Mapping[str, Path]) -> Iterator[str]:
    """Held-out text of every language in turn."""
    if "corpus" not in inputs:
        return
    corpus = CorpusIndex.load(inputs["corpus"])
    streams = [
        corpus.documents(inputs["corpus"], "heldout", language=language) for language in corpus.languages
    ]
    while streams:
        for stream in list(streams):
            document = next(stream, None)
            if document is None:
                streams.remove(stream)
            elif document["text"]:
                yield document["text"]
