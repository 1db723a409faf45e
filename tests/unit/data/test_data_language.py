"""A fastText model given by path, trained here on a few lines of each language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datatrove.data import Document

from tsugiki.data.common.stats import DocumentStats
from tsugiki.data.filters.language import FasttextIdentifier, LanguageFilter
from tsugiki.experiment.errors import ConfigError

fasttext = pytest.importorskip("fasttext")
TEXTS = Path(__file__).parents[2] / "fixtures" / "text"
LABELS = {"ja": "jpn_Jpan", "zh": "cmn_Hans", "th": "tha_Thai", "vi": "vie_Latn", "en": "eng_Latn"}
TRADITIONAL = "這是一個關於臺灣歷史與語言發展的簡單說明，讀者將會學習許多國家的體育與藝術。"


def lines_of(language: str) -> list[str]:
    lines = (TEXTS / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"].replace("\n", " ") for line in lines]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GlotLID's form of labels; character n-grams, as its texts have no spaces."""
    folder = tmp_path_factory.mktemp("fasttext")
    rows = [
        f"__label__{label} {text}" for language, label in LABELS.items() for text in lines_of(language)[::2]
    ]
    rows += [f"__label__cmn_Hant {TRADITIONAL}"] * 12
    (folder / "train.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    trained = fasttext.train_supervised(
        str(folder / "train.txt"),
        epoch=60,
        lr=0.5,
        dim=16,
        minn=1,
        maxn=2,
        bucket=20_000,
        thread=10,  # fastText fills its matrix in tenths, one a thread: with fewer, the rest is what memory held
        verbose=0,
    )
    trained.save_model(str(folder / "model.bin"))
    return folder / "model.bin"


def test_probabilities_by_language(model: Path) -> None:
    identifier = FasttextIdentifier(model)
    for language in LABELS:
        for text in lines_of(language)[1::2][:5]:
            scores = identifier.scores(text)
            assert next(iter(scores)) == language
            # fastText itself, its labels read by hand.
            labels, values = fasttext.load_model(str(model)).predict(text, k=1)
            assert labels[0] == f"__label__{LABELS[language]}"
            assert scores[language] == pytest.approx(min(1.0, float(values[0])))
    assert next(iter(identifier.scores(TRADITIONAL))) == "zh-Hant"


@pytest.mark.parametrize(("accepted", "kept"), [(["zh"], False), (["zh", "zh-Hant"], True)])
def test_traditional_chinese_is_kept_where_it_is_accepted(
    model: Path, accepted: list[str], kept: bool
) -> None:
    stats = DocumentStats()
    step = LanguageFilter("zh", accepted, 0.65, str(model), None, stats.writer("language"))
    documents = [
        Document(TRADITIONAL, "hant"),
        Document(lines_of("zh")[1], "hans"),
        Document(lines_of("en")[1], "en"),
    ]
    found = [document.id for document in step.run(iter(documents))]  # type: ignore[arg-type]
    assert found == (["hant"] if kept else []) + ["hans"]
    assert set(stats.dropped) == {"language.is_en"} | (set() if kept else {"language.is_zh-Hant"})


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such language identification model") as caught:
        FasttextIdentifier(tmp_path / "glotlid.bin")
    assert "corpus.language_identification.model" in str(caught.value)
    (tmp_path / "page.bin").write_text("<!doctype html><p>moved</p>")
    with pytest.raises(ConfigError, match="not a fastText model") as caught:
        FasttextIdentifier(tmp_path / "page.bin")
    assert str(tmp_path / "page.bin") in str(caught.value)
