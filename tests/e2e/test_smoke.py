"""The whole graph on the fixtures, TP2 x PP2 in four processes, and what a user does with it afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chaos import Chaos, Moment
from cyclonedx_schema import check_cyclonedx
from pages import run_section, sections
from training_case import server

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["corpus", "base", "tokenizer", "tokens", "graft", "train", "export", "evaluate", "report"]
LANGUAGES = {"en", "ja", "zh", "vi", "id", "th", "ms", "km", "lo", "my", "tl"}


def command(run_dir: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "tsugiki", "run", "configs/smoke.yaml", "--set", f"run_dir={run_dir}", *arguments,
    ]  # fmt: skip


def tsugiki(run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(run_dir, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )


def forked_command(run_dir: Path, folder: Path, *arguments: str) -> tuple[int, str]:
    """The same forked from a process that has its libraries; exit status, and all that it says."""
    code = f"""
import os, sys
os.chdir({str(ROOT)!r})
sys.argv = ["tsugiki", *{command(run_dir, *arguments)[3:]!r}]
from tsugiki.cli.main import main
try:
    main()
except SystemExit as ended:
    sys.stdout.flush()
    os._exit(ended.code)
"""
    (status,) = server().statuses(folder / "console", code)
    return status, (folder / "console.0").read_text()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smoke") / "runs" / "smoke"
    answer = tsugiki(path)
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-6000:]
    return path


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def split_lines(text: str) -> list[str]:
    """A document whole and by sentence, with the spaces and line ends that are between them."""
    return [text, *(part for part in re.split(r"(?<=[.!?。！？។။\n])", text) if part)]


def in_new_process(code: str, *arguments: str) -> Any:
    """Run code in a fresh interpreter outside the checkout; it prints one JSON value."""
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd="/", capture_output=True, text=True, timeout=900,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.strip().splitlines()[-1])


def test_every_stage_is_complete_and_a_second_run_skips_all(run_dir: Path) -> None:
    for stage in STAGES:
        assert (run_dir / stage / "manifest.json").is_file()
    assert not list(run_dir.glob("*.partial"))
    answer = tsugiki(run_dir)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("skipped, complete and unchanged") == len(STAGES)


def test_a_change_redoes_exactly_what_follows(run_dir: Path) -> None:
    answer = tsugiki(run_dir, "--dry-run", "--set", "graft.dtype=bf16")
    actions = dict(line.split()[:2] for line in answer.stdout.splitlines()[1:])
    assert [actions[stage] for stage in STAGES] == ["skip"] * 4 + ["run"] * 5


def test_export_loads_in_a_separate_process_and_generates(run_dir: Path) -> None:
    found = in_new_process(
        """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], low_cpu_mem_usage=True)
ids = tokenizer("東京は日本の首都です。", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=4, do_sample=False)
rows = [model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0]]
print(json.dumps({"rows": rows, "config": model.config.vocab_size, "tokenizer": len(tokenizer),
                  "generated": out.shape[1] - ids["input_ids"].shape[1], "finite": bool(torch.isfinite(model(**ids).logits).all())}))
