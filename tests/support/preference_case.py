"""The pairs and the model of benchmarks/preference_trl.py as inputs of our stages."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
from training_case import GLOBAL_BATCH, ROOT, SEQUENCE, VOCABULARY, write_graft

from tsugiki.experiment.artefacts.indexed_dataset import write_indexed
from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource, save_document_bytes
from tsugiki.experiment.text.chat_tokens import mark
from tsugiki.pretrain.training.preference import reference

TABLE = json.loads((ROOT / "tests/fixtures/preference/trl.json").read_text())["cases"]
"""What TRL says of them."""


def trl_script() -> ModuleType:
    """benchmarks/preference_trl.py."""
    spec = importlib.util.spec_from_file_location("preference_trl", ROOT / "benchmarks/preference_trl.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_case(directory: Path, steps: int) -> None:
    """`graft/` with the policy's weights, `tokens/` with the pairs, held out as well as trained on."""
    script = trl_script()
    write_graft(directory, change=lambda model: script.set_weights(model, 0.0), max_position_embeddings=256)
    tokens = directory / "tokens"
    tokens.mkdir()
    documents = [
        [mark(token, place >= len(prompt)) for place, token in enumerate(prompt + answer)]
        for prompt, *answers in script.pairs()
        for answer in answers
    ]
    for name in ("pairs", "pairs.heldout"):
        count, total = write_indexed(tokens / name, documents, 100_000)
        save_document_bytes(tokens, name, [1] * count)
    size = steps * GLOBAL_BATCH * SEQUENCE
    source = MixtureSource(
        name="pairs", language="en", kind="preference", prefix="pairs", heldout_prefix="pairs.heldout",
        documents=count, tokens=total, bytes=count, heldout_documents=count, heldout_tokens=total,
        heldout_bytes=count, share=1.0, planned_tokens=size, epochs=1.0,
    )  # fmt: skip
    Mixture(vocabulary_size=VOCABULARY, bos_id=1, eod_id=2, total_tokens=size, sources=[source]).save(tokens)


def write_reference(directory: Path, values: Any, graft: Path, tokens: Path) -> None:
    """`reference/` with values of another model, as if this graft had made them."""
    directory.mkdir()
    for name in ("pairs", "pairs.heldout"):
        reference.save(directory, name, numpy.array(values))
    reference.Reference(model=reference.mark(graft), tokens=reference.mark(tokens)).save(directory)
