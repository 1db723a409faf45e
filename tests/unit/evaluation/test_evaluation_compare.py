"""Comparing runs: paired differences, honest about what cannot be compared."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from test_report_page import Page

from tsugiki.evaluation.compare import compare
from tsugiki.evaluation.pages.compute_matched import compute_matched
from tsugiki.experiment.errors import ConfigError, DataError

LANGUAGES = ("ja", "en")


def write_run(
    run_dir: Path,
    bits: dict[str, list[float]],
    *,
    tokens_per_byte: float,
    text: str = "same",
    window: int = 256,
    base_bits: float = 4.0,
) -> Path:
    """A run whose result needs these bits per byte in documents of 100 bytes."""
    for stage in ("tokenizer", "tokens", "train", "evaluate"):
        (run_dir / stage).mkdir(parents=True)

    def model(rates: dict[str, list[float]]) -> dict[str, Any]:
        means = {language: sum(values) / len(values) for language, values in rates.items()}
        return {
            "bits_per_byte": means,
            "bits_per_byte_interval": {
                language: [min(values), max(values)] for language, values in rates.items()
            },
            "nats": {language: sum(values) * 100 * math.log(2) for language, values in rates.items()},
            "tokens": {language: len(values) * 100 * tokens_per_byte for language, values in rates.items()},
        }

    results = {
        "protocol": {"window_tokens": window, "stride_tokens": 128, "dtype": "float32"},
        "bytes": {language: 100 * len(values) for language, values in bits.items()},
        "text_sha256": {language: f"{text}-{language}" for language in bits},
        "base": model({language: [base_bits] * len(values) for language, values in bits.items()}),
        "result": model(bits),
    }
    (run_dir / "evaluate/results.json").write_text(json.dumps(results))
    records = [
        {
            "language": language,
            "id": str(position),
            "bytes": 100,
            "base": {"nats": base_bits * 100 * math.log(2), "tokens": 50},
            "result": {"nats": rate * 100 * math.log(2), "tokens": 100 * tokens_per_byte},
        }
        for language, values in bits.items()
        for position, rate in enumerate(values)
    ]
    (run_dir / "evaluate/documents.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    (run_dir / "tokenizer/report.json").write_text(
        json.dumps({"base_vocabulary": 32000, "vocabulary_size": 32096})
    )
    # 250 bytes of text behind 100 tokens of the one source.
    source = {"share": 1.0, "bytes": 1000 / tokens_per_byte, "tokens": 1000}
    (run_dir / "tokens/mixture.json").write_text(json.dumps({"vocabulary_size": 32096, "sources": [source]}))
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "consumed_tokens": step * 1000,
            "throughput/tokens_per_second": 500.0,
            "throughput/tflops_causal_attention": 0.002,
            "validation/bits_per_byte/ja": 3.0 / step,
        }
        for step in (1, 2)
    ]
    (run_dir / "train/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run_dir


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    extended = {"ja": [1.0, 1.2, 1.4], "en": [1.0, 1.0, 1.0]}
    kept = {language: [rate + 0.5 for rate in rates] for language, rates in extended.items()}
    return [
        write_run(tmp_path / "extended", extended, tokens_per_byte=0.25),
        write_run(tmp_path / "kept", kept, tokens_per_byte=0.5),
    ]


def test_differences_are_paired_and_relative_to_the_first_run(runs: list[Path], tmp_path: Path) -> None:
    values = compare(runs, tmp_path / "out").values
    for language in LANGUAGES:
        difference = values["difference"][language]["kept"]
        # Every document costs half a bit per byte more, whatever the resample.
        assert difference["bits_per_byte"] == pytest.approx(0.5)
        assert difference["interval"] == pytest.approx([0.5, 0.5])
    assert values["reference"] == "extended"
    assert values["warnings"] == []


def test_cost_in_tokens_bytes_and_flops(runs: list[Path], tmp_path: Path) -> None:
    values = compare(runs, tmp_path / "out").values
    # 0.25 tokens per byte: 2,000 tokens are 8,000 bytes; 2e9 FLOP/s at 500 tokens/s is 4e6 a token.
    assert values["runs"]["extended"]["new_pieces"] == 96
    assert values["runs"]["extended"]["trained_bytes"] == pytest.approx(8000)
    assert values["runs"]["kept"]["trained_bytes"] == pytest.approx(4000)
    assert values["runs"]["extended"]["trained_flops"] == pytest.approx(8e9)
    last = values["curves"]["extended"]["ja"][-1]
    assert last == pytest.approx({"tokens": 2000, "bytes": 8000, "flops": 8e9, "bits_per_byte": 1.5})
    assert values["tokens_per_byte"]["ja"] == {"extended": 0.25, "kept": 0.5}


def test_what_was_reached_for_equal_cost(runs: list[Path], tmp_path: Path) -> None:
    values = compare(runs, tmp_path / "out").values
    found = values["compute_matched"]
    # Validation after 1,000 and 2,000 tokens: 3.0 and 1.5 bits per byte in both runs. `kept` has read 4,000
    # bytes when it ends, which `extended` had after 1,000 tokens.
    assert found["bytes"] == {"at": 4000.0, "bits_per_byte": {"ja": {"extended": 3.0, "kept": 1.5}}}
    assert found["tokens"]["bits_per_byte"]["ja"] == {"extended": 1.5, "kept": 1.5}
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8")).text
    assert "kept, 4k bytes" in page and "At equal cost" in page
    markdown = (tmp_path / "out/comparison.md").read_text()
    assert "after 4k bytes of text" in markdown and "| ja | 3.000 | 1.500 |" in markdown
    assert "| ja | 0.2500 | 0.5000 |" in markdown


def test_equal_cost_is_linear_between_measurements_and_nothing_outside() -> None:
    def curve(*points: tuple[float, float]) -> list[dict[str, float | None]]:
        return [
            {"tokens": tokens, "bytes": None, "flops": tokens * 10, "bits_per_byte": value}
            for tokens, value in points
        ]

    found = compute_matched(
        {
            "a": {"ja": curve((100, 4.0), (300, 2.0)), "en": curve((250, 1.0), (300, 0.9))},
            "b": {"ja": curve((100, 3.0), (200, 2.5)), "en": curve((100, 1.0), (200, 0.9))},
        }
    )
    assert found["tokens"] == {"at": 200, "bits_per_byte": {"ja": {"a": 3.0, "b": 2.5}}}
    assert found["flops"]["at"] == 2000
    assert "bytes" not in found


def test_settings_that_differ_are_listed(runs: list[Path], tmp_path: Path) -> None:
    for run_dir, extend in zip(runs, ("{size: 96}", "null"), strict=True):
        (run_dir / "config.yaml").write_text(
            f"name: {run_dir.name}\nseed: 1\nrun_dir: {run_dir}\ntokenizer: {{extend: {extend}}}\n"
            "corpus: {sources: [{name: web, path: a}]}\n"
        )
    values = compare(runs, tmp_path / "out").values
    assert values["settings"] == {"tokenizer.extend": {"extended": {"size": 96}, "kept": None}}
    assert "tokenizer.extend" in Page((tmp_path / "out/index.html").read_text(encoding="utf-8")).text


def test_a_kept_vocabulary_has_no_new_pieces(runs: list[Path], tmp_path: Path) -> None:
    (runs[1] / "tokenizer/report.json").write_text(
        json.dumps({"pieces": 0, "vocabulary_size": 32000, "gates": []})
    )
    assert compare(runs, tmp_path / "out").values["runs"]["kept"]["new_pieces"] == 0


def test_the_three_files_agree(runs: list[Path], tmp_path: Path) -> None:
    found = compare(runs, tmp_path / "out")
    assert [path.name for path in found.files] == ["index.html", "comparison.json", "comparison.md"]
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == json.loads(json.dumps(found.values))
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))
    assert all(reference.startswith("#") for reference in page.references)
    for expected in ("extended against kept", "1.200", "1.700", "+0.500", "Japanese"):
        assert expected in page.text
    markdown = (tmp_path / "out/comparison.md").read_text(encoding="utf-8")
    assert "| ja | 1.200 [1.000, 1.400] | 1.700 [1.500, 1.900] | +0.500 [+0.500, +0.500] |" in markdown
    assert any(re.match(r"  ja +1\.200  1\.700$", line) for line in found.summary)
    assert str(tmp_path) not in (tmp_path / "out/comparison.json").read_text()


def test_other_text_gives_no_difference(runs: list[Path], tmp_path: Path) -> None:
    other = write_run(
        tmp_path / "other",
        {"ja": [1.0], "en": [1.0]},
        tokens_per_byte=0.5,
        text="other",
        window=512,
        base_bits=5,
    )
    values = compare([runs[0], other], tmp_path / "out").values
    assert values["difference"] == {}
    assert values["same_text"] == {"ja": False, "en": False}
    assert any("different windows" in warning for warning in values["warnings"])
    assert any("same base" in warning for warning in values["warnings"])
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8")).text
    assert "different windows" in page


def test_a_run_that_was_only_trained_still_has_curves(runs: list[Path], tmp_path: Path) -> None:
    for name in ("results.json", "documents.jsonl"):
        (runs[1] / "evaluate" / name).unlink()
    values = compare(runs, tmp_path / "out").values
    assert list(values["curves"]["kept"]) == ["ja"]
    assert values["warnings"] == ["kept has not been evaluated."]
    Page((tmp_path / "out/index.html").read_text(encoding="utf-8"))


def test_benchmarks_of_the_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    for run_dir, value in zip(runs, (0.25, 0.75), strict=True):
        path = run_dir / "evaluate/results.json"
        results = json.loads(path.read_text())
        outcome = {"value": value, "interval": [value - 0.1, value + 0.1], "metric": "accuracy", "fewshot": 4}
        path.write_text(json.dumps({**results, "benchmarks": {"result": {"swallow-ja/JSQuAD": outcome}}}))
    values = compare(runs, tmp_path / "out").values
    assert values["benchmarks"]["swallow-ja/JSQuAD"]["kept"]["value"] == 0.75
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8")).text
    assert "swallow-ja/JSQuAD" in page and "0.2500 [0.1500, 0.3500]" in page
    assert "| swallow-ja/JSQuAD | 0.2500 [0.1500, 0.3500] |" in (tmp_path / "out/comparison.md").read_text()


def test_hostile_text_is_shown_and_not_obeyed(runs: list[Path], tmp_path: Path) -> None:
    hostile = (
        "<script>alert('x')<|script>\"><img src=x onerror=alert(1)>{{ 7*7 }}"  # a folder's name has no slash
    )
    other = write_run(tmp_path / hostile, {"ja": [1.0], hostile: [2.0]}, tokens_per_byte=0.5)
    for run_dir, value in zip([runs[0], other], (1, hostile), strict=True):
        (run_dir / "config.yaml").write_text(json.dumps({hostile: value}))
    compare([runs[0], other], tmp_path / "out")
    markup = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    page = Page(markup)
    assert "<script" not in markup and "<img" not in markup
    assert page.text.count(hostile) >= 10 and "49" not in page.text.split()
    tables = (tmp_path / "out/comparison.md").read_text(encoding="utf-8").splitlines()
    columns = {len(re.findall(r"(?<!\\\\)\|", line)) for line in tables if line.startswith("| ja ")}
    assert columns == {4, 5}  # the name's own bar ends no cell


def test_charts_have_their_numbers_in_a_table(runs: list[Path], tmp_path: Path) -> None:
    compare(runs, tmp_path / "out")
    page = Page((tmp_path / "out/index.html").read_text(encoding="utf-8")).text
    assert "Held-out bits per byte during training chart line" in page
    assert "Japanese extended 4,000 3.000 Japanese extended 8,000 1.500" in page


def test_names_are_made_unique(runs: list[Path], tmp_path: Path) -> None:
    twin = write_run(tmp_path / "b" / "extended", {"ja": [1.0]}, tokens_per_byte=0.5)
    names = list(compare([runs[0], twin], tmp_path / "out").values["runs"])
    assert names[1] == "b/extended" and names[0].endswith("/extended")
    with pytest.raises(ConfigError, match="same run twice"):
        compare([runs[0], runs[0]], tmp_path / "out")


def test_requests_that_make_no_sense(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(runs[:1], tmp_path / "out")
    with pytest.raises(ConfigError, match="no such run directory"):
        compare([runs[0], tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing to compare in a run"):
        compare([runs[0], tmp_path / "empty"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
