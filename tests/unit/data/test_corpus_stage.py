"""The corpus stage end to end: results, determinism, restarts, errors."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tsugiki.data import corpus
from tsugiki.data.common import executor as execution
from tsugiki.data.config import CorpusConfig
from tsugiki.data.passes.job_array import filter_pass
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.run.stage import StageContext

ROOT = Path(__file__).parents[3]
VOCABULARY = """
the of and to in is was for on that with as it by from at are this have which were not be or an their has
more one than other also been some these there first would when about after people time river market
teacher village mountain season harvest letter window garden bridge winter morning carried watched opened
built carefully slowly together beside without against small heavy bright old quiet paper stone water bread
music story road field engine doctor captain forest island
"""
WORDS = VOCABULARY.split()


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(12)).capitalize() + "."


def text(rng: random.Random, sentences: int = 8) -> str:
    return "\n".join(" ".join(sentence(rng) for _ in range(2)) for _ in range(sentences // 2))


def write_jsonl(path: Path, records: list[dict[str, object]]) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    data = lines.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def make_source(folder: Path, files: int = 4, documents: int = 20) -> None:
    rng = random.Random(7)
    for number in range(files):
        records = [
            {"id": f"{number}-{item}", "text": text(rng), "url": f"https://h{item % 3}.org/{number}/{item}"}
            for item in range(documents)
        ]
        records.append({"id": f"{number}-copy", "text": records[0]["text"], "url": None})
        write_jsonl(folder / f"part{number}.jsonl.gz", records)


def config(folder: Path, **extra: object) -> CorpusConfig:
    values: dict[str, object] = {
        "sources": [{"name": "web", "language": "en", "format": "jsonl", "path": str(folder / "*.jsonl*")}],
        "profiles": str(ROOT / "tests/fixtures/filters"),
        "heldout": {"fraction": 0.1},
        "shard_input_files": 1,
    }
    return CorpusConfig.model_validate(values | extra)


def run(settings: CorpusConfig, output: Path, workers: int = 1) -> dict[str, object]:
    output.mkdir(parents=True, exist_ok=True)
    corpus.run(settings, {}, output, StageContext(workers=workers))
    return json.loads((output / "report.json").read_text())


def contents(output: Path) -> dict[str, str]:
    """Hash of every file that is a result; reports carry times."""
    return {
        str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".work" not in path.parts and not path.name.startswith("report.")
    }


def documents(output: Path, split: str = "train") -> list[dict[str, object]]:
    index = CorpusIndex.load(output)
    return list(index.documents(output, split))  # type: ignore[arg-type]


def test_documents_are_counted_kept_and_split(tmp_path: Path) -> None:
    make_source(tmp_path / "in")
    report = run(config(tmp_path / "in"), tmp_path / "out")
    source = report["sources"][0]
    assert source["read"]["documents"] == 84
    # Each file repeats its first document once.
    assert {rule: count["documents"] for rule, count in source["dropped"].items()} == {"duplicate.text": 4}
    assert source["kept"]["documents"] == 80
    assert source["heldout"]["documents"] == 8
    train, heldout = documents(tmp_path / "out"), documents(tmp_path / "out", "heldout")
    assert len(train) == 72 and len(heldout) == 8
    assert not {item["id"] for item in train} & {item["id"] for item in heldout}
    assert train[0]["metadata"]["language"] == "en"
    assert train[0]["metadata"]["source"] == "web"
    assert sum(len(item["text"].encode()) for item in train) == source["train"]["bytes"]
    dropped = list(read_shard(tmp_path / "out/web/dropped.jsonl.zst"))
    assert {item["metadata"]["rule"] for item in dropped} == {"duplicate.text"}
    assert sum(source["histograms"]["language_share"].values()) == 84
    assert sum(source["histograms"]["characters"].values()) == 80
    assert source["limits"]["language_share"] == "at least 0.5"
    page = (tmp_path / "out/report.html").read_text()
    assert "Language identification, at least 0.5" in page
    assert "duplicate.text" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_no_source_can_be_called_like_a_file_of_ours(tmp_path: Path) -> None:
    """Whatever the stage puts beside the folders of the sources, with everything on that writes files."""
    make_source(tmp_path / "in")
    evaluated = tmp_path / "benchmark.jsonl"
    write_jsonl(evaluated, [{"text": text(random.Random(1), 30)}])
    settings = config(tmp_path / "in", decontamination={"paths": [str(evaluated)]})
    run(settings, tmp_path / "out")
    ours = {path.name for path in (tmp_path / "out").iterdir()} - {"web", ".work"}
    assert {"index.json", "report.json", "report.html", "contamination.jsonl"} <= ours
    source = settings.sources[0].model_dump()
    for name in ours:
        with pytest.raises(ValueError, match="a name that no file of ours has"):
            config(tmp_path, sources=[{**source, "name": name}])


def test_number_of_workers_does_not_change_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_source(tmp_path / "in")
    settings = config(tmp_path / "in", deduplication={"line_dedup": {"enabled": True}})
    run(settings, tmp_path / "one", workers=1)
    monkeypatch.setattr(execution, "INLINE_BELOW_BYTES", 0)
    monkeypatch.setattr(corpus, "INLINE_BELOW_BYTES", 0)
    run(settings, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_heldout_documents_do_not_depend_on_sharding(tmp_path: Path) -> None:
    make_source(tmp_path / "in")
    run(config(tmp_path / "in"), tmp_path / "a")
    run(config(tmp_path / "in", shard_input_files=3), tmp_path / "b")
    heldout = [sorted(item["id"] for item in documents(tmp_path / name, "heldout")) for name in "ab"]
    assert heldout[0] == heldout[1]


KILLED_RUN = """
import sys, time
from pathlib import Path
from tsugiki.data import corpus
from tsugiki.data.passes.filter import FilterShards
from tsugiki.experiment.run.stage import StageContext
sys.path.insert(0, {tests!r})
from test_corpus_stage import config
step = FilterShards.run
def slow(self, data, rank=0, world_size=1):
    yield from step(self, data, rank, world_size)
    if rank == 1:
        Path({marker!r}).touch()
        time.sleep(60)
