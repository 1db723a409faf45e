"""The graft and export stages of an experiment over tiny inputs, and a program that is killed while it runs them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert_material import Case, make_model, write_tokenizer

import tsugiki.pretrain.conversion.export_hf
import tsugiki.pretrain.conversion.import_hf
from tsugiki.experiment.run.graph import Graph
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pipeline import ExperimentConfig, stages

CASE = Case("resumed", "Llama", {"vocab_size": 5000, "hidden_size": 64})
MODULES = {
    "graft": tsugiki.pretrain.conversion.import_hf,
    "export": tsugiki.pretrain.conversion.export_hf,
}
# So that this model has several files in the checkpoint too.
tsugiki.pretrain.conversion.import_hf._FILE_BYTES = 300_000


def make_inputs(folder: Path) -> None:
    """Base, extended tokenizer, and what the export reads besides."""
    from tsugiki.pretrain.convert import import_checkpoint

    make_model(CASE, folder / "base")
    write_tokenizer(folder / "tokenizer", 5000, [[1, 2], [3], [4], []])
    graft = folder / "imported"
    import_checkpoint(folder / "base", graft, tokenizer_dir=folder / "tokenizer")
    iteration = folder / "train" / "checkpoints" / "iter_0000005"
    shutil.copytree(graft / "checkpoint", iteration)
    (iteration / "checkpoint.json").write_text(json.dumps({"iteration": 5, "consumed_tokens": 512}))
    for name in ("model.json", "hf_config.json"):
        shutil.copy(graft / name, folder / "train" / name)


def graph(folder: Path, **sections: Any) -> Graph:
    """The experiment's two stages, the others' directories given."""
    config = ExperimentConfig.model_validate(
        {
            "name": "resumed",
            "base": {"path": str(folder / "base")},
            "corpus": {"sources": [{"name": "ja", "language": "ja", "path": "ja.jsonl", "format": "jsonl"}]},
            "tokens": {"mixture": {"total_tokens": 1000}},
            "export": {"shard_bytes": 1_000_000, "verify": False},
            **sections,
        }
    )
    chosen = [
        replace(stage, inputs=given, external={name: folder / name for name in given})
        for stage in stages(config)
        if stage.name in MODULES
        and (given := tuple(name for name in stage.inputs if name not in ("tokens", "corpus")))
    ]
    return Graph(chosen, folder / "run", StageContext(workers=1), announce=lambda line: None)


def counted(stage: str, limit: int | None, kill: bool = True) -> list[int]:
    """Count the copies of a stage from now on; at the given one the process is killed (or the work interrupted)."""
    module: Any = MODULES[stage]
    copy = tsugiki.pretrain.formats.byte_ranges.copy_range
    calls: list[int] = []

    def counting(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == limit:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        copy(*arguments)

    module.copy_range = counting
    return calls


def run(folder: Path, stage: str, **sections: Any) -> None:
    """Run one of the stages as ``tsugiki run`` does."""
    made = graph(folder, **sections)
    made.run([made.stages[stage]], made.stages[stage].config)


if __name__ == "__main__":
    counted(sys.argv[2], int(sys.argv[3]))
    run(Path(sys.argv[1]), sys.argv[2])
