"""Scores against transformers' own loss and against hand calculations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from evaluation_material import fixture_documents, write_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from tsugiki.evaluation.scoring.bits_per_byte import (
    Score,
    bits_per_byte,
    perplexity,
    score_documents,
    windows,
)
from tsugiki.evaluation.scoring.heldout import Document
from tsugiki.evaluation.scoring.language_model import LanguageModel, common_window, load_language_model
from tsugiki.evaluation.scoring.token_nats import token_nats
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(model_dir: Path) -> LanguageModel:
    return load_language_model(model_dir, device="cpu")


def documents(*languages: str, count: int = 4) -> list[Document]:
    return [
        Document(item["id"], item["text"])
        for language in languages
        for item in fixture_documents(language)[:count]
    ]


@given(st.integers(0, 300), st.integers(2, 40), st.data())
def test_windows_score_every_token_once_with_enough_context(
    targets: int, length: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, length - 1))
    context = data.draw(st.one_of(st.just(0), st.integers(0, targets)))
    scored: list[int] = []
    for window in windows(0, targets, length, stride, context):
        assert window.end - window.begin <= length
        first = window.end + 1 - window.scored
        scored.extend(range(first, window.end + 1))
        # A token has all its document before it, or at least window - stride tokens.
        assert window.begin == 0 or first - window.begin >= length - stride
    assert scored == list(range(context + 1, targets + 1))


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7])
def test_a_continuation_has_the_loss_that_transformers_computes(model: LanguageModel, share: float) -> None:
    document = Document("a", "A cup of tea, please, and a slice of the cake that stands over there.")
    (score,) = score_documents(model, [document], window=64, stride=32, given=share)
    ids = torch.tensor([[1, *model.tokenizer.encode(document.text)]])
    context = math.floor(share * (ids.shape[1] - 1))
    labels = ids.clone()
    labels[:, : context + 1] = -100  # BOS and what is given
    with torch.no_grad():
        loss = model.model(input_ids=ids, labels=labels).loss
    assert score.tokens == ids.shape[1] - 1 - context
    assert score.nats == pytest.approx(float(loss) * score.tokens, rel=1e-6)


def test_short_documents_have_the_loss_that_transformers_computes(model: LanguageModel) -> None:
    texts = [
        Document(str(number), text) for number, text in enumerate(["Tea.", "A cup of tea, please.", "茶"])
    ]
    scores = score_documents(model, texts, window=64, stride=32)
    for document, score in zip(texts, scores, strict=True):
        ids = torch.tensor([[1, *model.tokenizer.encode(document.text)]])
        with torch.no_grad():
            loss = model.model(input_ids=ids, labels=ids).loss  # mean over all tokens but the first
        assert score.tokens == ids.shape[1] - 1
        assert score.nats == pytest.approx(float(loss) * score.tokens, rel=1e-6)
        assert score.bytes == len(document.text.encode())


@pytest.mark.parametrize("stride", [8, 16, 31])
def test_long_documents_agree_with_the_sliding_window_of_the_transformers_documentation(
    model: LanguageModel, stride: int
) -> None:
    length = 32
    for document in documents("ja", "en", count=2):
        (score,) = score_documents(model, [document], window=length, stride=stride)
        ids = torch.tensor([[1, *model.tokenizer.encode(document.text)]])
        expected, done = 0.0, 0
        targets = ids.shape[1] - 1
        end = min(length, targets)
        while done < targets:
            begin = max(0, end - length)
            # length tokens of input and the one they predict last
            chunk = ids[:, begin : end + 1]
            labels = chunk.clone()
            labels[:, : -(end - done)] = -100
            with torch.no_grad():
                expected += float(model.model(chunk, labels=labels).loss) * (end - done)
            done, end = end, min(end + stride, targets)
        assert score.nats == pytest.approx(expected, rel=1e-6)


def test_batching_does_not_change_a_score(model: LanguageModel) -> None:
    texts = documents("en", "ja", "km", "th")
    together = score_documents(model, texts, window=64, stride=32)
    small = score_documents(model, texts, window=64, stride=32, batch_bytes=1)
    for one, other in zip(together, small, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-6)
        assert (one.tokens, one.bytes) == (other.tokens, other.bytes)


@pytest.mark.parametrize("keeps_logits", [True, False])
def test_models_of_which_only_logits_can_be_had_score_the_same(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, keeps_logits: bool
) -> None:
    texts = documents("ja", count=2)
    expected = score_documents(model, texts, window=32, stride=16)
    monkeypatch.setattr(LanguageModel, "output_weight", lambda self: None)
    monkeypatch.setattr(LanguageModel, "_keeps_logits", property(lambda self: keeps_logits))
    for one, other in zip(score_documents(model, texts, window=32, stride=16), expected, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-6)


def test_scores_are_the_same_to_the_bit_whatever_the_number_of_workers(model: LanguageModel) -> None:
    texts = documents("en", "ja")
    threads = torch.get_num_threads()
    assert score_documents(model, texts, window=64, stride=32, workers=3) == score_documents(
        model, texts, window=64, stride=32, workers=1
    )
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("rows", "dtype"), [(7, torch.float32), (4096, torch.float32), (9000, torch.bfloat16)]
)
def test_nats_over_blocks_of_the_vocabulary(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(700, 8).to(dtype), (4 * torch.randn(rows, 8)).to(dtype)
    targets = torch.randint(0, rows, (700,))
    targets[:2] = torch.tensor([0, rows - 1])
    logits = (hidden @ weight.t()).double()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(
        token_nats(hidden, weight, targets, 1_000_000).double(), expected, rtol=1e-5, atol=1e-5
    )


def _language_model(network: torch.nn.Module, like: LanguageModel) -> LanguageModel:
    return LanguageModel(**{**vars(like), "model": network.eval(), "vocabulary_size": 32000})


_TINY = {
    "vocab_size": 32000, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


def test_what_a_model_does_behind_its_output_matrix_is_done(model: LanguageModel) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(**_TINY, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.3)
    capped = _language_model(Gemma2ForCausalLM(config), model)
    assert capped.output_weight() is None and model.output_weight() is not None
    (score,) = score_documents(capped, [Document("a", "A cup of tea.")], window=64, stride=32)
    ids = torch.tensor([[1, *model.tokenizer.encode("A cup of tea.")]])
    with torch.no_grad():
        loss = float(capped.model(input_ids=ids, labels=ids).loss)
    assert score.nats == pytest.approx(loss * score.tokens, rel=1e-6)


def test_a_short_document_is_not_read_with_the_positions_of_a_long_one(model: LanguageModel) -> None:
    torch.manual_seed(0)
    scaling = {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [9.0] * 4,
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    network = LlamaForCausalLM(
        LlamaConfig(**_TINY, max_position_embeddings=64, rope_parameters=scaling, initializer_range=0.3)
    )
    scaled = _language_model(network, model)
    # Of like length, so that nothing but the scaling keeps them apart: 16 tokens of input and 17.
    short, long = Document("a", "tea" + " tea" * 15), Document("b", "tea" + " tea" * 16)
    assert [len(model.tokenizer.encode(item.text)) for item in (short, long)] == [16, 17]
    alone = score_documents(scaled, [short], window=64, stride=32)[0]
    for workers in (1, 4):
        beside = score_documents(scaled, [long, short] * 4, window=64, stride=32, workers=workers)
        assert beside[1::2] == [alone] * 4


def test_the_time_is_foretold_once(model: LanguageModel) -> None:
    said: list[tuple[float, str]] = []
    texts = documents("en", "ja")
    scores = score_documents(
        model, texts, window=64, stride=32, expect=lambda seconds, what: said.append((seconds, what))
    )
    ((seconds, what),) = said
    assert 0 < seconds < 60
    assert what.startswith(f"{sum(score.tokens for score in scores):,} tokens in ")


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    model = load_language_model(directory, device="cpu")
    torch.nn.init.zeros_(model.model.lm_head.weight)
    texts = documents("en", "my")
    scores = score_documents(model, texts, window=64, stride=32)
    tokens = sum(len(model.tokenizer.encode(document.text)) for document in texts)
    size = sum(len(document.text.encode()) for document in texts)
    assert bits_per_byte(scores) == pytest.approx(tokens * math.log2(32000) / size, rel=1e-6)
    assert perplexity(scores) == pytest.approx(32000, rel=1e-5)


def test_rates_by_hand() -> None:
    scores = [Score(nats=math.log(2) * 30, tokens=10, bytes=20, unknown_tokens=0), Score(0.0, 5, 10, 0)]
    assert bits_per_byte(scores) == pytest.approx(1.0)
    assert perplexity(scores) == pytest.approx(4.0)  # 30 bits over 15 tokens


def test_a_model_without_bos_starts_documents_with_eos(tmp_path: Path) -> None:
    directory = write_model(tmp_path, kind="qwen2")
    path = directory / "tokenizer_config.json"
    declared = json.loads(path.read_text())
    path.write_text(json.dumps({**declared, "bos_token": None}))
    model = load_language_model(directory, device="cpu")
    assert model.start_id == 2
    (score,) = score_documents(model, [Document("a", "Tea.")], window=64, stride=32)
    ids = torch.tensor([[2, *model.tokenizer.encode("Tea.")]])
    with torch.no_grad():
        loss = float(model.model(ids, labels=ids).loss)
    assert score.nats == pytest.approx(loss * score.tokens, rel=1e-6)


def test_unknown_tokens_are_counted(model: LanguageModel) -> None:
    class Lossy:
        def encode(self, text: str) -> list[int]:
            return [0, 5, 0]

        def decode(self, ids: list[int]) -> str:
            return ""

    lossy = LanguageModel(**{**vars(model), "tokenizer": Lossy()})
    (score,) = score_documents(lossy, [Document("a", "xyz")], window=64, stride=32)
    assert score.unknown_tokens == 2


def test_sentencepiece_model_alone_gives_the_same_ids(model_dir: Path, tmp_path: Path) -> None:
    for path in model_dir.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    alone = load_language_model(tmp_path, device="cpu")
    whole = load_language_model(model_dir, device="cpu")
    assert (alone.start_id, alone.stop_ids) == (whole.start_id, whole.stop_ids) == (1, frozenset({2}))
    for document in documents("en", "ja", "vi"):
        assert alone.tokenizer.encode(document.text) == whole.tokenizer.encode(document.text)


def test_ids_beyond_the_embedding_are_refused(model: LanguageModel) -> None:
    small = LanguageModel(**{**vars(model), "vocabulary_size": 100})
    with pytest.raises(CheckpointError, match="no embedding") as raised:
        score_documents(small, [Document("doc-7", "Tea.")], window=64, stride=32)
    assert "doc-7" in str(raised.value)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    model = load_language_model(write_model(tmp_path), device="cpu")
    torch.nn.init.constant_(model.model.lm_head.weight, math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        score_documents(model, [Document("a", "Tea.")], window=64, stride=32)


def test_loading_errors_name_the_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no Hugging Face model here") as raised:
        load_language_model(tmp_path)
    assert str(tmp_path) in str(raised.value)
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(CheckpointError, match="unreadable model configuration"):
        load_language_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(DataError, match="no tokenizer here"):
        load_language_model(tmp_path)


def test_truncated_weights_are_an_error(model_dir: Path, tmp_path: Path) -> None:
    for path in model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot load the model"):
        load_language_model(tmp_path)


def test_a_device_that_is_not_there(model_dir: Path) -> None:
    with pytest.raises(EnvironmentError_, match="device cannot be used"):
        load_language_model(model_dir, device="cuda:7")


def test_common_window(tmp_path: Path) -> None:
    for name, positions in (("small", 64), ("large", 8192)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"max_position_embeddings": positions}))
    assert common_window([tmp_path / "large"], None) == 4096
    assert common_window([tmp_path / "large", tmp_path / "small"], None) == 64
    assert common_window([tmp_path / "large", tmp_path / "small"], 32) == 32
    with pytest.raises(ConfigError, match="longer than the model can read"):
        common_window([tmp_path / "large", tmp_path / "small"], 65)


def test_weights_are_in_the_type_asked_for(model_dir: Path) -> None:
    model = load_language_model(model_dir, dtype="bfloat16", device="cpu")
    assert model.model.dtype == torch.bfloat16
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    ids = torch.tensor([[1, 500, 700]])
    with torch.no_grad():
        assert torch.equal(model.logits(ids, 1), reference(ids).logits[:, 1:])
