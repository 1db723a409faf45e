"""Pairs of answers as they are published, and what is none, each by name."""

from __future__ import annotations

from typing import Any

import pytest

from tsugiki.data.config import ReaderConfig
from tsugiki.data.readers.preference import PreferencePair, Refused, preference_pair

ASKED = {"role": "user", "content": "How are you?"}
WELL, BADLY = ({"role": "assistant", "content": text} for text in ("Well.", "Go away."))
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("record", "before"),
    [
        ({"prompt": "How are you?", "chosen": "Well.", "rejected": "Go away."}, [ASKED]),
        ({"prompt": [SYSTEM, ASKED], "chosen": "Well.", "rejected": [BADLY]}, [SYSTEM, ASKED]),
        ({"chosen": [ASKED, WELL], "rejected": [ASKED, BADLY]}, [ASKED]),
        ({"prompt": "How are you?", "chosen": [ASKED, WELL], "rejected": [ASKED, BADLY]}, [ASKED]),
        (
            {"prompt": [SYSTEM], "chosen": [ASKED, WELL], "rejected": [ASKED, BADLY]},
            [SYSTEM, ASKED],
        ),
    ],
)
def test_published_forms(record: dict[str, Any], before: list[dict[str, str]]) -> None:
    assert preference_pair(record, ReaderConfig()) == PreferencePair([*before, WELL], BADLY)


def test_keys_of_ones_own() -> None:
    options = ReaderConfig(prompt_key="in", chosen_key="out.good", rejected_key="out.bad")
    record = {"in": "How are you?", "out": {"good": "Well.", "bad": "Go away."}}
    assert preference_pair(record, options) == PreferencePair([ASKED, WELL], BADLY)


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ({"prompt": "a", "chosen": "b"}, "read.missing_field"),
        ({"chosen": "b", "rejected": "c"}, "read.missing_field"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "read.wrong_type"),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "read.wrong_type"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "read.wrong_type"),
        ({"chosen": [WELL, ASKED], "rejected": [BADLY]}, "read.wrong_type"),
        ({"prompt": "a", "chosen": [{"role": "nobody", "content": "b"}], "rejected": "c"}, "read.wrong_type"),
        ({"prompt": "a", "chosen": " ", "rejected": "c"}, "read.empty_answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "b\n"}, "read.equal_answers"),
        ({"chosen": [ASKED, WELL], "rejected": [SYSTEM, BADLY]}, "read.different_prompts"),
    ],
)
def test_what_is_no_pair(record: dict[str, Any], rule: str) -> None:
    found = preference_pair(record, ReaderConfig())
    assert isinstance(found, Refused) and found.rule == rule
