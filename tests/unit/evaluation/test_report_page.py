"""The report page: well-formed, self-contained, true to the artefacts, clear about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tsugiki.evaluation.config import ReportConfig
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.evaluation.pages.quality import Quality, quality
from tsugiki.evaluation.report import run
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.run.manifest import Manifest
from tsugiki.experiment.run.stage import StageContext

STAGES = ("corpus", "tokenizer", "tokens", "train", "export", "evaluate")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Parses a page, checks that elements close in order, collects text and references."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        self.references.extend(str(given[key]) for key in ("src", "href", "data") if key in given)
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def corpus_report() -> dict[str, Any]:
    def pair(documents: int) -> dict[str, int]:
        return {"documents": documents, "bytes": documents * 1000}

    return {
        "sources": [
            {
                "name": "web-ja",
                "language": "ja",
                "kind": "text",
                "read": pair(1234),
                "extracted": pair(1200),
                "filtered": pair(900),
                "kept": pair(800),
                "heldout": pair(16),
                "dropped": {
                    "language.is_en": pair(300),
                    "extraction.no_text": pair(34),
                    "dedup.near": pair(100),
                },
                "samples": [{"rule": "language.is_en", "text": "An <b>English</b> page"}],
            }
        ]
    }


def results() -> dict[str, Any]:
    def model(value: float) -> dict[str, Any]:
        return {
            "bits_per_byte": {"ja": value, "en": 1.0},
            "bits_per_byte_interval": {"ja": [value - 0.1, value + 0.1], "en": None},
            "perplexity": {"ja": 9.5, "en": 8.5},
            "perplexity_per_base_token": {"ja": 7.5, "en": 6.5},
            "tokens": {"ja": 1000, "en": 500},
            "unknown_tokens": {"ja": 0, "en": 0},
        }

    return {
        "protocol": {
            "interval": "percentile bootstrap over documents",
            "confidence": 0.95,
            "tokens": "every token",
            "window_tokens": 256,
            "stride_tokens": 128,
            "bits_per_byte": "sum of nats / ln 2 / UTF-8 bytes",
            "dtype": "float32",
        },
        "documents": {"ja": 16, "en": 20},
        "bytes": {"ja": 9000, "en": 8000},
        "base": model(3.25),
        "result": model(1.625),
        "difference": {
            "ja": {"bits_per_byte": -1.625, "interval": [-1.75, -1.5]},
            "en": {"bits_per_byte": 0.0, "interval": None},
        },
        "perplexity_sets": {},
    }


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Path]:
    """Artefacts of a small run."""
    directories = {name: tmp_path / name for name in STAGES}
    for path in directories.values():
        path.mkdir()

    def write(stage: str, name: str, value: object) -> None:
        (directories[stage] / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    write("corpus", "report.json", corpus_report())
    write(
        "tokenizer",
        "report.json",
        {
            "base_vocabulary": 32000,
            "vocabulary_size": 32096,
            "gates": [{"name": "reachable", "passed": True, "checked": 96, "failures": 0}],
            "tokenizers": {
                name: {
                    "ja": {
                        "tokens": tokens,
                        "characters": 300,
                        "bytes": 900,
                        "tokens_per_character": tokens / 300,
                    }
                }
                for name, tokens in (("base", 360), ("extended", 180))
            },
        },
    )
    (directories["tokenizer"] / "pieces.tsv").write_text(
        "id\tpiece\tscore\tbase_ids\n32000\t東京\t-1\t5 6\n32001\t<x>\t-2\t\n", encoding="utf-8"
    )
    source = {
        "name": "web-ja",
        "language": "ja",
        "share": 1.0,
        "planned_tokens": 5000,
        "tokens": 2500,
        "bytes": 10000,
        "epochs": 2.0,
        "heldout_documents": 16,
    }
    write("tokens", "mixture.json", {"vocabulary_size": 32096, "total_tokens": 5000, "sources": [source]})
    lines = [
        {"step": step, "consumed_tokens": step * 100, "train/bits_per_byte": 4 - step / 50}
        for step in range(10, 60, 10)
    ]
    lines.append({"step": 50, "consumed_tokens": 5000, "validation/bits_per_byte/ja": 2.125})
    (directories["train"] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write("export", "verify.json", {"logits": {"max_difference": 3e-6, "tokens": 512}})
    write("evaluate", "results.json", results())
    sample = {
        "language": "ja",
        "prompt": "東京は",
        "origin": "configuration",
        "reference": None,
        "base": "<script>alert(1)</script>",
        "result": "首都です。",
    }
    write("evaluate", "samples.jsonl", sample)
    return directories


def render(stages: dict[str, Path], output: Path, config: ReportConfig | None = None) -> str:
    output.mkdir()
    result = run(config or ReportConfig(), stages, output, StageContext(experiment_name="trial <1>"))
    assert result.artifacts == ("index.html",)
    return (output / "index.html").read_text(encoding="utf-8")


def test_the_page_says_what_the_artefacts_say(stages: dict[str, Path], tmp_path: Path) -> None:
    page = Page(render(stages, tmp_path / "report"))
    for expected in (
        "trial <1>",
        "3.250",
        "1.625",
        "−1.625 [−1.750, −1.500]",
        "−50.0%",
        "Japanese",
        "64.8%",  # 800 of 1,234 documents kept
        "1,234 documents read",
        "language.is_en",
        "An <b>English</b> page",
        "50.0%",  # tokens needed after the extension
        "東京",
        "首都です。",
        "<script>alert(1)</script>",
        "2.00",  # epochs
        "2.125",
        "96 new pieces",
    ):
        assert expected in page.text, expected
    assert re.findall(r"\bNo \S+", page.text) == ["No manifests:"]


def test_the_page_says_how_new_rows_started(stages: dict[str, Path], tmp_path: Path) -> None:
    norms = {"base_mean": 1.25, "new_mean": 0.5, "new_min": 0.25, "new_max": 1.0}
    report: dict[str, Any] = {"new_rows": 1100, "init": "mean", "row_norms": {"embed": norms}}
    graft = tmp_path / "graft"
    graft.mkdir()
    (graft / "graft.json").write_text(json.dumps(report))
    found = Page(render({**stages, "graft": graft}, tmp_path / "mean")).text
    assert "rows 1,100 init mean" in found and "1.250 in the base, 0.500 new" in found
    assert "hidden states" not in found
    report["init"] = "distillation"
    report["distillation"] = {
        "pieces_trained": 1000, "pieces_without_context": 97, "contexts": 5000,
        "hidden_loss": {"before": 0.5, "after": 0.125}, "next_token_loss": {"before": 9.5, "after": 4.25},
    }  # fmt: skip
    (graft / "graft.json").write_text(json.dumps(report))
    found = Page(render({**stages, "graft": graft}, tmp_path / "distillation")).text
    for expected in (
        "1,000 pieces in 5,000 contexts",
        "97 pieces, which keep the mean",
        "0.5 → 0.125",
        "9.500 → 4.250",
    ):
        assert expected in found, expected


def test_a_kept_vocabulary_is_said_so(stages: dict[str, Path], tmp_path: Path) -> None:
    # What the vocabulary stage writes with `extend: null`.
    kept = {"pieces": 0, "vocabulary_size": 32000, "gates": []}
    (stages["tokenizer"] / "report.json").write_text(json.dumps(kept))
    page = Page(render(stages, tmp_path / "report"))
    assert "The vocabulary of the base is kept: 32,000 pieces." in page.text
    assert "96 new pieces" not in page.text


def test_a_mixture_that_changes_is_shown_by_stretch(stages: dict[str, Path], tmp_path: Path) -> None:
    path = stages["tokens"] / "mixture.json"
    mixture = json.loads(path.read_text())
    changes = [{"from_tokens": 0, "shares": {}}, {"from_tokens": 3000, "shares": {"web-ja": 0.375}}]
    assert "along the training" not in render(stages, tmp_path / "same")
    path.write_text(json.dumps({**mixture, "changes": changes}))
    page = render(stages, tmp_path / "changed")
    assert "tokens 0 to 3,000" in page and "tokens 3,000 to 5,000" in page and "37.5%" in page


def test_slow_nodes_are_named(stages: dict[str, Path], tmp_path: Path) -> None:
    assert "slower than the others" not in render(stages, tmp_path / "none")
    slow = {"node": "gpu-07", "ranks": [9], "seconds": 1.5, "windows": 2, "waits_for_data": False}
    with (stages["train"] / "metrics.jsonl").open("a") as file:
        for step, ratio in ((40, 1.4), (50, 1.61)):
            file.write(json.dumps({"step": step, "stragglers": [{**slow, "times_median": ratio}]}) + "\n")
    text = Page(render(stages, tmp_path / "some")).text
    assert "Nodes that were slower than the others" in text
    assert "gpu-07 9 2 1.61 40 to 50 own passes" in text


def test_columns_that_differ_from_the_published_ones_say_so(stages: dict[str, Path], tmp_path: Path) -> None:
    """A note of the suite, shared by columns, and one of a task; none where a column is as published."""
    entry = {
        "fewshot": 0, "questions": 9, "metric": "acc", "value": 0.5, "interval": None, "chat": False, "task": "t",
    }  # fmt: skip
    asked = [("seallm-knowledge", "M3Exam en"), ("seallm-knowledge", "M3Exam th"), ("seallm-knowledge", "VMLU vi"),
             ("swallow-ja", "NIILC")]  # fmt: skip
    found = {f"{suite}/{title}": {**entry, "suite": suite, "title": title} for suite, title in asked}
    path = stages["evaluate"] / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, "benchmarks": {"base": found, "result": found}}))
    page = " ".join(render(stages, tmp_path / "out").split())
    assert "Not as published: M3Exam en, M3Exam th: without the authors" in page
    assert "Not as published: VMLU vi: chosen by likelihood; the authors" in page
    assert page.count("Not as published") == 2


def test_the_page_is_self_contained(stages: dict[str, Path], tmp_path: Path) -> None:
    markup = render(stages, tmp_path / "report")
    page = Page(markup)
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= page.anchors
    assert "<script" not in markup
    assert re.search(r"url\(|@import|https?://", markup) is None
    assert "NaN" not in markup and "nan" not in page.text.split()


def test_tables_have_captions_and_headings(stages: dict[str, Path], tmp_path: Path) -> None:
    markup = render(stages, tmp_path / "report")
    tables = re.findall(r"<table>.*?</table>", markup, re.DOTALL)
    assert len(tables) >= 5
    for table in tables:
        assert re.match(r"<table><caption[^>]*>[^<]+</caption><thead>", table)
        columns = len(re.findall(r'<th scope="col"|<th[^>]* scope="col"', table))
        for row in re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL):
            assert len(re.findall(r"<t[dh][ >]", row)) == columns
            assert 'scope="row"' in row
    assert all("aria-label=" in figure for figure in re.findall(r"<svg[^>]*>", markup))


@pytest.mark.parametrize("missing", STAGES)
def test_a_missing_stage_is_said_and_the_rest_is_shown(
    stages: dict[str, Path], tmp_path: Path, missing: str
) -> None:
    del stages[missing]
    page = Page(render(stages, tmp_path / "report"))
    assert f"No {missing}/" in page.text or "no curves" in page.text


def test_nothing_at_all_still_gives_a_page(tmp_path: Path) -> None:
    page = Page(render({}, tmp_path / "report"))
    assert len(re.findall(r"\bNo \w+", page.text)) == 8


def test_a_corrupt_artefact_is_an_error(stages: dict[str, Path], tmp_path: Path) -> None:
    (stages["evaluate"] / "results.json").write_text("{")
    with pytest.raises(DataError, match="unreadable artefact") as raised:
        render(stages, tmp_path / "report")
    assert "results.json" in str(raised.value)


def test_export_verdict_follows_the_tolerance(stages: dict[str, Path], tmp_path: Path) -> None:
    def manifest(tolerance: float) -> None:
        Manifest(
            stage="export",
            key="k",
            key_parts={},
            config={"verify_tolerance": tolerance},
            inputs={},
            outputs={},
            digest="d" * 64,
            versions={"torch": "2.13"},
            git_revision="abc",
            counts={},
            metrics={},
            started="2026-01-02T03:04:05+00:00",
            seconds=75.0,
        ).save(stages["export"])

    manifest(1e-4)
    good = Page(render(stages, tmp_path / "good")).text
    assert "verified" in good and "1 min 15 s" in good and "2026-01-02" in good
    manifest(1e-6)
    assert "does not agree" in Page(render(stages, tmp_path / "bad")).text


def test_title_and_samples_follow_the_configuration(stages: dict[str, Path], tmp_path: Path) -> None:
    page = render(stages, tmp_path / "report", ReportConfig(title="Swallow, again", samples_per_language=0))
    assert "<h1>Swallow, again</h1>" in page
    assert "1 more samples" in page


def test_published_perplexities_stand_beside_ours(stages: dict[str, Path], tmp_path: Path) -> None:
    def entry(value: float, given: float) -> dict[str, Any]:
        model = {"perplexity": value, "bits_per_byte": None if given else 1.0, "tokens": 10}
        return {"languages": ["en"], "documents": 3, "given": given, "base": model, "result": model}

    sets = {"english": entry(6.25, 0.0), "mixed-continued": entry(7.5, 0.45), "mine": entry(9.75, 0.0)}
    found = {**results(), "perplexity_sets": sets}
    artefacts = Artefacts(**{**vars(Artefacts.load(stages)), "results": found})
    shown = quality(artefacts, ["BiLLa-7B-LLM", "LLaMA-7B"])
    assert isinstance(shown, Quality) and shown.published is not None and shown.source
    assert [column.title for column in shown.published.columns] == ["model", "english", "mixed-continued"]
    assert [[str(value) for _, value in row] for row in shown.published.rows] == [
        ["this run: base", "6.25", "7.50"],
        ["this run: result", "6.25", "7.50"],
        ["LLaMA-7B", "5.11", "None"],
        ["BiLLa-7B-LLM", "5.47", "6.92"],
    ]
    (stages["evaluate"] / "results.json").write_text(json.dumps(found))
    config = ReportConfig(published=["BiLLa-7B-LLM", "LLaMA-7B"])
    page = Page(render(stages, tmp_path / "report", config)).text
    assert "Perplexity beside published figures model english mixed-continued" in page
    assert "this run: result 6.25 7.50 LLaMA-7B 5.11 – BiLLa-7B-LLM 5.47 6.92 Other rows" in page
    for names in ([], ["Swallow 7B"]):
        without = quality(artefacts, names)
        assert isinstance(without, Quality) and without.published is None
    assert "published figures" not in Page(render(stages, tmp_path / "without")).text


HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>{{ 7*7 }}"


def hostile(value: Any) -> Any:
    """The same structure with every text replaced, languages and times left alone."""
    if isinstance(value, dict):
        kept = {"language", "started", "metric", "suite"}
        return {key: item if key in kept else hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_is_shown_and_not_obeyed(stages: dict[str, Path], tmp_path: Path) -> None:
    for path in (path for folder in stages.values() for path in folder.glob("*.json*")):
        lines = [json.dumps(hostile(json.loads(line))) for line in path.read_text().splitlines()]
        path.write_text("\n".join(lines) + "\n")
    report = json.loads((stages["corpus"] / "report.json").read_text())
    report["sources"][0]["dropped"] = {HOSTILE: {"documents": 434, "bytes": 1}}
    (stages["corpus"] / "report.json").write_text(json.dumps(report))
    (stages["tokenizer"] / "pieces.tsv").write_text(f"id\tpiece\tscore\tbase_ids\n1\t{HOSTILE}\t-1\t5\n")
    with (stages["train"] / "metrics.jsonl").open("a") as file:
        point = {"step": 60, "consumed_tokens": 6000, f"validation/bits_per_byte/{HOSTILE}": 2.0}
        file.write(json.dumps(point) + "\n")
    markup = render(stages, tmp_path / "report", ReportConfig(title=HOSTILE))
    page = Page(markup)
    assert "<script" not in markup and "<img" not in markup
    assert page.text.count(HOSTILE) >= 10 and "49" not in page.text.split()
    assert all(reference.startswith("#") for reference in page.references)


def test_the_axis_is_tokens_though_the_last_line_is_about_a_checkpoint(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    with (stages["train"] / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 50, "checkpoint/seconds": 0.5}) + "\n")
    page = Page(render(stages, tmp_path / "report")).text
    assert "tokens 5,000" in page
    assert re.search(r"5k tokens|1k tokens", page) is not None
    assert "steps bits per byte" not in page and "tokens bits per byte" in page
