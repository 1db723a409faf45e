"""One way to open a tokenizer, against transformers; every stage sees the same ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizer_material import fixture_texts, train_model
from tokenizers import Tokenizer

from tsugiki.data.tokenise.tokenise_shards import Vocabulary
from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.cached_bpe import load_encoder
from tsugiki.experiment.text.chat_tokens import ChatConfig, ChatEncoder
from tsugiki.experiment.text.hf_tokenizer import write_hf_tokenizer
from tsugiki.experiment.text.tokenizer_files import open_tokenizer, tokenizer_size
from tsugiki.pretrain.conversion.verify import encode_text
from tsugiki.tokenizer.measure.efficiency import AnyTokenizer

Document = dict[str, Any]
TEXT = "Hello </s> world, 日本語 を  x."
ANSWERING = (
    "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
)


def truncated(document: Document, config: Document) -> None:
    document["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }


def padded(document: Document, config: Document) -> None:
    document["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip


def serialised(document: Document, config: Document) -> None:
    for name in ("bos_token", "eos_token"):
        token = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        config[name] = {"__type": "AddedToken", "content": config[name], **token}


def without_bos(document: Document, config: Document) -> None:
    config["bos_token"] = None


def unnamed(document: Document, config: Document) -> None:
    del config["bos_token"], config["eos_token"]


def far_id(document: Document, config: Document) -> None:
    document["added_tokens"].append(
        {"id": 32010, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    )  # fmt: skip


def nothing(document: Document, config: Document) -> None:
    pass


VARIANTS: dict[str, tuple[Callable[[Document, Document], None], dict[str, Document]]] = {
    "as written": (nothing, {}),
    "tokens as objects": (serialised, {}),
    "cut to a length": (truncated, {}),
    "padded": (padded, {}),
    "no BOS": (without_bos, {"config.json": {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}}),
    "special tokens in a map": (
        unnamed,
        {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}},
    ),
    "the map wins": (nothing, {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": "<unk>"}}),
    "an added token with an id far behind": (far_id, {}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SentencePiece BPE model as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("plain")
    lines = [line for text in fixture_texts("en") for line in text.split(". ")]
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    model = train_model(lines, directory / "tokenizer.model", model_type="bpe", **options)
    write_hf_tokenizer(model, directory)
    return directory


def variant(plain: Path, directory: Path, name: str) -> Path:
    change, files = VARIANTS[name]
    shutil.copytree(plain, directory, dirs_exist_ok=True)
    document, config = (
        json.loads((directory / file).read_text()) for file in ("tokenizer.json", "tokenizer_config.json")
    )
    change(document, config)
    contents = {"tokenizer.json": document, "tokenizer_config.json": config, **files}
    for file, content in contents.items():
        (directory / file).write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("name", VARIANTS)
def test_as_transformers(plain: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    directory = variant(plain, tmp_path, name)
    theirs, ours = AutoTokenizer.from_pretrained(directory), open_tokenizer(directory)
    assert (ours.size, ours.bos_id, ours.eos_id) == (len(theirs), theirs.bos_token_id, theirs.eos_token_id)
    assert tokenizer_size(directory) == len(theirs)
    for text in (TEXT, "", *fixture_texts("ja")[:3], *fixture_texts("en")[:3]):
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids and ours.encode_batch([text, "x"])[0] == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    # What a text begins with, which the contexts of new rows take from the post-processor.
    assert ours.fast.encode("").ids == [1]


@pytest.mark.parametrize("name", VARIANTS)
def test_stages_agree(plain: Path, tmp_path: Path, name: str) -> None:
    directory = variant(plain, tmp_path, name)
    opened = open_tokenizer(directory, special_tokens_in_text=False)
    ids = opened.encode(TEXT)
    assert load_encoder(directory / "tokenizer.json").encode([TEXT])[0].tolist() == ids
    assert encode_text(directory, [TEXT], 100) == [ids]
    measured = AnyTokenizer("x", directory)
    assert measured.size == opened.size and np.array_equal(measured.ids([TEXT])[0], ids)
    vocabulary = Vocabulary.load(directory)
    assert (vocabulary.size, vocabulary.bos_id, vocabulary.eod_id) == (
        opened.size,
        opened.bos_id,
        opened.eos_id,
    )
    (tmp_path / "t.jinja").write_text(ANSWERING)
    chat = ChatEncoder.load(ChatConfig(template=str(tmp_path / "t.jinja")), directory)
    assert chat.template.bos_token == (None if opened.bos_id is None else "<s>")
    stored = chat.encode([{"role": "assistant", "content": "Hello"}])
    assert stored[-1] == opened.eos_id and min(stored) >= 0  # all of it is learned


def test_a_model_alone(plain: Path, tmp_path: Path) -> None:
    # transformers loses the dummy prefix of a bare model, so SentencePiece itself is the reference.
    shutil.copy(plain / "tokenizer.model", tmp_path)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(plain / "tokenizer.model"))
    size = slow.get_piece_size()
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        opened = open_tokenizer(path)
        assert (opened.size, opened.bos_id, opened.eos_id, opened.unknown_id) == (size, 1, 2, 0)
        assert tokenizer_size(path) == size
        for text in fixture_texts("km")[:2] + fixture_texts("en")[:2]:
            assert opened.encode(text) == slow.encode(text)
            assert opened.decode(opened.encode(text)) == text
    assert open_tokenizer(tmp_path).encode(TEXT) == open_tokenizer(plain).encode(TEXT)


def test_a_unigram_model_alone(tmp_path: Path) -> None:
    model = train_model(fixture_texts("en"), tmp_path / "u.model", model_type="unigram", vocab_size=380)
    slow, opened = sentencepiece.SentencePieceProcessor(model_file=str(model)), open_tokenizer(model)
    assert (opened.size, opened.bos_id, opened.eos_id, opened.unknown_id) == (slow.get_piece_size(), 1, 2, 0)
    assert opened.encode(TEXT) == slow.encode(TEXT) and opened.decode([4, 5]) == slow.decode([4, 5])
    assert opened.id_of("<unk>") == 0 and opened.id_of("no such piece") is None
    with pytest.raises(DataError, match="no fast form"):
        _ = opened.fast


def test_what_only_transformers_opens(tmp_path: Path) -> None:
    # GPT-2's form: vocabulary and merges in files of their own, special tokens by its class.
    letters = {"<|endoftext|>": 0, "h": 1, "i": 2, "hi": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh i\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    opened = open_tokenizer(tmp_path)
    assert opened.encode("hi") == [3] and (opened.size, opened.bos_id, opened.eos_id) == (4, 0, 0)


def test_settings_of_the_model_where_the_tokenizer_has_none(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    opened = open_tokenizer(tmp_path)
    assert opened.bos_id is None and opened.eos_id is None
    with pytest.raises(DataError, match="no end-of-sequence token to end documents with"):
        opened.require_eos("to end documents with")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "bos_token_id": 1, "eos_token_id": [2, 272]})
    )
    opened = open_tokenizer(tmp_path)
    assert (opened.bos_id, opened.eos_id, opened.eos_ids) == (1, 2, [2, 272])


def test_special_tokens_as_text(plain: Path) -> None:
    ids = open_tokenizer(plain, special_tokens_in_text=False).encode(TEXT)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(plain / "tokenizer.model"))
    assert ids == slow.encode(TEXT) != open_tokenizer(plain).encode(TEXT)


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
def test_a_token_that_the_vocabulary_lacks(plain: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {name: "<|nowhere|>"}))
    with pytest.raises(DataError, match=rf"{name} names no token of the vocabulary(.|\n)*<\|nowhere\|>"):
        Vocabulary.load(tmp_path)
    with pytest.raises(DataError, match="names no token"):
        ChatEncoder.load(ChatConfig(template="unused"), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no tokenizer here"),
        ({"tokenizer.json": "{"}, "corrupt tokenizer.json"),
        ({"tokenizer.json": '{"model": {"vocab": {}}}'}, "unreadable tokenizer"),
        ({"tokenizer.model": "version https://git-lfs"}, "corrupt SentencePiece model"),
    ],
)
def test_errors(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_tokenizer(tmp_path)


def test_unreadable_settings(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"unreadable tokenizer file(.|\n)*tokenizer_config\.json"):
        _ = open_tokenizer(tmp_path).eos_id


def test_sizes_without_opening(tmp_path: Path) -> None:
    vocabulary = [["<unk>", 0.0], ["▁a", -1.0], ["b", -2.0]]
    document = {"model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary}}
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] = [{"id": 0, "content": "<unk>", **added}, {"id": 3, "content": "<s>", **added}]  # type: ignore[assignment]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    loaded = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer_size(tmp_path) == loaded.get_vocab_size() == 4
    with pytest.raises(DataError, match="no tokenizer here"):
        tokenizer_size(tmp_path / "nowhere")


WRONG: dict[str, object] = {
    "no vocabulary": {"model": {"vocab": None}},
    "a number": {"model": {"vocab": 5}},
    "ids that are text": {"model": {"vocab": {"a": 1, "b": "2"}}},
    "scores without pieces": {"model": {"vocab": [5]}},
    "added tokens": {"model": {"vocab": {"a": 1}}, "added_tokens": [5]},
    "added tokens without content": {"model": {"vocab": {"a": 1}}, "added_tokens": [{"id": 3}]},
    "added content": {"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": []}]},
}


@pytest.mark.parametrize("name", [*WRONG, "deep"])
def test_a_tokenizer_json_that_cannot_be_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("[" * 100_000 if name == "deep" else json.dumps(WRONG[name]))
    with pytest.raises(DataError, match=r"corrupt tokenizer\.json") as caught:
        tokenizer_size(tmp_path)
    assert str(path) in str(caught.value)
