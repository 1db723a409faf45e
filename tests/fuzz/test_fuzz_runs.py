"""Folders of runs whose small files are damaged: every look at them ends, with an answer or an error of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import as_json, fuzz, mutated_bytes, mutated_json, right_or_refused
from hypothesis import given
from hypothesis import strategies as st
from toy_stages import ToyConfig

from tsugiki.experiment.files import sha256_file, sha256_json
from tsugiki.experiment.run.graph import Graph, Stage
from tsugiki.experiment.run.manifest import Manifest, describe_outputs
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.run.status import read_status
from tsugiki.experiment.run.verify import verify_run
from tsugiki.results import Run, open_run

AMOUNT = {"documents": 2, "bytes": 30}
FILES: dict[str, Any] = {
    "config.yaml": {"name": "x", "base": {"scratch": {"layers": 1}, "path": None}},
    "corpus/report.json": {
        "sources": [{
            "name": "en", "language": "en", "kind": "text", "read": AMOUNT, "kept": AMOUNT, "train": AMOUNT,
            "heldout": AMOUNT, "dropped": {"duplicate.text": AMOUNT},
        }],
    },
    "tokenizer/report.json": {
        "base_vocabulary": 100, "vocabulary_size": 110, "pieces": 10, "pieces_by_language": {"ja": 10},
        "gates": [{"name": "ids", "passed": True}], "tokens_relative_to_base": {"ja": 0.5, "en": None},
        "tokenizers": {"base": {"ja": {"tokens": 5}}},
    },
    "tokens/mixture.json": {
        "schema_version": 1, "vocabulary_size": 110, "bos_id": 1, "eod_id": 2, "total_tokens": 4096, "sources": [],
    },
    "evaluate/results.json": {
        "base": {"bits_per_byte": {"en": 2.0}}, "result": {"bits_per_byte": {"en": 1.5}}, "documents": {"en": 2},
        "difference": {"en": {"bits_per_byte": -0.5, "interval": [-0.6, -0.4]}},
    },
}  # fmt: skip
METRICS = [
    {"step": step, "consumed_tokens": 512 * step, "train/loss": 2.0 / step, "train/bits_per_byte": 1.0,
     "throughput/tokens_per_second": 100.0}
    for step in (1, 2, 3)
]  # fmt: skip
RECORDS = [
    "train.partial/checkpoints/latest.json",
    "corpus/manifest.json",
    "tokens/manifest.json",
    "train.partial/.key.json",
    "corpus/out.txt",
]


def stages() -> list[Stage]:
    return [
        Stage("corpus", ToyConfig(text="a"), (), "toy_stages:write"),
        Stage("tokens", ToyConfig(text="b"), ("corpus",), "toy_stages:write"),
        Stage(
            "train",
            ToyConfig(text="c"),
            ("tokens",),
            "toy_stages:countdown",
            keep_partial=True,
            precious=True,
        ),
    ]


def graph_of(run_dir: Path) -> Graph:
    return Graph(stages(), run_dir, StageContext(workers=1), None, lambda line: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished stages, a training with a checkpoint, and the reports of others."""
    run_dir = tmp_path_factory.mktemp("finished") / "x"
    graph = graph_of(run_dir)
    graph.run(stages()[:2], ToyConfig())
    for name, value in FILES.items():
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_bytes(as_json(value))
    for name in ("corpus", "tokens"):  # sealed again, with those
        directory = run_dir / name
        outputs, digest = describe_outputs(directory)
        manifest = Manifest.model_validate_json((directory / "manifest.json").read_bytes())
        inputs = {"input corpus": Manifest.load(run_dir / "corpus").digest} if name == "tokens" else {}
        parts = manifest.key_parts | inputs
        manifest.model_copy(
            update={"outputs": outputs, "digest": digest, "key_parts": parts, "key": sha256_json(parts)}
        ).save(directory)
    graph.prepare(stages()[2])
    (run_dir / "train.partial/metrics.jsonl").write_bytes(b"\n".join(map(as_json, METRICS)) + b"\n")
    checkpoint = run_dir / "train.partial/checkpoints/iter_0000008"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest.json").write_bytes(as_json({"iteration": 8}))
    (checkpoint / "__0_0.distcp").write_bytes(bytes(100))
    files = {"__0_0.distcp": {"bytes": 100, "sha256": sha256_file(checkpoint / "__0_0.distcp")}}
    (checkpoint / "checkpoint.json").write_bytes(as_json({"iteration": 8, "files": files}))
    return run_dir


