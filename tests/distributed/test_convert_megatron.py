"""Imported checkpoints in Megatron: keys, loading under every layout, logits against transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

from convert_material import CASES, Case, make_model, read_weights, same_bits, write_tokenizer  # noqa: E402

from tsugiki.pretrain.conversion.import_hf import write_import  # noqa: E402
from tsugiki.pretrain.conversion.verify import compare_logits, hf_logits, pseudo_random_ids  # noqa: E402
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint  # noqa: E402
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig  # noqa: E402

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "tp4": {"tensor": 4},
    "pp4": {"pipeline": 4},
    "tp2-pp2-vp2": {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2},
}


def run_ranks(jobs: list[dict[str, Any]], world_size: int, folder: Path) -> None:
    (folder / "jobs.json").write_text(json.dumps(jobs))
    worker = ROOT / "tests" / "support" / "convert_worker.py"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "STORE": str(folder / "store"),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(folder / "jobs.json")],
            env={**environment, "RANK": str(rank), "WORLD_SIZE": str(world_size)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(world_size)
    ]
    errors = [process.communicate(timeout=900)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, "\n".join(
        error[-2000:] for error in errors
    )


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Any], list[Any]]]:
    """Logits of transformers and of Megatron for every case, Megatron in one process."""
    folder = tmp_path_factory.mktemp("logits")
    jobs, theirs = [], {}
    for case in CASES:
        base = make_model(case, folder / case.name / "base")
        size = int(json.loads((base / "config.json").read_text())["vocab_size"])
        sequences = pseudo_random_ids(size, 128)
        sequences = [sequences[0][:96], sequences[0][96:]]
        import_checkpoint(base, folder / case.name / "megatron")
        theirs[case.name] = hf_logits(base, sequences)
        jobs.append(
            {
                "model": str(folder / case.name / "megatron"),
                "layout": {},
                "sequences": sequences,
                "logits": str(folder / case.name / "logits.pt"),
            }
        )
    run_ranks(jobs, 1, folder)
    return {case.name: (theirs[case.name], torch.load(folder / case.name / "logits.pt")) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_agree_with_transformers(case: Case, logits: dict[str, tuple[list[Any], list[Any]]]) -> None:
    report = compare_logits(*logits[case.name])
    assert report.tokens == 128
    assert report.largest_logit > 0.1
    assert report.max_difference <= 1e-5
    assert report.argmax_agreement == 1.0


CONTEXTS: dict[str, dict[str, Any]] = {
    "theta": {"rope_theta": 5e5},
    "linear": {"rope_scaling": {"type": "linear"}},
    "llama3": {"rope_scaling": {"type": "llama3", "factor": 8.0}, "rope_theta": 5e5},
    "yarn": {"rope_scaling": {"type": "yarn"}},
}


def test_a_longer_context_is_the_same_function_in_transformers(tmp_path: Path) -> None:
    """Base with 32 positions, grafted to 128: Megatron with model.json against transformers on the export."""
    base = make_model(Case("short", "Llama", {"max_position_embeddings": 32}), tmp_path / "base")
    plain = json.loads((base / "config.json").read_text())
    sequences = [pseudo_random_ids(97, 128)[0]]
    unchanged = hf_logits(base, sequences)
    jobs, theirs = [], {}
    for name, context in CONTEXTS.items():
        config = GraftConfig(max_positions=128, **context)
        graft = tmp_path / name
        graft.mkdir()
        write_import(base, graft, tokenizer_dir=None, config=config)
        jobs.append(
            {
                "model": str(graft),
                "layout": {},
                "sequences": sequences,
                "logits": str(tmp_path / f"{name}.pt"),
            }
        )
        # transformers with nothing of ours but the changed config.json.
        exported = json.loads((graft / "hf_config.json").read_text())
        changed = tmp_path / f"{name}-hf"
        shutil.copytree(base, changed)
        keys = ("max_position_embeddings", "rope_parameters")
        (changed / "config.json").write_text(json.dumps({**plain, **{key: exported[key] for key in keys}}))
        assert exported["max_position_embeddings"] == 128
        theirs[name] = hf_logits(changed, sequences)
        assert compare_logits(theirs[name], unchanged).max_difference > 1e-3
    run_ranks(jobs, 1, tmp_path)
    for name in CONTEXTS:
        report = compare_logits(theirs[name], torch.load(tmp_path / f"{name}.pt"))
        assert report.tokens == 128
        assert report.max_difference <= 1e-5, name


def test_every_layout_loads_and_exports_the_same_model(tmp_path: Path) -> None:
    # 103 rows: divisible by no tensor parallelism, so every layout pads.
    case = Case("gqa", "Llama", {"num_attention_heads": 8, "num_key_value_heads": 4})
    base = make_model(case, tmp_path / "base")
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 97, [[1, 2], [3], [4, 5, 6], [7], [8], []])
    import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=tokenizer)
    export = ExportConfig(verify=False)
    export_checkpoint(tmp_path / "megatron", tmp_path / "plain", tokenizer_dir=tokenizer, config=export)
    expected = {name: tensor * 1.3 for name, tensor in read_weights(tmp_path / "plain").items()}
    jobs = []
    for name, layout in LAYOUTS.items():
        train = tmp_path / name
        train.mkdir()
        for file in ("model.json", "hf_config.json"):
            (train / file).write_bytes((tmp_path / "megatron" / file).read_bytes())
        scaled = str(train / "checkpoints" / "iter_0000003")
        jobs.append({"model": str(tmp_path / "megatron"), "layout": layout, "scaled": scaled, "factor": 1.3})
    run_ranks(jobs, 4, tmp_path)
    for name in LAYOUTS:
        (tmp_path / name / "checkpoints" / "iter_0000003" / "checkpoint.json").write_text('{"iteration": 3}')
        export_checkpoint(tmp_path / name, tmp_path / f"{name}-hf", tokenizer_dir=tokenizer, config=export)
        after = read_weights(tmp_path / f"{name}-hf")
        assert sorted(after) == sorted(expected)
        assert [key for key in expected if not same_bits(expected[key], after[key])] == [], name
