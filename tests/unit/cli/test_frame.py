"""Errors, progress and the command line around them."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError
from tsugiki.experiment.progress import Progress
from tsugiki.experiment.run.status import read_status

ROOT = Path(__file__).resolve().parents[3]


def tsugiki(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "tsugiki", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip


def test_error_says_all_parts_and_survives_pickling() -> None:
    error = CheckpointError("too small", where="a/b", got=3, expected=5, fix="grow it")
    assert str(error) == "too small\n  where:    a/b\n  got:      3\n  expected: 5\n  fix:      grow it"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CheckpointError and str(again) == str(error)
    assert (ConfigError("x").exit_code, DataError("x").exit_code) == (2, 1)


def test_progress_line() -> None:
    stream = io.StringIO()
    with Progress("encode ja", total=2000, unit="docs", stream=stream) as progress:
        progress.expect(75, "2,000 docs in 3 files")
        progress.advance(500, note="loss 3.2")
        assert progress.line().startswith("encode ja: 500/2,000 docs  ")
        assert progress.line().endswith("left  loss 3.2")
        progress.advance(1500)
    assert stream.getvalue().startswith(
        "encode ja: 2,000 docs in 3 files, about 1:15 in all\nencode ja: 2,000/2,000 docs"
    )
    assert "\r" not in stream.getvalue(), "no control characters outside a terminal"


def test_command_line_starts_without_heavy_imports() -> None:
    code = "import tsugiki, sys; print([m for m in ('torch', 'transformers', 'mlflow', 'pydantic') if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
    code = "import tsugiki.pipeline, sys; print([m for m in ('torch', 'transformers', 'mlflow', 'datatrove') if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_help_lists_the_commands() -> None:
    answer = tsugiki("--help")
    assert answer.returncode == 0
    for command in ("run", "corpus", "tokenizer", "tokens", "graft", "train", "export", "evaluate", "status",
                    "convert", "doctor"):  # fmt: skip
        assert f" {command} " in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "no-such.yaml"], "no such configuration file"),
        (["run", "configs/smoke.yaml", "--set", "train.precison=bf16", "--dry-run"], "did you mean 'precision'?"),
        (["run", "configs/smoke.yaml", "--from", "trian", "--dry-run"], "--from names no stage"),
        (["run", "configs/smoke.yaml", "--set", "train.sequence_length=512"], "sequences are longer than the model's positions"),
        (["run", "configs/smoke.yaml", "--set", "tokens.mixture.weights={fr: 1}"], "weight for something the corpus does not have"),
        (["run", "configs/smoke.yaml", "--set", "tokens.mixture.total_tokens=10"], "smaller than one step"),
        (["run", "configs/smoke.yaml", "--set", "base.scratch.language=fr"], "no corpus source in this language"),
        (["run", "configs/smoke.yaml", "--set", "tokenizer.extend.languages={fr: 1}"], "no corpus source in this language"),
        (["run", "configs/recipes/swallow-7b.yaml"], "no base model here"),
        (["status", "no-such-run"], "no run here"),
        (["tokenizer", "report", "--tokenizer", "x", "--text", "en=a", "--out", "o"], "malformed --tokenizer"),
        (["frobnicate"], "No such command"),
        (["run", "configs/smoke.yaml", "--nope"], "No such option"),
    ],
)  # fmt: skip
def test_wrong_requests_exit_with_2(arguments: list[str], expected: str) -> None:
    answer = tsugiki(*arguments)
    assert answer.returncode == 2, answer.stdout + answer.stderr
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path, tmp_path: Path) -> None:
    answer = tsugiki("run", str(path), "--dry-run", "--set", f"run_dir={tmp_path}/run")
    assert answer.returncode == 0, answer.stderr
    assert "is valid" in answer.stdout
    assert not (tmp_path / "run").exists(), "a dry run writes nothing"


@pytest.mark.slow
def test_doctor() -> None:
    answer = tsugiki("doctor", "--json")
    assert answer.returncode == 0
    checks = {check["name"]: check for check in json.loads(answer.stdout)}
    assert checks["torch"]["state"] == "ok"
    assert "backend" in checks


def test_truncated_shard_is_an_error_with_a_line(tmp_path: Path) -> None:
    import zstandard

    lines = "".join(json.dumps({"id": str(number), "text": "x" * 50}) + "\n" for number in range(2000))
    whole = zstandard.ZstdCompressor().compress(lines.encode())
    (tmp_path / "ok.jsonl.zst").write_bytes(whole)
    assert len(list(read_shard(tmp_path / "ok.jsonl.zst"))) == 2000
    (tmp_path / "bad.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(b'{"id": "1"}\n{"id": '))
    with pytest.raises(DataError, match=r"bad\.jsonl\.zst, line 3|bad\.jsonl\.zst, line 2"):
        list(read_shard(tmp_path / "bad.jsonl.zst"))


def test_corpus_index_round_trip_and_errors(tmp_path: Path) -> None:
    source = CorpusSource(
        name="a", language="ja", train=["a/0.jsonl.zst"], heldout=[], train_documents=1, train_bytes=3,
        heldout_documents=0, heldout_bytes=0,
    )  # fmt: skip
    CorpusIndex(sources=[source]).save(tmp_path)
    assert CorpusIndex.load(tmp_path).languages == ["ja"]
    with pytest.raises(DataError, match="no corpus here"):
        CorpusIndex.load(tmp_path / "nowhere")
    (tmp_path / "index.json").write_text('{"schema_version": 2, "sources": []}')
    with pytest.raises(DataError, match="unreadable corpus index"):
        CorpusIndex.load(tmp_path)


def test_status_of_an_interrupted_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "train.partial").mkdir()
    (tmp_path / "train.partial" / "metrics.jsonl").write_text(
        '{"step": 10, "train/loss": 2.5, "throughput/tokens_per_second": 100}\n{"step": 11, "train/lo'
    )
    found = read_status(tmp_path)
    assert {stage.name: stage.state for stage in found.stages}["train"] == "partial"
    assert "step 10  loss 2.5000" in found.to_text()
