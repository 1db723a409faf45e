"""The vocabulary stage end to end on the genuine Mistral model, and the pitfalls of merging by hand.

Each pitfall test first shows that the naive method falls into it on this very text.
"""

from __future__ import annotations

import json
import math
import random

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_material import (
    fixture_texts,
    mistral_base,
    mistral_proto,
    processor,
    train_model,
    write_corpus,
)
from tokenizers import Tokenizer

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.run.stage import StageContext
from tsugiki.tokenizer.base.base import exact_processor, load_base
from tsugiki.tokenizer.base.merge import merge_sentencepiece, scores_below, unreachable
from tsugiki.tokenizer.base.scripts import everyday_characters
from tsugiki.tokenizer.config import TokenizerConfig
from tsugiki.tokenizer.extend import run

LANGUAGES = {"ja": 1.0, "vi": 1.0, "id": 1.0, "km": 1.0}
MISTRAL = mistral_proto()
TEXTS = {language: fixture_texts(language) for language in [*LANGUAGES, "en"]}


def extend(**settings):
    return TokenizerConfig.model_validate(
        {
            "extend": {"size": 300, "languages": LANGUAGES, "minimum_count": 2, **settings},
            "report_bytes_per_language": 5000,
        }
    )


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    return mistral_base(tmp_path_factory.mktemp("base") / "hf")


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), TEXTS)


@pytest.fixture(scope="module")
def extended(tmp_path_factory, base_dir, corpus_dir):
    out = tmp_path_factory.mktemp("tokenizer")
    result = run(extend(), {"base": base_dir, "corpus": corpus_dir}, out, StageContext(workers=1))
    return out, result


@pytest.fixture(scope="module")
def both(extended):
    return load(extended[0]), Tokenizer.from_file(str(extended[0] / "tokenizer.json"))


