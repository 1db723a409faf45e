"""What a model knows right after the graft, before any training, by the way its new rows start.

    python benchmarks/graft_init.py --run RUN_DIR --base HF_DIR --language ja --out FILE \\
        [--init NAME='{"init": "distillation", "distillation": {"learning_rate": 1e-3}}' ...]

RUN_DIR has the corpus and tokenizer stages of a run that extends the base. For the base as it is and for
every init (a graft section in JSON; `mean` always) prints and appends to FILE, over held-out documents:

- bits per byte, the evaluate stage's protocol with windows of 256 tokens;
- mean squared difference of final hidden states, at the end of every token of the extended vocabulary;
- nats for the next token *of the base's vocabulary* at the same places, by the base's own output layer, which
  is what the input rows do alone: output rows have no part in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import tsugiki.pretrain.graft
from tsugiki.evaluation.scoring.bits_per_byte import bits_per_byte, score_documents
from tsugiki.evaluation.scoring.heldout import Document, heldout_documents
from tsugiki.evaluation.scoring.language_model import LanguageModel, load_language_model
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.conversion.distill import Student, load_model
from tsugiki.pretrain.conversion.distill_contexts import Expansion, Ids, collate
from tsugiki.pretrain.conversion.new_rows import Piece, read_pieces
from tsugiki.pretrain.convert import export_checkpoint
from tsugiki.pretrain.convert_config import DistillationConfig, ExportConfig, GraftConfig

_WINDOW = 256
_BASE_TOKENS = 200


def graft(run: Path, base: Path, settings: dict[str, Any], work: Path) -> tuple[Path, dict[str, Any]]:
    """Graft and export; the directory and ``graft.json``."""
    (work / "graft").mkdir(parents=True)
    inputs = {"base": base, "tokenizer": run / "tokenizer", "corpus": run / "corpus"}
    tsugiki.pretrain.graft.run(GraftConfig.model_validate(settings), inputs, work / "graft", StageContext())
    export = ExportConfig(verify=False)
    export_checkpoint(
        work / "graft", work / "hf", tokenizer_dir=run / "tokenizer", base_dir=base, config=export
    )
    return work / "hf", json.loads((work / "graft" / "graft.json").read_text())


def snippets(ids: Ids, expansion: Expansion) -> Iterator[Ids]:
    """A document in parts of at most so many tokens of the base."""
    ends, start = np.cumsum(expansion.lengths(ids)), 0
    while start < len(ids):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BASE_TOKENS, side="right")))
        yield ids[start:stop]
        start = stop


@torch.no_grad()
def without_output_rows(
    base: Path, model: LanguageModel | None, pieces: list[Piece], texts: list[Ids], start_id: int
) -> dict[str, float]:
    """Squared difference of states and nats per next base token; of the base itself where model is None."""
    model = load_model(base, DistillationConfig())
    table = model.get_input_embeddings().weight
    first = pieces[0].id
    rows = (
        table[: len(pieces)] if model is None else model.model.get_input_embeddings().weight[first:].float()
    )
    student, expansion = Student(model, pieces, [start_id], rows, None), Expansion(pieces)
    head = model.get_output_embeddings().weight[:first]
    squared = nats = 0.0
    elements = predicted = 0
    for ids in texts:
        for part in snippets(ids, expansion):
            new, old, ends, _ = collate([part], [start_id], expansion)
            teacher = model.base_model(input_ids=old, use_cache=False).last_hidden_state[0, ends[0]]
            states = teacher if model is None else student.states(new)[0]
            target = old[0, ends[0][:-1] + 1]
            logits = states[:-1] @ head.T
            nats += float(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
            predicted += len(target)
            squared += float((states - teacher).square().sum())
            elements += states.numel()
    return {"hidden_mean_square": squared / elements, "next_base_token_nats": nats / predicted}


def measure(
    run: Path, base: Path, documents: list[Document], settings: dict[str, Any] | None, work: Path
) -> dict[str, Any]:
    """All figures of one init, or of the base."""
    pieces = read_pieces(run / "tokenizer")
    record: dict[str, Any] = {"settings": settings}
    directory, start = base, time.monotonic()
    if settings is not None:
        directory, report = graft(run, base, settings, work)
        record |= {"seconds": round(time.monotonic() - start, 1), "distillation": report.get("distillation")}
    model = load_language_model(directory)
    scores = score_documents(model, documents, window=_WINDOW, stride=_WINDOW // 2)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    encoded = (tokenizer.encode(item.text, add_special_tokens=False).ids for item in documents)
    texts = [np.array(ids, np.int32) for ids in encoded]
    grafted = None if settings is None else model
    record |= {"bits_per_byte": bits_per_byte(scores), "bytes": sum(score.bytes for score in scores)}
    return record | without_output_rows(base, grafted, pieces, texts, model.start_id)


def main() -> None:
    """Measure the base, the mean and the inits asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--language", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", action="append", default=[], metavar="NAME=JSON")
    options = parser.parse_args()
    corpus = options.run / "corpus"
    documents = heldout_documents(CorpusIndex.load(corpus), corpus, options.language, maximum_bytes=200_000)
    asked: dict[str, dict[str, Any] | None] = {"base": None, "mean": {"init": "mean"}}
    asked |= {name: json.loads(value) for name, _, value in (item.partition("=") for item in options.init)}
    for name, settings in asked.items():
        with tempfile.TemporaryDirectory() as work:
            record = measure(options.run, options.base, documents, settings, Path(work))
        record = {"name": name, **record}
        print(json.dumps(record))
        with options.out.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