LOOKS: dict[str, Callable[[Path], object]] = {
    "status": lambda run_dir: (read_status(run_dir).to_text(), json.dumps(read_status(run_dir).to_json())),
    "verify": lambda run_dir: (verify_run(run_dir, show=False).to_text(), verify_run(run_dir, show=False).to_json()),
    "preview": lambda run_dir: graph_of(run_dir).preview(stages()),
    "run": lambda run_dir: repr(open_run(run_dir)),
    "manifests": lambda run_dir: Run(run_dir).manifests,
    "config": lambda run_dir: Run(run_dir).config,
    "metrics": lambda run_dir: repr(Run(run_dir).metrics()),
    "corpus": lambda run_dir: [repr(Run(run_dir).corpus_report), Run(run_dir).corpus_report.table(), Run(run_dir).corpus_report.dropped()],
    "tokenizer": lambda run_dir: [repr(Run(run_dir).tokenizer_report), Run(run_dir).tokenizer_report.table()],
    "mixture": lambda run_dir: Run(run_dir).mixture,
    "evaluation": lambda run_dir: [repr(Run(run_dir).evaluation), Run(run_dir).evaluation.table()],
}  # fmt: skip


def test_the_material_is_read(finished: Path) -> None:
    for look in LOOKS.values():
        look(finished)
    assert [decision.action for decision in graph_of(finished).preview(stages())] == [
        "skip",
        "skip",
        "resume",
    ]


@st.composite
def damage(draw: st.DrawFn, folder: Path) -> tuple[str, bytes | None]:
    """One of the small files, and what it holds then; None: it is gone."""
    small = [
        *FILES,
        *RECORDS,
        "train.partial/metrics.jsonl",
        "train.partial/checkpoints/iter_0000008/checkpoint.json",
    ]
    name = draw(st.sampled_from(small))
    data = (folder / name).read_bytes()
    if name.endswith("metrics.jsonl"):
        lines = draw(
            st.lists(st.sampled_from(METRICS).flatmap(mutated_json).map(as_json), min_size=1, max_size=3)
        )
        return name, draw(st.one_of(st.just(b"\n".join(lines)), mutated_bytes(data)))
    if name.endswith(".txt"):
        return name, draw(st.one_of(st.none(), mutated_bytes(data)))
    value = json.loads(data)
    return name, draw(
        st.one_of(
            mutated_json(value).map(as_json), mutated_json(value).map(as_json), mutated_bytes(data), st.none()
        )
    )


DEEP, DIGITS = b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}"


@fuzz(80)
@given(data=st.data())
def test_damaged_files(finished: Path, data: st.DataObject) -> None:
    look(finished, [data.draw(damage(finished)) for _ in range(data.draw(st.integers(1, 2)))])


@pytest.mark.parametrize("content", [b"", b"null", b"5", b'"x"', b"[[]]", b"[5]", b"{}", b"\xff", DEEP, DIGITS], ids=lambda item: str(item[:8]))  # fmt: skip
def test_files_of_another_kind(finished: Path, content: bytes) -> None:
    names = [
        *FILES,
        *RECORDS,
        "train.partial/metrics.jsonl",
        "train.partial/checkpoints/iter_0000008/checkpoint.json",
    ]
    for name in names:
        look(finished, [(name, content)])


def look(finished: Path, damaged: list[tuple[str, bytes | None]]) -> None:
    """Every look at a copy with these files."""
    copy = finished.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(finished, copy)
    for name, content in damaged:
        (copy / name).unlink(missing_ok=True)
        if content is not None:
            (copy / name).write_bytes(content)
    for call in LOOKS.values():
        right_or_refused(lambda call=call: call(copy))