def load(directory):
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def pieces_tsv(directory):
    lines = (directory / "pieces.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "id\tpiece\tscore\tbase_ids"
    return [line.split("\t") for line in lines[1:]]


@pytest.mark.slow
def test_compresses_every_language_and_leaves_english_alone(extended, base_dir):
    out, result = extended
    old, new = load(base_dir), load(out)
    for language in LANGUAGES:
        before = sum(len(old.encode(text)) for text in TEXTS[language][-3:])
        after = sum(len(new.encode(text)) for text in TEXTS[language][-3:])
        assert after < 0.97 * before, language
        shown = result.metrics[f"tokenizer/tokens_relative_to_base/{language}"]
        assert shown == pytest.approx(after / before, abs=0.05), language
    for text in TEXTS["en"]:
        assert new.encode(text) == old.encode(text)
    report = json.loads((out / "report.json").read_text())
    assert all(gate["passed"] for gate in report["gates"]) and len(report["gates"]) == 7


def test_rows_are_padded_and_reserved_rows_never_emitted(extended):
    out, result = extended
    new = load(out)
    assert new.get_piece_size() == result.counts["vocabulary_size"] == 32384
    assert new.get_piece_size() % 128 == 0
    reserved = [row for row in pieces_tsv(out) if row[1].startswith("<reserved_")]
    assert len(reserved) == result.counts["reserved_pieces"] == 84 and all(row[3] == "" for row in reserved)
    fast = Tokenizer.from_file(str(out / "tokenizer.json"))
    for ids in (new.encode("<reserved_0> <reserved_1>"), fast.encode("<reserved_0> <reserved_1>").ids):
        assert all(index < 32000 + 300 for index in ids)


@pytest.mark.slow
def test_tensor_parallel_divides_the_rows(base_dir, corpus_dir, tmp_path):
    config = extend(size=10, languages={"ja": 1.0}, multiple_of=8, tensor_parallel=6)
    result = run(config, {"base": base_dir, "corpus": corpus_dir}, tmp_path, StageContext(workers=1))
    assert result.counts["vocabulary_size"] % math.lcm(8, 48) == 0


def test_pieces_tsv_rebuilds_every_piece_from_base_tokens(extended):
    out, _ = extended
    proto = mistral_proto()
    exact = exact_processor(proto)
    scores = [float(row[2]) for row in pieces_tsv(out) if row[3]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    assert max(scores) < min(piece.score for piece in proto.pieces)
    for number, (index, piece, _, base_ids) in enumerate(pieces_tsv(out)):
        assert int(index) == 32000 + number
        if base_ids:
            ids = [int(item) for item in base_ids.split()]
            # SentencePiece drops a leading space when it decodes.
            assert exact.decode(ids) in (piece.replace("▁", " "), piece.removeprefix("▁"))
            assert not (exact.id_to_piece(ids[0]).startswith("▁") and not piece.startswith("▁"))


@pytest.mark.slow
def test_same_input_same_files(extended, base_dir, corpus_dir, tmp_path):
    run(extend(), {"base": base_dir, "corpus": corpus_dir}, tmp_path, StageContext(workers=2))
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "pieces.tsv"):
        assert (tmp_path / name).read_bytes() == (extended[0] / name).read_bytes(), name


def test_transformers_and_config_agree_on_the_size(extended):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(extended[0])
    assert len(tokenizer) == tokenizer.vocab_size == 32384
    added = json.loads((extended[0] / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in added] == ["<unk>", "<s>", "</s>"], "pieces are not added tokens"


def test_null_keeps_the_base(base_dir, corpus_dir, tmp_path):
    result = run(TokenizerConfig(), {"base": base_dir, "corpus": corpus_dir}, tmp_path, StageContext())
    assert (tmp_path / "tokenizer.json").read_bytes() == (base_dir / "tokenizer.json").read_bytes()
    assert pieces_tsv(tmp_path) == [] and result.counts["vocabulary_size"] == 32000


# "<" could spell a special token.
characters = st.one_of(
    st.characters(exclude_categories=["Cs"]).filter(lambda c: c not in "\u2581<"),
    st.sampled_from(sorted({c for texts in TEXTS.values() for text in texts for c in text} - set("\u2581<"))),
)
random_texts = st.lists(st.one_of(characters, st.just(" ")), max_size=40).map("".join)


@settings(max_examples=300, deadline=None)
@given(random_texts)
def test_random_text_round_trip_and_slow_equals_fast(both, text):
    slow, fast = both
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == slow.encode(text)
    assert fast.decode(ids, skip_special_tokens=False) == text


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([line for text in TEXTS["en"] for line in text.split()]), max_size=12).map(
        " ".join
    )
)
def test_english_words_in_any_order_stay_as_they_were(both, text):
    slow, _ = both
    assert slow.encode(text) == processor(MISTRAL).encode(text)


# -- pitfalls ------------------------------------------------------------------------------------------


def naive_candidates(model_type: str, tmp_path, languages=("ja", "id", "km")) -> list[str]:
    lines = [line for language in languages for text in TEXTS[language] for line in text.split("。")]
    options = {"vocab_size": 2000, "character_coverage": 1.0, "normalization_rule_name": "identity"}
    model = train_model(lines, tmp_path / f"{model_type}.model", model_type=model_type, **options)
    found = sentencepiece.SentencePieceProcessor(model_file=str(model))
    known = {piece.piece for piece in mistral_proto().pieces}
    names = [found.id_to_piece(index) for index in range(found.get_piece_size())]
    return [name for name in names if name not in known and not name.startswith("<")]


def naive_merge(pieces: list[str]):
    proto = mistral_proto()
    for piece in pieces:
        proto.pieces.add(piece=piece, score=0.0, type=1)
    return proto


def disagreements(proto, lines) -> int:
    from tsugiki.experiment.text.hf_tokenizer import tokenizer_document

    fast = Tokenizer.from_str(json.dumps(tokenizer_document(proto)))
    slow = processor(proto)
    return sum(fast.encode(line, add_special_tokens=False).ids != slow.encode(line) for line in lines)


