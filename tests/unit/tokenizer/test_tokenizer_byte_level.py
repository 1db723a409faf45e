"""Byte-level BPE bases: one like GPT-2's, one like Qwen's, and Mistral's genuine tekken as transformers sets it up."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import mistral_common
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_material import fixture_texts, write_corpus
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tsugiki.experiment.errors import ConfigError
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.conversion.distill_contexts import Expansion
from tsugiki.pretrain.conversion.new_rows import read_pieces
from tsugiki.tokenizer.base.base import load_base
from tsugiki.tokenizer.base.byte_level import whole_characters
from tsugiki.tokenizer.base.code_sample import code_lines
from tsugiki.tokenizer.config import TokenizerConfig
from tsugiki.tokenizer.extend import run
from tsugiki.tokenizer.gates.byte_level import ByteLevelChecks
from tsugiki.tokenizer.gates.gate import GateInputs

LANGUAGES = ("km", "vi", "ja")
_TEKKEN_RANKS = 6000


def trained(normalizer=None) -> Tokenizer:
    """A base trained on English text; the last of its two added tokens comes after the vocabulary."""
    base = Tokenizer(models.BPE())
    base.normalizer = normalizer
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(fixture_texts("en"), trainer)
    base.add_special_tokens(["<|late|>"])
    return base


def tekken() -> Tokenizer:
    """The first ranks of the genuine tekken: a smaller BPE of the same make, which looks whole words up first."""
    path = Path(mistral_common.__file__).parent / "data" / "tekken_240718.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    tokens = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"][:_TEKKEN_RANKS]]
    alphabet = bytes_to_unicode()

    def written(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += sorted(
            (pair for pair in cuts if pair[0] in ranks and pair[1] in ranks),
            key=lambda pair: (ranks[pair[0]], ranks[pair[1]]),
        )
    vocabulary = {written(token): rank for token, rank in ranks.items()}
    model = models.BPE(vocabulary, [(written(one), written(two)) for one, two in merges], ignore_merges=True)
    base = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(content["config"]["pattern"]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    base.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens(["<s>"])
    return base


BASES = {"gpt2": trained, "qwen": lambda: trained(normalizers.NFC()), "tekken": tekken}


@pytest.fixture(scope="module", params=list(BASES))
def directories(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    (root / "base").mkdir()
    BASES[request.param]().save(str(root / "base" / "tokenizer.json"))
    write_corpus(root / "corpus", {language: fixture_texts(language) for language in (*LANGUAGES, "en")})
    (root / "out").mkdir()
    config = TokenizerConfig.model_validate(
        {
            "extend": {
                **{"size": 200, "languages": dict.fromkeys(LANGUAGES, 1.0), "minimum_count": 2},
                "protect_unseen": False,  # test_tokenizer_word_lists.py has it
            },
            "report_bytes_per_language": 3000,
        }
    )
    inputs = {"base": root / "base", "corpus": root / "corpus"}
    return root, run(config, inputs, root / "out", StageContext(workers=1))


@pytest.fixture(scope="module")
def both(directories):
    root, _ = directories
    return [Tokenizer.from_file(str(root / name / "tokenizer.json")) for name in ("base", "out")]


@pytest.mark.slow
def test_every_gate_and_every_language(directories, both):
    root, result = directories
    old, new = both
    assert result.counts["base_vocabulary"] == old.get_vocab_size()
    assert result.counts["vocabulary_size"] == new.get_vocab_size() and new.get_vocab_size() % 128 == 0
    for language in LANGUAGES:
        for text in fixture_texts(language)[-3:]:
            ids = new.encode(text).ids
            assert len(ids) < len(old.encode(text).ids)
            assert new.decode(ids, skip_special_tokens=False) == text
    for text in fixture_texts("en"):
        assert new.encode(text).ids == old.encode(text).ids
    for token, index in old.get_vocab(with_added_tokens=True).items():
        assert new.token_to_id(token) == index, "ids of the base, those of added tokens too, stay"
    gates = json.loads((root / "out" / "report.json").read_text())["gates"]
    assert len(gates) == 7 and all(gate["passed"] for gate in gates)


def test_expanding_new_pieces_is_the_segmentation_of_the_base(directories, both):
    pieces = read_pieces(directories[0] / "out")
    old, new = both
    for language in LANGUAGES:
        for text in fixture_texts(language):
            ids = np.array(new.encode(text).ids, np.int32)
            assert Expansion(pieces).expand(ids).tolist() == old.encode(text).ids


def test_base_ids_spell_the_piece(directories, both):
    root, _ = directories
    surfaces = {index: surface for surface, index in both[0].get_vocab().items()}
    rows = (root / "out" / "pieces.tsv").read_text(encoding="utf-8").splitlines()[1:]
    real = [row.split("\t") for row in rows if not row.endswith("\t")]
    assert len(real) == 200
    for _, piece, _, ids in real:
        assert "".join(surfaces[int(index)] for index in ids.split()) == piece


characters = st.one_of(
    st.characters(exclude_categories=["Cs"]).filter(lambda c: c != "<"),
    st.sampled_from(sorted({c for name in LANGUAGES for c in "".join(fixture_texts(name))} - {"<"})),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(characters, max_size=40).map("".join))
def test_random_text_comes_back_as_the_base_gives_it_back(both, text):
    old, new = both
    before = old.decode(old.encode(text).ids, skip_special_tokens=False)
    assert new.decode(new.encode(text).ids, skip_special_tokens=False) == before
    if new.normalizer is None:
        assert before == text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretokenise": {"ja": "mecab"}}, "word segmentation cannot be added"),
        ({"phrases": ["vi"]}, "no piece can be a phrase"),
        ({"method": "sentencepiece"}, "continued merges only"),
    ],
)
def test_what_a_byte_level_base_does_not_allow(directories, tmp_path, settings, message):
    root, _ = directories
    config = {"size": 20, "languages": dict.fromkeys(LANGUAGES, 1.0), **settings}
    with pytest.raises(ConfigError, match=message):
        run(
            TokenizerConfig.model_validate({"extend": config}),
            {"base": root / "base", "corpus": root / "corpus"},
            tmp_path,
            StageContext(workers=1),
        )


def test_whole_characters():
    data = "កខ".encode()
    assert whole_characters(data[1:]) == "ខ"
    assert whole_characters(data[:-1]) == "ក"
    assert whole_characters(data[1:3]) == ""


def test_a_tokenizer_that_loads_but_does_not_encode_fails_its_gates(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    trained().save(str(tmp_path / "tokenizer.json"))
    base = load_base(tmp_path)
    lines = fixture_texts("en")[:3]
    inputs = GateInputs(base, tmp_path, [], base.size, {"en": lines}, {}, lambda line: False)
    assert ByteLevelChecks(inputs).slow_equals_fast().passed

    class Mute:
        def __len__(self) -> int:
            return base.size

        def encode(self, line: str, **_: object) -> list[int]:
            raise KeyError("no such merge")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_: Mute())
    found = ByteLevelChecks(inputs).slow_equals_fast()
    assert (found.passed, found.checked, found.failures) == (
        False,
        3 + len(code_lines()),
        3 + len(code_lines()),
    )
    assert found.examples[0].startswith("KeyError: 'no such merge': ") and lines[0][:50] in found.examples[0]


def test_nothing_is_compared_with_a_tokenizer_that_does_not_load(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    def fails(*_: object) -> None:
        raise ValueError("unknown class")

    trained().save(str(tmp_path / "tokenizer.json"))
    base = load_base(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", fails)
    checks = ByteLevelChecks(GateInputs(base, tmp_path, [], base.size, {"en": ["a"]}, {}, lambda line: False))
    assert checks.loads().examples == ("AutoTokenizer: ValueError: unknown class",)
    assert checks.slow_equals_fast().checked == 0
