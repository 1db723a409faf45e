"""The evaluate stage as a whole: what it writes, from which documents, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from evaluation_material import fixture_documents, write_corpus, write_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsugiki.evaluation.config import EvaluateConfig, PerplexitySetConfig, SampleConfig
from tsugiki.evaluation.evaluate import run
from tsugiki.evaluation.scoring.heldout import Document, heldout_documents, measured_languages
from tsugiki.evaluation.scoring.language_model import load_language_model
from tsugiki.evaluation.scoring.samples import choose_prompts, clip, continue_greedily
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex
from tsugiki.experiment.config.validate import load_config
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError
from tsugiki.experiment.run.stage import StageContext, StageResult

LANGUAGES = ("en", "ja", "km")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    texts = {language: [item["text"] for item in fixture_documents(language)[:6]] for language in LANGUAGES}
    return {
        "base": write_model(root / "base", seed=0),
        "export": write_model(root / "export", seed=1),
        "corpus": write_corpus(root / "corpus", texts),
    }


def evaluate(config: EvaluateConfig, inputs: dict[str, Path], output: Path) -> tuple[StageResult, dict]:
    output.mkdir()
    result = run(config, inputs, output, StageContext(seed=3, experiment_name="trial"))
    return result, json.loads((output / "results.json").read_text(encoding="utf-8"))


QUICK = SampleConfig(heldout_prompts_per_language=1, maximum_new_tokens=4)


@pytest.mark.slow
def test_results_have_both_models_and_every_language(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = EvaluateConfig(
        samples=QUICK,
        bootstrap_resamples=200,
        perplexity_sets={
            "english": PerplexitySetConfig(languages=["en"], documents_per_language=2),
            "mixed": PerplexitySetConfig(languages=["en", "ja"], documents_per_language=2),
            "continued": PerplexitySetConfig(languages=["en"], documents_per_language=2, given=0.5),
        },
    )
    result, results = evaluate(config, inputs, tmp_path / "evaluate")
    for name in ("base", "result"):
        assert list(results[name]["bits_per_byte"]) == list(LANGUAGES)
        for language in LANGUAGES:
            low, high = results[name]["bits_per_byte_interval"][language]
            value = results[name]["bits_per_byte"][language]
            assert low <= value <= high
            assert result.metrics[f"{name}/bits_per_byte/{language}"] == value
    for language in LANGUAGES:
        difference = results["difference"][language]
        assert difference["bits_per_byte"] == pytest.approx(
            results["result"]["bits_per_byte"][language] - results["base"]["bits_per_byte"][language]
        )
        # Both models have the same vocabulary here.
        for name in ("base", "result"):
            assert results[name]["perplexity"][language] == pytest.approx(
                results[name]["perplexity_per_base_token"][language]
            )
    assert results["perplexity_sets"]["english"]["documents"] == 2
    assert results["perplexity_sets"]["mixed"]["documents"] == 4
    whole, continued = (results["perplexity_sets"][name]["base"] for name in ("english", "continued"))
    assert continued["tokens"] == pytest.approx(whole["tokens"] / 2, abs=2)
    assert continued["perplexity"] != whole["perplexity"] and continued["bits_per_byte"] is None
    samples = [json.loads(line) for line in (tmp_path / "evaluate/samples.jsonl").read_text().splitlines()]
    assert [sample["language"] for sample in samples] == list(LANGUAGES)
    page = (tmp_path / "evaluate/results.md").read_text(encoding="utf-8")
    assert page.startswith("# trial: base against result")
    assert f"{results['base']['bits_per_byte']['km']:.3f}" in page
    assert all((tmp_path / "evaluate" / name).is_file() for name in result.artifacts)
    assert str(tmp_path) not in json.dumps(results)


def test_a_model_against_itself_differs_by_nothing(inputs: dict[str, Path], tmp_path: Path) -> None:
    same = {**inputs, "export": inputs["base"]}
    _, results = evaluate(EvaluateConfig(samples=QUICK, languages=["ja"]), same, tmp_path / "a")
    assert results["difference"] == {"ja": {"bits_per_byte": 0.0, "interval": [0.0, 0.0]}}


def test_the_same_request_gives_the_same_files(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = EvaluateConfig(samples=QUICK, languages=["en"])
    for name in ("one", "two"):
        evaluate(config, inputs, tmp_path / name)
    for name in ("results.json", "results.md", "samples.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_greedy_samples_are_those_of_generate(inputs: dict[str, Path]) -> None:
    model = load_language_model(inputs["base"], device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(inputs["base"])
    tokenizer = AutoTokenizer.from_pretrained(inputs["base"])
    prompts = ["The lighthouse stands on", "東京", "A longer prompt, so that the rows of the batch differ"]
    config = SampleConfig(maximum_new_tokens=8, maximum_new_bytes=10_000)
    for prompt, text in zip(prompts, continue_greedily(model, prompts, config), strict=True):
        given = torch.tensor([[1, *tokenizer.encode(prompt, add_special_tokens=False)]])
        output = reference.generate(given, do_sample=False, max_new_tokens=8)
        assert prompt + text == tokenizer.decode(output[0], skip_special_tokens=True)


def test_a_prompt_longer_than_the_model_is_cut_at_its_beginning(inputs: dict[str, Path]) -> None:
    model = load_language_model(inputs["base"], device="cpu")
    long = "word " * 500
    texts = continue_greedily(model, [long, long[-1000:]], SampleConfig(maximum_new_tokens=8))
    assert texts[0] == texts[1] != ""


def test_configured_prompts_replace_those_of_documents() -> None:
    documents = {
        "en": [Document("1", "too short"), Document("2", "one two three four five six seven")],
        "ja": [Document("3", "東京は日本の首都です。" * 3)],
        "km": [Document("4", "ស្រី" * 20)],
    }
    config = SampleConfig(heldout_prompts_per_language=1, prompt_characters=10, maximum_new_bytes=12)
    prompts = choose_prompts({"en": ["Hello"], "th": ["สวัสดี"]}, documents, config)
    assert [(prompt.language, prompt.origin) for prompt in prompts] == [
        ("en", "configuration"),
        ("ja", "held-out document"),
        ("km", "held-out document"),
        ("th", "configuration"),
    ]
    assert prompts[0].reference is None
    assert prompts[1].text == "東京は日本の首都です"
    assert prompts[1].reference == "。東京は…"
    # ស្រី is one syllable of four code points, the third of which the cut falls behind.
    assert prompts[2].text == "ស្រី" * 3
    english = choose_prompts({}, documents, config)[0]
    assert (english.text, english.reference) == ("one two", " three four …")


def test_clip_never_cuts_a_character() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("日本", 5) == "日…"


def index_of(inputs: dict[str, Path]) -> CorpusIndex:
    return CorpusIndex.load(inputs["corpus"])


def test_documents_take_turns_between_sources_and_stop_at_the_limit(tmp_path: Path) -> None:
    corpus = write_corpus(
        tmp_path,
        {"ja-1": ["あ" * 10, "い" * 10], "ja-2": ["う" * 10], "ja-3": ["えeお"]},
        {"ja-3": "parallel"},
    )
    index = CorpusIndex.load(corpus)
    texts = [document.text for document in heldout_documents(index, corpus, "ja")]
    assert texts == ["あ" * 10, "う" * 10, "い" * 10]  # translation pairs only where there is nothing else
    cut = heldout_documents(index, corpus, "ja", maximum_bytes=35)
    assert [document.text for document in cut] == ["あ" * 10, "う"]  # 30 bytes, and one character of three
    assert sum(document.bytes for document in cut) == 33
    assert len(heldout_documents(index, corpus, "ja", maximum_documents=2)) == 2


def test_translation_pairs_where_a_language_has_nothing_else(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, {"lo": ["ພາສາ\nlanguage"]}, {"lo": "parallel"})
    assert len(heldout_documents(CorpusIndex.load(corpus), corpus, "lo")) == 1


def test_a_language_without_documents(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no held-out documents in a language") as raised:
        measured_languages(index_of(inputs), ["en", "fr"])
    assert raised.value.got == "fr"
    empty = write_corpus(tmp_path, {"en": []})
    with pytest.raises(DataError, match="nothing to evaluate on"):
        measured_languages(CorpusIndex.load(empty), None)


def test_a_missing_model_is_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no Hugging Face model here"):
        run(EvaluateConfig(), {**inputs, "export": tmp_path / "nowhere"}, tmp_path, StageContext())


def test_stride_must_leave_context(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.yaml"
    path.write_text("sequence_length: 128\nstride: 128\n")
    with pytest.raises(ConfigError, match="stride below sequence_length"):
        load_config(EvaluateConfig, path)


def test_stride_beyond_the_window_of_the_models(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stride"):
        run(EvaluateConfig(stride=64), inputs, tmp_path, StageContext())