@pytest.mark.slow
def test_pitfall_score_zero_ties(extended, tmp_path):
    lines = [line for language in LANGUAGES for text in TEXTS[language] for line in text.split("\n")]
    assert disagreements(naive_merge(naive_candidates("bpe", tmp_path)), lines) > 0
    proto = mistral_proto()
    proto.ParseFromString((extended[0] / "tokenizer.model").read_bytes())
    assert disagreements(proto, lines) == 0


def test_pitfall_unigram_pieces_are_unreachable(extended, tmp_path):
    naive = naive_candidates("unigram", tmp_path)
    merged = merge_sentencepiece(load_base(mistral_base(tmp_path / "hf")), naive, 32000 + len(naive))
    assert len(unreachable(exact_processor(merged), naive, 32000)) > len(naive) / 10
    proto = mistral_proto()
    proto.ParseFromString((extended[0] / "tokenizer.model").read_bytes())
    ours = [row[1] for row in pieces_tsv(extended[0]) if row[3]]
    assert unreachable(exact_processor(proto), ours, 32000) == []


def test_pitfall_latin_pieces_change_english(extended, tmp_path):
    old = processor(mistral_proto())
    naive = processor(naive_merge(naive_candidates("bpe", tmp_path, ("id",))))
    assert any(naive.encode(text) != old.encode(text) for text in TEXTS["en"])
    assert any(row[1].isascii() or row[1][1:].isascii() for row in pieces_tsv(extended[0]) if row[3]), (
        "Indonesian pieces are there all the same"
    )


def test_pitfall_a_piece_encoded_alone_gains_a_space(base_dir):
    plain = load(base_dir)
    naive = plain.encode("ありがとう")
    ours = load_base(base_dir).parts(["ありがとう", "▁ありがとう"])
    assert plain.id_to_piece(naive[0]).startswith("▁")
    assert not plain.id_to_piece(ours[0][0]).startswith("▁")
    assert plain.id_to_piece(ours[1][0]).startswith("▁")


def test_pitfall_scores_that_tie_in_float32():
    proto = mistral_proto()
    lowest = min(piece.score for piece in proto.pieces)
    assert lowest == -1e9
    for number in range(100):
        proto.pieces.add(piece=f"x{number}", score=lowest - number - 1, type=1)
    naive = {piece.score for piece in proto.pieces[-100:]}
    assert len(naive) < 100, "one below the other is the same number in float32"
    assert len(set(scores_below(mistral_proto(), 20_000))) == 20_000


# -- bad input -----------------------------------------------------------------------------------------


def test_language_without_text(base_dir, corpus_dir, tmp_path):
    config = extend(languages={"ja": 1.0, "th": 1.0})
    with pytest.raises(DataError, match="no training text in th"):
        run(config, {"base": base_dir, "corpus": corpus_dir}, tmp_path, StageContext())