""",
        str(run_dir / "export"),
    )
    added = len((run_dir / "tokenizer" / "pieces.tsv").read_text(encoding="utf-8").splitlines()) - 1
    assert added >= 256
    assert found["rows"] == [32000 + added] * 2
    assert found["config"] == found["tokenizer"] == 32000 + added
    assert found["finite"] and 1 <= found["generated"] <= 4


def test_logits_match_megatron(run_dir: Path) -> None:
    verified = read_json(run_dir / "export" / "verify.json")
    assert verified["logits"]["max_difference"] <= 1e-4
    assert verified["logits"]["tokens"] > 0


def test_tokenizer_agrees_with_sentencepiece_and_keeps_english(run_dir: Path) -> None:
    import sentencepiece
    from tokenizers import Tokenizer

    from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model

    extended = sentencepiece.SentencePieceProcessor(model_file=str(run_dir / "export" / "tokenizer.model"))
    base = sentencepiece.SentencePieceProcessor(model_file=str(mistral_v1_model()))
    fast = Tokenizer.from_file(str(run_dir / "export" / "tokenizer.json"))
    texts = {
        path.stem: [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (ROOT / "tests" / "fixtures" / "text").glob("*.jsonl")
    }
    assert set(texts) == LANGUAGES
    lines = [line for documents in texts.values() for text in documents for line in split_lines(text)]
    assert len(lines) >= 1000
    for line in lines:
        assert fast.encode(line, add_special_tokens=False).ids == extended.encode(line)
    for line in texts["en"]:
        assert extended.encode(line) == base.encode(line)
    assert sum(len(extended.encode(line)) for line in texts["km"]) < 0.9 * sum(
        len(base.encode(line)) for line in texts["km"]
    )


def test_tokens_are_read_by_megatron_and_hold_the_corpus(run_dir: Path) -> None:
    found = in_new_process(
        f"""
import sys, json
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.artefacts.mixture import Mixture
run = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
index, mixture = CorpusIndex.load(run / "corpus"), Mixture.load(run / "tokens")
compared = 0
for source in mixture.sources:
    for split, prefix in (("train", source.prefix), ("heldout", source.heldout_prefix)):
        texts = [item["text"] for item in index.documents(run / "corpus", split, source=source.name)]
        if prefix is None:
            assert not texts
            continue
        dataset = IndexedDataset(str(run / "tokens" / prefix))
        assert len(dataset) == len(texts), (source.name, split)
        for ids, text in zip(dataset, texts):
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            assert list(ids) == [mixture.bos_id, *expected, mixture.eod_id]
            compared += 1
