"""Scores of benchmarks by hand, their intervals, and how the report shows them."""

from __future__ import annotations

import pytest

from tsugiki.evaluation.benchmarks.harness import (
    _interval,
    _outcome,
    wilson,
)
from tsugiki.evaluation.benchmarks.scores.characters import character_f1, character_rouge2, normalised
from tsugiki.evaluation.benchmarks.scores.exact import last_number
from tsugiki.evaluation.benchmarks.suites import benchmarks
from tsugiki.evaluation.benchmarks.tasks.math_local import boxed
from tsugiki.evaluation.config import HarnessConfig
from tsugiki.evaluation.pages.artefacts import Artefacts
from tsugiki.evaluation.pages.benchmarks import benchmarks as shown_benchmarks
from tsugiki.evaluation.report import TEMPLATE
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.pages.page import Section, render_section


def benchmarks_of(artefacts: Artefacts, published: list[str]) -> str:
    """The section of the report as HTML."""
    section = Section("benchmarks", "Benchmarks", shown_benchmarks(artefacts, published))
    return render_section(section, TEMPLATE)


def test_character_f1_by_hand() -> None:
    # 2 of 3 characters given are right, 2 of 2 wanted are given: F1 = 2 * 2 / (3 + 2)
    assert character_f1("東京都", ["東京"]) == pytest.approx(0.8)
    assert character_f1("ＴＯＫＹＯ。", ["tokyo"]) == 1.0
    assert character_f1("", ["東京"]) == 0.0
    assert character_f1("大阪", ["東京", "大阪府"]) == pytest.approx(0.8)


def test_rouge2_over_characters_by_hand() -> None:
    # ab bc cd against ab bc ce: 2 pairs shared of 3 and 3
    assert character_rouge2("abcd", ["abce"]) == pytest.approx(2 / 3)
    # The better of two references; one pair of three and one shared of it: 2 * 1 / (3 + 1)
    assert character_rouge2("abcd", ["xy", "cd"]) == pytest.approx(0.5)
    assert character_rouge2("ab", ["ba"]) == 0.0
    # Nothing to pair on one side is wrong, on both sides nothing is missing.
    assert character_rouge2("a", ["bc"]) == 0.0
    assert character_rouge2("a", ["b"]) == 1.0


def test_what_does_not_make_an_answer_wrong() -> None:
    assert normalised(" Ａ、b. ") == normalised("ab")
    assert normalised("a") != normalised("b")


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("18 dollars", "18", 1.0),
        ("First 3, then 1,234.", "1234", 1.0),
        ("答えは１８です", "18", 1.0),
        ("It is 18, or 19", "18", 0.0),
        ("none", "18", 0.0),
        ("so 9 * 2 = 18.0", "Janet sells...\n#### 18", 1.0),
        ("-5", "5", 0.0),
    ],
)
def test_last_number(text: str, answer: str, right: float) -> None:
    assert last_number(text, [answer]) == right


def test_boxed() -> None:
    assert boxed(r"so \boxed{\sqrt{2} + 1}", [r"\sqrt{2}+1"]) == 1.0
    assert boxed("work\n42", ["42"]) == 1.0
    assert boxed(r"\boxed{41} \boxed{42", ["42"]) == 1.0
    assert boxed("", ["42"]) == 0.0


def test_wilson_interval_by_hand() -> None:
    # 0 of n: from 0 to z^2 / (n + z^2); 1.959964^2 = 3.8415.
    assert wilson(0.0, 6) == pytest.approx((0.0, 3.84146 / 9.84146), abs=1e-5)
    assert wilson(1.0, 6) == pytest.approx((6 / 9.84146, 1.0), abs=1e-5)
    # Half right is symmetric: 0.5 -/+ z / 2 / sqrt(n + z^2).
    half = 1.959964 / 2 / (100 + 3.84146) ** 0.5
    assert wilson(0.5, 100) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_intervals_stay_on_their_scale() -> None:
    assert _interval("character_f1", 0.02, 0.02, 24) == [0.0, pytest.approx(0.02 + 1.959964 * 0.02)]
    # 24 answers without a right character do not prove that no answer ever has one.
    assert _interval("character_f1", 0.0, 0.0, 24) == list(wilson(0.0, 24))
    assert _interval("accuracy", 0.25, 0.1, 24) == list(wilson(0.25, 24))
    assert _interval("bleu", 20.0, 1.0, 24) == pytest.approx([18.04, 21.96], abs=1e-3)
    assert _interval("bleu", 20.0, None, 24) is None


