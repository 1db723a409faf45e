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
from tsugiki.evaluation.pages.model import quality_section
from tsugiki.evaluation.report import run
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.manifest import Manifest
from tsugiki.experiment.pages.charts import Line, line_chart, nice_ticks, short, thin
from tsugiki.experiment.pages.html import bar, stacked, tag, text
from tsugiki.experiment.stage import StageContext

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


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 100, 5, [0, 20, 40, 60, 80, 100]),
        (2.98, 3.06, 4, [2.98, 3.0, 3.02, 3.04, 3.06]),
        (0.3, 4.2, 4, [0, 1, 2, 3, 4, 5]),
        (5, 5, 2, [5, 7.5, 10]),
    ],
)
def test_nice_ticks(low: float, high: float, count: int, expected: list[float]) -> None:
    assert nice_ticks(low, high, count) == pytest.approx(expected)


def test_short_numbers() -> None:
    assert [short(value) for value in (0, 0.25, 999, 1500, 2_000_000, 1.048e11)] == [
        "0", "0.25", "999", "1.5k", "2M", "104.8B",
    ]  # fmt: skip


def test_a_line_goes_where_its_points_are() -> None:
    chart = line_chart("test", [Line("a", [(0, 0), (10, 4)], "1")], x_title="x", width=200, height=100)
    # Plot area: 44 to 188 across, 10 to 66 down; the vertical axis covers 0 to 4.
    assert 'd="M44.0 66.0L188.0 10.0"' in chart


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[-1] == (999.0, 0.5)
    assert thin(points[:50], 100) == points[:50]


def test_values_are_escaped_once() -> None:
    assert tag("p", "a < b & c", title='say "hi"') == '<p title="say &quot;hi&quot;">a &lt; b &amp; c</p>'
    assert tag("p", tag("b", "x")) == "<p><b>x</b></p>"
    assert [text(value) for value in (None, True, 12345, -0.5)] == ["–", "yes", "12,345", "−0.5"]


def test_bars_are_shares_of_the_largest() -> None:
    assert 'style="width:25.00%"' in bar(1, 4)
    assert 'style="left:25.00%;width:50.00%"' in bar(2, 4, interval=(1, 3))
    assert 'style="width:0.00%"' in bar(1, 0)
    assert stacked([("a", 1), ("b", 3), ("c", 0)], {"a": "k1", "b": "k2", "c": "k3"}).count("<i ") == 2


def test_published_perplexities_stand_beside_ours(stages: dict[str, Path], tmp_path: Path) -> None:
    def entry(value: float, given: float) -> dict[str, Any]:
        model = {"perplexity": value, "bits_per_byte": None if given else 1.0, "tokens": 10}
        return {"languages": ["en"], "documents": 3, "given": given, "base": model, "result": model}

    sets = {"english": entry(6.25, 0.0), "mixed-continued": entry(7.5, 0.45), "mine": entry(9.75, 0.0)}
    found = {**results(), "perplexity_sets": sets}
    artefacts = Artefacts(**{**vars(Artefacts.load(stages)), "results": found})
    content = quality_section(artefacts, ["BiLLa-7B-LLM", "LLaMA-7B"]).content
    beside = re.sub(r"<[^>]+>", " ", content[content.index("Perplexity beside published figures") :])
    cells = beside.split("Other rows")[0].split()
    assert cells[4:] == [
        "model",
        "english",
        "mixed-continued",
        "this",
        "run:",
        "base",
        "6.25",
        "7.50",
        "this",
        "run:",
        "result",
        "6.25",
        "7.50",
        "LLaMA-7B",
        "5.11",
        "–",
        "BiLLa-7B-LLM",
        "5.47",
        "6.92",
    ]
    assert "published figures" not in quality_section(artefacts, []).content
    assert "published figures" not in quality_section(artefacts, ["Swallow 7B"]).content