print(json.dumps(compared))
""",
        str(run_dir),
    )
    assert found > 250


def test_mixture_is_exact_and_metrics_cover_the_run(run_dir: Path) -> None:
    mixture = read_json(run_dir / "tokens" / "mixture.json")
    assert sum(source["share"] for source in mixture["sources"]) == pytest.approx(1)
    records = [json.loads(line) for line in (run_dir / "train" / "metrics.jsonl").read_text().splitlines()]
    losses = [record for record in records if "train/loss" in record]
    assert losses[-1]["consumed_tokens"] == mixture["total_tokens"] == 16384
    assert losses[-1]["train/loss"] < losses[0]["train/loss"]
    validated = {
        key.rsplit("/", 1)[1]
        for record in records
        for key in record
        if key.startswith("validation/bits_per_byte/")
    }
    assert validated == LANGUAGES


def test_evaluation_and_report(run_dir: Path) -> None:
    results = read_json(run_dir / "evaluate" / "results.json")
    for side in ("base", "result"):
        assert set(results[side]["bits_per_byte"]) == LANGUAGES
        assert all(0 < value < 40 for value in results[side]["bits_per_byte"].values())
    page = (run_dir / "report" / "index.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="/' not in page
    for heading in ("Corpus", "Mixture", "Tokenizer", "Training", "Bits per byte"):
        assert heading.lower() in page.lower()


def test_mlflow_store(run_dir: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tsugiki")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"smoke", *STAGES}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    train = runs["train"]
    assert train.data.tags["mlflow.parentRunId"] == runs["smoke"].info.run_id
    history = client.get_metric_history(train.info.run_id, "train/loss")
    logged = [json.loads(line) for line in (run_dir / "train" / "metrics.jsonl").read_text().splitlines()]
    expected = {record["step"]: record["train/loss"] for record in logged if "train/loss" in record}
    assert {point.step: point.value for point in history} == pytest.approx(expected)
    assert "report.html" in {item.path for item in client.list_artifacts(runs["corpus"].info.run_id)}


def test_kill_9_during_training_then_rerun_gives_the_same_model(run_dir: Path, tmp_path: Path) -> None:
    """A round of the kill loop: all processes at once after a checkpoint; the comparison of the whole run is its own."""
    copy = tmp_path / "runs" / "run"
    shutil.copytree(run_dir, copy)
    for stage in ("train", "export", "evaluate", "report"):
        shutil.rmtree(copy / stage)
    chaos = Chaos([sys.executable, "-m", "tsugiki", "run", "configs/smoke.yaml"], run_dir)
    moment = Moment("train", 0, whole_tree=True, signal=signal.SIGKILL, after_checkpoint=True)
    done = chaos.play(1, "smoke", copy.parent, [moment])
    assert done.problems == []
    assert [(kill["stage"], kill["victim"]) for kill in done.kills] == [("train", "all")]
    assert done.exits == [-signal.SIGKILL, 0]
    assert (
        "train: interrupted earlier, continues" in (copy.parent.with_name("runs.logs") / "1.out").read_text()
    )
    assert (copy / "export" / "model.safetensors").read_bytes() == (
        run_dir / "export" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["--set", "corpus.sources.fixture-ja.path=tests/fixtures/text/nowhere.jsonl"], "fixture-ja", 2),
        (["--set", "corpus.sources.fixture-ja.language=km", "--set", "tokenizer.extend.languages={km: 1}"], "fixture-ja", 1),
        (["--set", "train.parallel.tensor=3"], "train.parallel.tensor", 2),
        (["--set", "tokens.mixture.max_epochs=0.01", "--from", "tokens", "--until", "tokens"], "epochs", 2),
    ],
    ids=["missing file", "wrong language", "layout that does not divide", "too many epochs"],
)  # fmt: skip
def test_bad_requests_leave_nothing_half_done(
    run_dir: Path, tmp_path: Path, arguments: list[str], message: str, status: int
) -> None:
    copy = tmp_path / "runs" / "smoke"
    shutil.copytree(run_dir, copy)
    before = {stage: (copy / stage / "manifest.json").read_bytes() for stage in STAGES}
    ended, said = forked_command(copy, tmp_path, "--set", "tracking.enabled=false", *arguments)
    assert ended == status, said
    assert message in said and "Traceback" not in said
    assert {stage: (copy / stage / "manifest.json").read_bytes() for stage in STAGES} == before


def test_the_recorded_configuration_gives_the_same_results(run_dir: Path, tmp_path: Path) -> None:
    """What `tsugiki provenance` wrote is enough to make the corpus and the checked digests again."""
    from tsugiki.provenance import BOM_NAME, differences, properties, write_provenance

    written = write_provenance(run_dir, tmp_path / "provenance")
    bom = read_json(written / BOM_NAME)
    check_cyclonedx(bom)
    assert {
        item["slice"]
        for item in bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    } == LANGUAGES
    recorded = properties(bom["metadata"]["component"])
    assert {name.split(":")[2] for name in recorded if name.endswith(":digest")} == set(STAGES)
    again = tmp_path / "runs" / "again"
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "tsugiki", "run", str(written / "config.yaml"), "--until", "corpus"),
            *("--set", f"run_dir={again}", "--set", "tracking.enabled=false"),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert (again / "corpus" / "manifest.json").is_file()
    assert differences(again, written / BOM_NAME) == [] == differences(run_dir, written / BOM_NAME)
    manifest = read_json(again / "corpus" / "manifest.json")
    (again / "corpus" / "manifest.json").write_text(json.dumps(manifest | {"digest": "0" * 64}))
    assert differences(again, written / BOM_NAME) == ["corpus"]


def test_tracking_store_is_a_plain_file(run_dir: Path) -> None:
    with sqlite3.connect(run_dir.parent / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone()[0] >= len(STAGES) + 1


def test_the_page_of_the_python_interface(run_dir: Path, tmp_path: Path) -> None:
    """docs/api.md, in a folder where two runs are finished."""
    for name in ("smoke", "again"):
        shutil.copytree(run_dir, tmp_path / "runs" / name)
    blocks = [block for part in sections(ROOT / "docs" / "api.md").values() for block in part]
    run_section(blocks, tmp_path)