def test_text_in_the_wrong_language(base_dir, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", {"ja": TEXTS["id"], "en": TEXTS["en"]})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="the text called 'ja' is in another language"):
        run(extend(languages={"ja": 1.0}), {"base": base_dir, "corpus": corpus}, out, StageContext())


def test_base_without_tokenizer(corpus_dir, tmp_path):
    with pytest.raises(DataError, match="has no tokenizer"):
        run(extend(), {"base": tmp_path, "corpus": corpus_dir}, tmp_path, StageContext())


def test_unigram_base_is_refused(corpus_dir, tmp_path):
    train_model(TEXTS["en"], tmp_path / "tokenizer.model", model_type="unigram", vocab_size=380)
    with pytest.raises(ConfigError, match="Unigram"):
        run(extend(), {"base": tmp_path, "corpus": corpus_dir}, tmp_path, StageContext())


def test_corrupt_base(corpus_dir, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"corrupt tokenizer\.json"):
        run(extend(), {"base": tmp_path, "corpus": corpus_dir}, tmp_path, StageContext())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quotas": {"zh": 3}}, "quotas names zh"),
        ({"protect": ["ja"]}, "extended and protected at once"),
        ({"multiple_of": 12}, "multiple of 8"),
        ({"quotas": dict.fromkeys(LANGUAGES, 10)}, "fewer than size"),
        ({"languages": {}}, "at least 1"),
        ({"size": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_requests(settings, message):
    with pytest.raises(ValueError, match=message):
        extend(**settings)


def test_gate_failure_stops_and_can_be_waived(base_dir, corpus_dir, tmp_path):
    from tsugiki.tokenizer.gates.gate import enforce, gate

    failed = gate("protected", 10, ["en: ▁x in 'a line'"])
    with pytest.raises(DataError, match="a line"):
        enforce([failed], [])
    assert enforce([failed], ["protected"])[0].waived


@pytest.mark.slow
def test_characters_that_the_sample_lacks_need_no_bytes(tmp_path, base_dir, corpus_dir):
    alphabet = "".join(everyday_characters("km", ["Khmer"]))
    assert not set(alphabet) <= set("".join(TEXTS["km"]))
    spelled = []
    for share in (0.0, 0.5):
        out = tmp_path / str(share)
        out.mkdir()
        config = extend(languages={"km": 1.0}, everyday_share=share)
        run(config, {"base": base_dir, "corpus": corpus_dir}, out, StageContext(workers=1))
        spelled.append([piece for piece in load(out).encode(alphabet, out_type=str) if piece[:3] == "<0x"])
    assert spelled[0] and not spelled[1]


@pytest.mark.slow
def test_text_with_zero_width_spaces_serves_text_without(tmp_path, base_dir):
    first, *words = ("ព្យាបាល", "ជំងឺ", "ក្រុង", "សត្វ", "ទឹក")
    draw = random.Random(0)
    documents = ["\u200b".join([first, *draw.choices(words, k=9)]) + f" {n}" for n in range(60)]
    corpus = write_corpus(tmp_path / "corpus", {"km": documents, "en": TEXTS["en"]})
    out = tmp_path / "out"
    out.mkdir()
    run(extend(languages={"km": 1.0}), {"base": base_dir, "corpus": corpus}, out, StageContext(workers=1))
    new = load(out)
    for word in words:
        assert word in new.encode(f"x{word}", out_type=str)
        assert "\u200b" + word in new.encode(f"x\u200b{word}", out_type=str)


@pytest.mark.slow
def test_foreign_names_in_english_text_protect_nothing(tmp_path, base_dir):
    words = ["không", "được", "Rhône"]
    draw = random.Random(0)
    documents = [" ".join(draw.choices(words, k=12)) + f" {n}" for n in range(60)]
    for quoted, free in (("He lives in Hà Nội, not in Đông Hà.", True), ("The sông of Không.", False)):
        english = [*TEXTS["en"], f"One day {quoted} And so on.\nThe Rhône."]
        out = tmp_path / str(free)
        corpus = write_corpus(out / "corpus", {"vi": documents, "en": english}, heldout=0)
        config = extend(languages={"vi": 1.0}, word_lists={"vi": "none"})
        run(config, {"base": base_dir, "corpus": corpus}, out, StageContext(workers=1))
        new = load(out)
        assert ("▁không" in new.encode("không", out_type=str)) == free
        assert new.encode("The Rhône.") == load(base_dir).encode("The Rhône.")


def test_a_tokenizer_that_loads_but_does_not_encode_is_a_failed_gate(extended, base_dir, monkeypatch):
    from transformers import AutoTokenizer

    from tsugiki.tokenizer.base.base import load_base
    from tsugiki.tokenizer.gates.gate import GateInputs
    from tsugiki.tokenizer.gates.sentencepiece import SentencePieceChecks

    out, result = extended
    size = result.counts["vocabulary_size"]

    class Mute:
        def __len__(self) -> int:
            return size

        def encode(self, line: str, **_: object) -> list[int]:
            raise KeyError("no such piece")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_: Mute())
    lines = {"km": TEXTS["km"][:2]}
    inputs = GateInputs(load_base(base_dir), out, [], size, {}, lines, lambda line: False)
    found = SentencePieceChecks(inputs).loads()
    assert not found.passed and all("KeyError: 'no such piece'" in example for example in found.examples)
