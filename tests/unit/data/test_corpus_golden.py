"""Every language's fixture texts with planted bad documents: each rule removes exactly those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tsugiki.data import corpus
from tsugiki.data.common.jsonl_shards import read_documents
from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.config import CorpusConfig
from tsugiki.data.profiles import load_profile
from tsugiki.experiment.run.stage import StageContext

ROOT = Path(__file__).parents[3]
LANGUAGES = ["ja", "zh", "vi", "id", "th", "ms", "km", "lo", "my", "tl", "en"]
FOREIGN = {
    "en": "Esta página trata de la historia de la ciudad y de sus habitantes durante los últimos siglos.",
    "other": "This page is about the history of the town and the people who lived there for centuries.",
}


def fixture_documents(language: str) -> list[dict[str, str]]:
    lines = (ROOT / f"tests/fixtures/text/{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def rules_by_id(output: Path, source: str) -> dict[str, str]:
    return {
        document.id.removeprefix(f"{source}/"): document.metadata["rule"]
        for document in read_documents(output / source / "dropped.jsonl.zst")
    }


def test_each_rule_removes_what_was_planted_and_nothing_else(tmp_path: Path) -> None:
    sources = []
    for language in LANGUAGES:
        documents = fixture_documents(language)
        texts = list(dict.fromkeys(item["text"] for item in documents))
        planted = {
            "foreign": FOREIGN["en" if language == "en" else "other"],
            "short": texts[0][:12],
            "lines": "\n".join([texts[1]] * 4 + [texts[2]]),
            "copy": f"  {texts[3]}\n\n",
            "symbols": "12345 67890 -- *** 2024/01/01",
        }
        records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
        records += [{"id": name, "text": text} for name, text in planted.items()]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        lines += ['{"id": "cut", "text": "', '{"id": "no text"}']
        path = tmp_path / f"{language}.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        sources.append({"name": language, "language": language, "format": "jsonl", "path": str(path)})
    config = CorpusConfig.model_validate(
        {
            "sources": sources,
            "profiles": str(ROOT / "tests/fixtures/filters"),
            "deduplication": {"minhash": {"enabled": False}},
        }
    )
    output = tmp_path / "out"
    output.mkdir()
    corpus.run(config, {}, output, StageContext(workers=1))
    report = {item["name"]: item for item in json.loads((output / "report.json").read_text())["sources"]}
    for language in LANGUAGES:
        found = rules_by_id(output, language)
        assert found.pop("foreign").startswith("language."), language
        assert found.pop("lines").startswith("repetition.dup_"), language
        assert found.pop("short") == "length.few_letters", language
        assert found.pop("symbols") == "length.few_letters", language
        assert found.pop("copy") == "duplicate.text", language
        where = [rule for name, rule in found.items() if name.startswith(f"{language}.jsonl, line")]
        assert sorted(where) == ["read.invalid_json", "read.missing_field"], language
        assert len(found) == 2, (language, found)
        dropped = sum(count["documents"] for count in report[language]["dropped"].values())
        assert dropped == 7


@pytest.mark.parametrize("language", LANGUAGES)
def test_fixture_texts_are_identified(language: str) -> None:
    from tsugiki.data.filters.language import LanguageFilter

    section = load_profile(language, [str(ROOT / "configs/filters")]).language_identification
    assert section is not None
    step = LanguageFilter(
        language, [language, *section.accept], section.minimum_share, None, section.confusable,
        DocumentStats().writer("language"),
    )  # fmt: skip
    from datatrove.data import Document

    wrong = [
        item["id"]
        for item in fixture_documents(language)
        if step.filter(Document(item["text"], "")) is not True
    ]
    assert wrong == []