FilterShards.run = slow
corpus.run(config(Path({folder!r})), {{}}, Path({output!r}), StageContext(workers=1))
"""


def test_killed_run_continues_and_gives_the_same_bytes(tmp_path: Path) -> None:
    make_source(tmp_path / "in")
    run(config(tmp_path / "in"), tmp_path / "whole")
    output, marker = tmp_path / "killed", tmp_path / "marker"
    output.mkdir()
    script = KILLED_RUN.format(
        tests=str(Path(__file__).parent),
        marker=str(marker),
        folder=str(tmp_path / "in"),
        output=str(output),
    )
    environment = os.environ
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not marker.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    assert marker.exists(), process.stderr.read().decode() if process.poll() is not None else "too slow"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = output / ".work/filtered/web/00000.jsonl.zst"
    assert [path.name for path in sorted((output / ".work/logs/filter/completions").iterdir())] == ["00000"]
    assert not (output / "index.json").exists()
    modified = first.stat().st_mtime_ns
    run(config(tmp_path / "in"), output)
    assert first.stat().st_mtime_ns == modified  # a finished shard is not done again
    assert contents(output) == contents(tmp_path / "whole")


def test_work_for_other_files_is_not_continued(tmp_path: Path) -> None:
    make_source(tmp_path / "in")
    run(config(tmp_path / "in"), tmp_path / "out")
    rng = random.Random(1)
    write_jsonl(tmp_path / "in/part0.jsonl.gz", [{"id": "new", "text": text(rng)} for _ in range(1)])
    report = run(config(tmp_path / "in"), tmp_path / "out")
    assert report["sources"][0]["read"]["documents"] == 64


def test_no_documents_left_says_why(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": "これは日本語の文章です。" * 10}])
    with pytest.raises(DataError) as caught:
        run(config(tmp_path / "in"), tmp_path / "out")
    message = str(caught.value)
    assert "no documents of source 'web' are left" in message
    assert "language.is_ja 1" in message
    assert "corpus.allow_empty" in message
    assert not (tmp_path / "out/index.json").exists()
    report = run(config(tmp_path / "in", allow_empty=True), tmp_path / "empty")
    assert report["sources"][0]["kept"]["documents"] == 0


def test_missing_input_and_profile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no input files"):
        run(config(tmp_path / "nowhere"), tmp_path / "out")
    make_source(tmp_path / "in", files=1)
    settings = config(tmp_path / "in", profiles=str(tmp_path))
    with pytest.raises(ConfigError, match="no quality profile 'en'"):
        run(settings, tmp_path / "out")


def test_maximum_documents_are_chosen_by_hash(tmp_path: Path) -> None:
    make_source(tmp_path / "in", files=3)
    source = {"name": "web", "language": "en", "format": "jsonl", "path": str(tmp_path / "in/*.gz")}
    one = run(config(tmp_path, sources=[source | {"maximum_documents": 10}]), tmp_path / "a")
    assert one["sources"][0]["read"]["documents"] == 10
    run(config(tmp_path, sources=[source | {"maximum_documents": 10}], shard_input_files=3), tmp_path / "b")
    kept = [
        sorted(item["id"] for split in ("train", "heldout") for item in documents(tmp_path / name, split))
        for name in "ab"
    ]
    assert kept[0] == kept[1]


def test_repeated_lines_of_a_host_are_removed(tmp_path: Path) -> None:
    rng = random.Random(3)
    urls = [*(f"https://a.org/{n}" for n in range(12)), "https://b.org/1"]
    records = [{"text": f"{text(rng)}\nSubscribe to our newsletter today", "url": url} for url in urls]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    settings = config(tmp_path / "in", deduplication={"line_dedup": {"enabled": True}})
    report = run(settings, tmp_path / "out")
    assert report["sources"][0]["counters"]["removed_lines"] == 12
    texts = [item["text"] for split in ("train", "heldout") for item in documents(tmp_path / "out", split)]
    assert sum("newsletter" in item for item in texts) == 1  # b.org has it in one document only


@pytest.mark.parametrize("folder", ["run", "a[b]*?", "x::y"])
def test_near_duplicates_leave_one_of_each_cluster(tmp_path: Path, folder: str) -> None:
    rng = random.Random(5)
    base = [sentence(rng) for _ in range(60)]
    changed = [*base[:59], sentence(rng)]
    other = [sentence(rng) for _ in range(60)]
    records = [{"id": str(n), "text": "\n".join(lines)} for n, lines in enumerate((base, changed, other))]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    report = run(config(tmp_path / "in"), tmp_path / folder / "out")
    source = report["sources"][0]
    assert source["dropped"]["duplicate.near"]["documents"] == 1
    assert source["kept"]["documents"] == 2
    assert source["histograms"]["cluster_size"] == {"<= 0000001": 1, "<= 0000002": 1}


def test_contaminated_documents_are_dropped_and_listed(tmp_path: Path) -> None:
    rng = random.Random(9)
    question = " ".join(rng.choice(WORDS) for _ in range(30))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": question, "answer": "no"}) + "\n")
    clean, dirty = text(rng), f"{text(rng)}\n{question.upper()}!"
    write_jsonl(tmp_path / "in/a.jsonl", [{"id": "a", "text": clean}, {"id": "b", "text": dirty}])
    settings = config(tmp_path / "in", decontamination={"paths": [str(tmp_path / "eval.jsonl")]})
    report = run(settings, tmp_path / "out")
    assert report["sources"][0]["dropped"]["contaminated.eval.jsonl"]["documents"] == 1
    hits = [json.loads(line) for line in (tmp_path / "out/contamination.jsonl").read_text().splitlines()]
    assert [hit["id"] for hit in hits] == ["web/b"]
    assert hits[0]["evaluation_set"] == "eval.jsonl"


def test_translation_pairs_are_rendered_both_ways_and_held_out_together(tmp_path: Path) -> None:
    rng = random.Random(2)
    records = [{"id": str(n), "source": sentence(rng), "target": f"訳{n}です。"} for n in range(20)]
    records.append({"id": "empty", "source": "x", "target": " "})
    write_jsonl(tmp_path / "in/a.jsonl", records)
    source = {
        "name": "pairs",
        "language": "en",
        "format": "jsonl",
        "kind": "parallel",
        "path": str(tmp_path / "in/a.jsonl"),
        "parallel": {
            "target_language": "ja",
            "template": "{source_language}: {source}\n{target_language}: {target}",
        },
    }
    report = run(config(tmp_path, sources=[source]), tmp_path / "out")
    assert report["sources"][0]["dropped"]["pair.empty_side"]["documents"] == 1
    train, heldout = documents(tmp_path / "out"), documents(tmp_path / "out", "heldout")
    assert len(train) + len(heldout) == 40
    first = next(item for item in [*train, *heldout] if item["id"] == "pairs/0")
    assert first["text"] == f"en: {records[0]['source']}\nja: 訳0です。"
    back = next(item for item in [*train, *heldout] if item["id"] == "pairs/0/reverse")
    assert back["text"] == f"ja: 訳0です。\nen: {records[0]['source']}"
    held = {item["metadata"]["pair"] for item in heldout}
    assert not held & {item["metadata"]["pair"] for item in train}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_one_large_file_is_shared_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    make_source(tmp_path / "small", files=1, documents=60)
    data = gzip.decompress((tmp_path / "small/part0.jsonl.gz").read_bytes())
    path = tmp_path / f"in/large.{ending}"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    whole = run(config(tmp_path / "in"), tmp_path / "whole")
    settings = config(tmp_path / "in", shard_input_bytes=path.stat().st_size // 5 + 1)
    divided = run(settings, tmp_path / "one", workers=1)
    assert len(CorpusIndex.load(tmp_path / "one").sources[0].train) == 5
    monkeypatch.setattr(execution, "INLINE_BELOW_BYTES", 0)
    monkeypatch.setattr(corpus, "INLINE_BELOW_BYTES", 0)
    run(settings, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for key in ("read", "kept", "heldout", "dropped"):
        assert divided["sources"][0][key] == whole["sources"][0][key]
    texts = [
        sorted(item["text"] for split in ("train", "heldout") for item in documents(tmp_path / name, split))
        for name in ("whole", "one")
    ]
    assert texts[0] == texts[1]


def test_order_of_the_shards_does_not_change_the_result(tmp_path: Path) -> None:
    make_source(tmp_path / "in", files=6, documents=8)
    settings = config(tmp_path / "in", deduplication={"line_dedup": {"enabled": True}})
    run(settings, tmp_path / "whole")
    for seed in range(3):
        output = tmp_path / f"shuffled{seed}"
        output.mkdir()
        work = filter_pass(settings, output)
        order = random.Random(seed).sample(range(work.tasks), work.tasks)
        for rank in order[: work.tasks - seed]:  # the stage itself does what the array left
            execution.ProcessExecutor([work.step], work.tasks, 1, work.logging_dir, "array").run(
                share=(rank, work.tasks)
            )
        run(settings, output)
        assert contents(output) == contents(tmp_path / "whole")
