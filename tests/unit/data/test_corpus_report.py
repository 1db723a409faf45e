"""What the corpus stage says about evaluation data, translation pairs and memory; its numbers in MLflow."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from test_corpus_stage import ROOT, WORDS, config, run, text, write_jsonl

from tsugiki.data import corpus
from tsugiki.data.common.shard import Shard
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.common.workspace import Workspace
from tsugiki.data.config import ExtractionConfig, SourceConfig
from tsugiki.data.dedup.line_dedup import LINE_TYPE, LineCounter, host_hash, line_hash
from tsugiki.data.dedup.verdicts import EXACT, VERDICT_TYPE, Verdict, marked, save, without
from tsugiki.data.report.corpus_page import TEMPLATE, corpus_page
from tsugiki.experiment.artefacts.shards import read_shard
from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.pages.corpus import Overview
from tsugiki.experiment.pages.page import render
from tsugiki.experiment.run.stage import StageContext
from tsugiki.experiment.tracking.config import TrackingConfig
from tsugiki.experiment.tracking.runs import open_run
from tsugiki.pipeline import load_experiment, stages


@pytest.mark.parametrize("expression", ["//div[@id=", "//x:div", "count(//p)"])
def test_wrong_xpath_is_refused_with_the_configuration(expression: str) -> None:
    values = {
        "name": "s",
        "language": "en",
        "format": "html",
        "path": "x",
        "extraction": {"remove": [expression]},
    }
    with pytest.raises(ValueError, match="XPath expressions"):
        SourceConfig.model_validate(values)
    assert ExtractionConfig(remove=["//div[@id='menu']", "//p/text()"]).remove


def test_duplicates_of_a_shard_are_not_kept_in_memory(tmp_path: Path) -> None:
    workspace, shard = Workspace(tmp_path), Shard(0, "s", 0, ())
    verdicts = np.zeros(500, VERDICT_TYPE)
    verdicts["verdict"][1:] = Verdict.REPEATED_TEXT
    save(workspace.verdicts("heldout", shard), verdicts)
    documents = (Document("line\n" * 20_000, str(number)) for number in range(500))
    stats = DocumentStats()
    tracemalloc.start()
    try:
        kept = sum(1 for _ in without(marked(documents, workspace.verdicts("heldout", shard)), EXACT, stats))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (kept, stats.dropped["duplicate.text"].documents) == (1, 499)
    assert peak < 2_000_000  # all of them are 50 MB


def test_lines_are_counted_in_bounded_memory() -> None:
    few, many = LineCounter(counts_in_memory=10), LineCounter()
    tracemalloc.start()
    for number in range(3000):
        document = Document(f"menu\nline {number}\nline {number % 7}", "", metadata={"url": "http://a.org/"})
        few.add(document)
        many.add(document)
    tracemalloc.stop()
    table = few.table()
    assert table.dtype == LINE_TYPE and np.array_equal(table, many.table())
    counts = {int(row["line"]): int(row["documents"]) for row in table}
    assert set(table["host"].tolist()) == {host_hash("http://a.org/")}
    # "line 3": 3, 10, 17 … 2999, as (2999 - 3) / 7 = 428; number 3 has it twice, counted once.
    assert (counts[0], counts[line_hash("menu")], counts[line_hash("line 3")]) == (3000, 3000, 429)
    assert len(few._counts) == 0


QUESTIONS = [
    "When was the great bridge over the river first built and who carried stone for it",
    "How many teachers opened letters in the old garden of the mountain village that winter",
]


@pytest.mark.parametrize("action", ["drop", "report"])
def test_every_pair_of_document_and_item_is_a_hit(tmp_path: Path, action: str) -> None:
    rng = random.Random(4)
    folder = tmp_path / "sets"
    write_jsonl(folder / "one.jsonl", [{"q": question} for question in [*QUESTIONS, "too short"]])
    write_jsonl(folder / "two(1).jsonl", [{"q": f"In short: {QUESTIONS[1]}"}])
    write_jsonl(
        tmp_path / "in/a.jsonl",
        [
            {"id": "clean", "text": text(rng)},
            {"id": "both", "text": f"{text(rng)}\n{QUESTIONS[1]}\n{QUESTIONS[0]}"},
        ],
    )
    sets = {"paths": [str(folder)], "action": action}
    settings = config(tmp_path / "in", decontamination=sets, heldout={"fraction": 0})
    report = run(settings, tmp_path / "out")
    hits = [json.loads(line) for line in (tmp_path / "out/contamination.jsonl").read_text().splitlines()]
    assert [(hit["id"], hit["evaluation_set"], hit["item"]) for hit in hits] == [
        ("web/both", "one.jsonl", 0),
        ("web/both", "one.jsonl", 1),
        ("web/both", "two(1).jsonl", 0),
    ]
    [source] = report["sources"]
    assert report["evaluation"] == {"items": 4, "too_short": 1}
    assert source["contamination"] == {
        "one.jsonl": {"hits": 2, "items": 2, "documents": 1},
        "two(1).jsonl": {"hits": 1, "items": 1, "documents": 1},
    }
    assert source["counters"]["contaminated_documents"] == 1
    assert source["counters"]["evaluation_hits"] == 3
    assert source["kept"]["documents"] == (1 if action == "drop" else 2)
    page = (tmp_path / "out/report.html").read_text()
    assert "4 items were looked for, 1 of them too short" in page
    assert re.search(r"<td>two\(1\)\.jsonl</td>(<td class=\"number\">1</td>){3}", page)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"decontamination": {"paths": ["/nowhere/eval.jsonl"]}}, "no such evaluation set"),
        ({"language_identification": {"model": "/nowhere/lid.bin"}}, "no such language identification model"),
    ],
)
def test_what_later_passes_need_is_asked_for_before_the_first(
    tmp_path: Path, extra: dict[str, object], message: str
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [{"text": text(random.Random(1))}])
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path / "in", **extra), tmp_path / "out")
    assert not (tmp_path / "out/.work").exists()


def test_dry_run_names_what_the_corpus_will_look_for_in_vain() -> None:
    overrides = [
        'corpus.decontamination.paths=["/nowhere/eval.jsonl"]',
        "corpus.language_identification.model=/nowhere/lid.bin",
    ]
    experiment = load_experiment(ROOT / "configs/smoke.yaml", overrides)
    missing = experiment.missing_inputs(stages(experiment.config)[:1])
    assert missing == [
        (("corpus", "decontamination", "paths", 0), "/nowhere/eval.jsonl"),
        (("corpus", "language_identification", "model"), "/nowhere/lid.bin"),
    ]


def test_translation_pairs_are_counted_in_documents(tmp_path: Path) -> None:
    records = [{"source": f"{WORDS[n]} {WORDS[n + 9]}", "target": f"訳{n}です。"} for n in range(20)]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    source = {
        "name": "pairs", "language": "en", "format": "jsonl", "kind": "parallel",
        "path": str(tmp_path / "in/a.jsonl"), "parallel": {"target_language": "ja"},
    }  # fmt: skip
    settings = config(tmp_path, sources=[source])
    report = run(settings, tmp_path / "out")
    assert (report["sources"][0]["read"]["documents"], report["sources"][0]["kept"]["documents"]) == (20, 40)
    assert "40 of 40 documents kept (100.0%)" in (tmp_path / "out/report.html").read_text()


@pytest.mark.slow
def test_numbers_in_mlflow_are_those_of_the_report(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    rng = random.Random(4)
    write_jsonl(tmp_path / "eval (1).jsonl", [{"q": QUESTIONS[0]}])
    urls = [f"https://a.org/{number}" for number in range(12)]
    records = [{"text": f"{text(rng)}\nSubscribe today, mail me@a.org", "url": url} for url in urls]
    records += [{"text": f"{text(rng)}\nwrite to you@b.org"}, {"text": QUESTIONS[0] * 2}, {"text": "short"}]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    settings = config(
        tmp_path / "in",
        deduplication={"line_dedup": {"enabled": True}},
        decontamination={"paths": [str(tmp_path / "eval (1).jsonl")]},
    )
    (tmp_path / "out").mkdir()
    result = corpus.run(settings, {}, tmp_path / "out", StageContext(workers=1))
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker = open_run(tracking, tmp_path, "corpus")
    tracker.log_metrics(result.metrics)
    found = MlflowClient(tracking.uri).get_run(tracker.run_ids["mlflow"]).data.metrics
    report = json.loads((tmp_path / "out/report.json").read_text())
    [source] = report["sources"]
    expected = {f"corpus/evaluation/{key}": value for key, value in report["evaluation"].items()}
    for part in ("read", "extracted", "kept", "train", "heldout"):
        for unit in ("documents", "bytes"):
            expected[f"corpus/web/{part}_{unit}"] = source[part][unit]
    for rule, count in source["dropped"].items():
        name = rule.replace("(", "_").replace(")", "_")
        expected[f"corpus/web/dropped/{name}"] = count["documents"]
        expected[f"corpus/web/dropped_bytes/{name}"] = count["bytes"]
    expected |= {f"corpus/web/{name}": value for name, value in source["counters"].items()}
    assert found == expected
    assert found["corpus/web/dropped_bytes/length.few_letters"] == 5
    assert found["corpus/web/masked_email"] == 1 and found["corpus/web/removed_lines"] == 12
    assert found["corpus/web/dropped/contaminated.eval _1_.jsonl"] == 1


def test_samples_of_what_was_dropped_are_masked(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"text": text(random.Random(1))},
        {"text": "mail me@corp.org, (415) 555-2671"},
    ]
    write_jsonl(tmp_path / "in/a.jsonl", [*records, {"body": "you@corp.org"}])
    run(config(tmp_path / "in"), tmp_path / "out")
    samples = {item["metadata"]["rule"]: item for item in read_shard(tmp_path / "out/web/dropped.jsonl.zst")}
    assert samples["length.few_letters"]["text"] == "mail email@example.com, (000) 000-0000"
    assert "email@example.com" in samples["read.missing_field"]["text"]
    for name in ("report.json", "report.html"):
        assert "corp.org" not in (tmp_path / "out" / name).read_text()


def test_hostile_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>{{ 7*7 }}"
    records = [{"text": text(random.Random(1))}, {"text": f"short {hostile}", "id": hostile}]
    write_jsonl(tmp_path / "in/a.jsonl", records)
    report = run(config(tmp_path / "in"), tmp_path / "out")
    [source] = report["sources"]
    source["dropped"][f"contaminated.{hostile}"] = {"documents": 1, "bytes": 1}
    source["contamination"] = {hostile: {"hits": 1, "items": 1, "documents": 1}}
    source["histograms"]["language_found"] = {hostile: 1}
    source["counters"][hostile] = source["seconds"][hostile] = 1
    source["limits"]["characters"] = source["name"] = source["language"] = source["kind"] = hostile
    report["evaluation"] = {"items": 1, "too_short": 0}
    markup = render(corpus_page(report), TEMPLATE).decode()
    assert "<script" not in markup and "<img" not in markup
    assert unescape(re.sub(r"<[^>]+>", "", markup)).count(hostile) >= 10


def test_the_share_kept_is_of_what_the_records_could_become() -> None:
    def pair(documents: int) -> dict[str, int]:
        return {"documents": documents, "bytes": 1000}

    source = {"name": "pairs", "language": "en", "offered": 40, "dropped": {"length.few_letters": pair(10)}}
    source |= {part: pair(20) for part in ("read", "extracted", "filtered", "heldout")} | {"kept": pair(30)}
    [row] = Overview.of([source]).table.rows
    assert {column.title: value for column, value in row}["kept, %"] == "75.0%"