def _measured(task: str, numbers: dict[str, object], fewshot: int) -> dict[str, dict[str, object]]:
    """What the harness gives for a task."""
    return {"results": {task: numbers}, "n-samples": {task: {"effective": 1000}}, "n-shot": {task: fewshot}}


def test_scores_lie_on_the_scale_of_the_published_row() -> None:
    """SQuAD2.0 of the harness is 0 to 100, the card's row 0 to 1."""
    (item,) = benchmarks(HarnessConfig(tasks=["swallow-en/SQuAD2.0"]))
    found = _outcome(item, _measured("squadv2", {"exact,none": 32.07, "exact_stderr,none": 1.5}, 8))
    assert found["value"] == pytest.approx(0.3207)
    assert found["standard_error"] == pytest.approx(0.015)
    assert found["interval"] == pytest.approx(wilson(0.3207, 1000))
    results = {"benchmarks": {name: {item.key: found} for name in ("base", "result")}}
    artefacts = Artefacts(**{**vars(Artefacts.load({})), "results": results})
    content = benchmarks_of(artefacts, ["Swallow 7B"])
    assert "0.3207" in content and "0.3125" in content


def test_the_filter_whose_answer_counts() -> None:
    """Zero-shot chat never writes GSM8K's `####`; examples of eight shots do."""
    numbers: dict[str, object] = {
        "exact_match,strict-match": 0.001, "exact_match_stderr,strict-match": 0.001,
        "exact_match,flexible-extract": 0.8, "exact_match_stderr,flexible-extract": 0.01,
    }  # fmt: skip
    (chat,) = benchmarks(HarnessConfig(tasks=["sus-chat-reasoning/gsm8k"]))
    assert _outcome(chat, _measured("gsm8k", numbers, 0))["value"] == 0.8
    (plain,) = benchmarks(HarnessConfig(tasks=["swallow-en/GSM8K"]))
    assert _outcome(plain, _measured("gsm8k", numbers, 8))["value"] == 0.001
    with pytest.raises(DataError, match="does not give the metric") as raised:
        _outcome(chat, _measured("gsm8k", {"exact_match,strict-match": 0.5}, 0))
    assert "flexible-extract" in str(raised.value)


def test_the_report_shows_ours_beside_the_published_row() -> None:
    def outcome(value: float) -> dict[str, object]:
        return {
            "title": "JSQuAD",
            "suite": "swallow-ja",
            "task": "jsquad",
            "metric": "character_f1",
            "value": value,
            "standard_error": 0.01,
            "interval": [value - 0.0196, value + 0.0196],
            "fewshot": 4,
            "questions": 100,
        }

    artefacts = Artefacts.load({})
    assert shown_benchmarks(artefacts, []) == []
    measured = {
        name: {"swallow-ja/JSQuAD": outcome(value)} for name, value in (("base", 0.7), ("result", 0.8))
    }
    artefacts = Artefacts(**{**vars(artefacts), "results": {"benchmarks": measured}})
    content = benchmarks_of(artefacts, ["Swallow 7B"])
    for expected in ("0.7000", "0.8000", "[0.6804, 0.7196]", "Swallow 7B", "0.8573", "JSQuAD 4 (100)"):
        assert expected in content
    assert "Swallow 70B" not in content
    assert "chat template" not in content
    measured["result"]["swallow-ja/JSQuAD"]["chat"] = True
    assert "Asked in their chat template: result." in benchmarks_of(artefacts, ["Swallow 7B"])
