"""The shipped profiles over real-looking documents: each rule removes what was planted for it, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpus_plants import Plants
from test_corpus_golden import LANGUAGES, ROOT, fixture_documents, rules_by_id

from tsugiki.data import corpus
from tsugiki.data.common.jsonl_shards import read_documents
from tsugiki.data.config import CorpusConfig
from tsugiki.data.profiles import load_profile
from tsugiki.experiment.run.stage import StageContext

PROFILES = str(ROOT / "configs/filters")
PHONES = {
    "ja": "03-1234-5678", "zh": "13812345678", "vi": "0912 345 678", "id": "0812-3456-7890", "th": "02-123-4567",
    "ms": "03-1234 5678", "km": "012 345 678", "lo": "020 5555 1234", "my": "09 123 456 789", "tl": "0917 123 4567",
    "en": "(415) 555-2671",
}  # fmt: skip
CANNOT_BE_REACHED = {"gopher.gopher_short_doc", "gopher.gopher_below_avg_threshold"}
"""In most languages earlier rules remove such documents."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_rule_of_a_shipped_profile_removes_its_document(tmp_path: Path, language: str) -> None:
    texts = list(dict.fromkeys(item["text"] for item in fixture_documents(language)))
    question = texts.pop(-2)
    profile = load_profile(language, [PROFILES])
    plants = Plants(language, texts, profile).make()
    good = ["\n".join(texts[start::3]) for start in range(3)]
    other = "\n".join(texts[::2])
    late = {
        "duplicate.text": f"  {good[0]}\n\n",
        "duplicate.url": other,
        "duplicate.near": good[1][:-12],
        "contaminated.questions.jsonl": f"{other}\n{question}",
    }
    contact = f"foreman@village.org {PHONES[language]}"
    records = [
        {"id": f"good {number}", "text": text, "url": f"https://a.org/{number}"}
        for number, text in enumerate([*good[:2], f"{good[2]}\n{contact}"])
    ]
    records += [{"id": rule, "text": text} for rule, text in (plants | late).items()]
    next(record for record in records if record["id"] == "duplicate.url")["url"] = "https://a.org/1"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (tmp_path / "in.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": question}) + "\n")
    source = {"name": "web", "language": language, "format": "jsonl", "path": str(tmp_path / "in.jsonl")}
    config = CorpusConfig.model_validate(
        {
            "sources": [source],
            "profiles": PROFILES,
            "decontamination": {"paths": [str(tmp_path / "questions.jsonl")]},
            "heldout": {"fraction": 0},
        }
    )
    output = tmp_path / "out"
    output.mkdir()
    corpus.run(config, {}, output, StageContext(workers=1))
    assert rules_by_id(output, "web") == {rule: rule for rule in plants | late}
    kept = {document.id: document.text for document in read_documents(output / "web/00000.jsonl.zst")}
    assert list(kept) == ["web/good 0", "web/good 1", "web/good 2"]
    mail, _, phone = kept["web/good 2"].splitlines()[-1].partition(" ")
    assert (mail, set(phone) - set("()- ")) == ("email@example.com", {"0"})
    [report] = json.loads((output / "report.json").read_text())["sources"]
    assert {key: value for key, value in report["counters"].items() if key.startswith("masked_")} == {
        "masked_email": 1,
        "masked_phone": 1,
    }
    assert report["read"]["documents"] == len(records)
    assert {rule: count["documents"] for rule, count in report["dropped"].items()} == dict.fromkeys(
        plants | late, 1
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_rule_of_a_shipped_profile_has_a_document(language: str) -> None:
    """One for each section of the profile, and for each of the rules a section is known to have."""
    texts = list(dict.fromkeys(item["text"] for item in fixture_documents(language)))
    profile = load_profile(language, [PROFILES])
    rules = set(Plants(language, texts, profile).make())
    named = {"language_identification": "language"}
    sections = [
        name
        for name in type(profile).model_fields
        if hasattr(getattr(profile, name), "source")
        and name != "cleaning"  # changes texts, removes none: test_data_rules.py
    ]
    assert {named.get(name, name) for name in sections} == {rule.split(".")[0] for rule in rules}
    if profile.gopher is not None:
        words = {rule for rule in rules if rule.startswith("gopher.")} - CANNOT_BE_REACHED
        assert len(words) == 6
    if profile.repetition is not None:
        assert sum(rule.startswith("repetition.") for rule in rules) == 6
