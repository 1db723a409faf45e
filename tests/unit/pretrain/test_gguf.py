"""GGUF files: against the weights and tokenizer they were made from, against transformers, and, where it is installed,
llama.cpp itself (`pip install 'tsugiki[llama-cpp]'`)."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
from convert_material import CASES, Case, make_model
from tokenizer_material import fixture_texts, train_model
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tsugiki.experiment.errors import TsugikiError
from tsugiki.experiment.model.family import GgufForm
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.text.chat import ChatTemplate
from tsugiki.experiment.text.hf_tokenizer import write_hf_tokenizer
from tsugiki.pretrain.conversion.gguf.pre_tokenizers import LLAMA3, QWEN2, TEKKEN
from tsugiki.pretrain.conversion.gguf.verify import verify_gguf
from tsugiki.pretrain.conversion.gguf.write import reordered, write_gguf

LLAMA_CPP = importlib.util.find_spec("llama_cpp") is not None
TEMPLATES = Path(__file__).parents[3] / "configs" / "chat_templates"
LINES = [
    line
    for language in ("en", "ja", "th", "my", "vi")
    for text in fixture_texts(language)[:2]
    for line in text.splitlines()[:4]
] + ["", "  two", "a" + " " * 20 + "b", "</s> and <s> are text", "\ttab\t東京🎉"]
KEPT = (
    "llama-biases",
    "llama3-rope",
    "llama-linear-rope",
    "mistral-window",
    "gemma",
    "qwen2-tied-yarn",
    "phi3",
)
BY_NAME = {case.name: case for case in CASES}


def sentencepiece_directory(root: Path, **options: Any) -> Path:
    """A SentencePiece BPE model with byte fallback, as a Hugging Face directory."""
    lines = [line for text in fixture_texts("en")[:15] for line in text.splitlines() if line]
    options |= {
        **{"vocab_size": 420, "model_type": "bpe", "normalization_rule_name": "identity"},
        "remove_extra_whitespaces": False,
    }
    write_hf_tokenizer(train_model(lines, root / "m.model", **options), root)
    return root


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_directory(
        tmp_path_factory.mktemp("tokenizer"), user_defined_symbols=["<|im_start|>"]
    )


def model(tokenizer: Path, directory: Path, case: Case | str = "llama", **changes: Any) -> Path:
    """A tiny model of a case with this tokenizer."""
    case = BY_NAME[case] if isinstance(case, str) else case
    ends = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": 420}
    make_model(replace(case, changes={**case.changes, **ends, **changes}), directory)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        if tokenizer != directory and (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, directory / name)
    return directory


@pytest.fixture(scope="module")
def llama(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tokenizer, tmp_path_factory.mktemp("llama"))


def fields(path: Path) -> dict[str, Any]:
    return {key: value.contents() for key, value in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", KEPT)
def test_a_model_of_every_family(name: str, tokenizer: Path, tmp_path: Path) -> None:
    directory = model(tokenizer, tmp_path / "hf", name)
    report = write_gguf(directory, tmp_path / "m.gguf")
    assert report["type"] == {"float32": "f32", "bfloat16": "bf16"}[BY_NAME[name].dtype]
    found = verify_gguf(directory, tmp_path / "m.gguf", LINES, tokens=60)
    assert found["tensors"] == len(gguf.GGUFReader(tmp_path / "m.gguf").tensors) - (name == "llama3-rope")
    assert bool(report["notes"]) == (name in ("mistral-window", "phi3"))
    if LLAMA_CPP:
        assert found["llama_cpp"]["lines"] == len(LINES)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_every_type(kind: str, llama: Path, tmp_path: Path) -> None:
    wide = kind == "q8_0"
    directory = llama if not wide else model(llama, tmp_path / "hf", intermediate_size=64)
    path = tmp_path / "m.gguf"
    write_gguf(directory, path, kind)
    assert verify_gguf(directory, path, LINES, tokens=60)["type"] == kind
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1}
    assert types == {kind.upper()}


@pytest.mark.skipif(not LLAMA_CPP, reason="llama-cpp-python is not installed")
def test_llama_cpp_finds_what_is_wrong(llama: Path, tmp_path: Path) -> None:
    """The comparison with llama.cpp can fail: another rope base, another dummy prefix."""
    for change, what in ({"rope_theta": 9000.0}, "logits"), (None, "cuts a text"):
        directory = shutil.copytree(llama, tmp_path / what)
        config = json.loads((directory / "config.json").read_text())
        path = tmp_path / f"{what}.gguf"
        if change:
            config["rope_parameters"] |= change
            (directory / "config.json").write_text(json.dumps(config))
        else:
            document = json.loads((directory / "tokenizer.json").read_text())
            document["normalizer"]["normalizers"].pop(0)
            (directory / "tokenizer.json").write_text(json.dumps(document))
        write_gguf(directory, path)
        from tsugiki.pretrain.conversion.gguf.verify import compare_ids, llama_cpp_logits

        with pytest.raises(TsugikiError, match=what):
            compare_ids(llama, path, LINES)
            llama_cpp_logits(llama, path, "f32", LINES, 60)


def test_rows_of_queries_and_keys() -> None:
    """Neighbours are what transformers has half a head apart: 0, d/2, 1, d/2 + 1, …, head by head."""
    sizes = {"layers": 1, "hidden_size": 2, "ffn_size": 4, "vocabulary_size": 8, "max_positions": 8}
    spec = ModelSpec(family="llama", heads=2, kv_heads=1, head_dim=4, **sizes)
    rows = torch.arange(8.0)
    layer = "model.layers.0.self_attn"
    form = GgufForm("llama", interleaved_rope=True)
    assert reordered(rows, f"{layer}.q_proj.bias", spec, form).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert reordered(rows[:4, None], f"{layer}.k_proj.weight", spec, form).tolist() == [[0], [2], [1], [3]]
    assert reordered(rows[:4], f"{layer}.v_proj.bias", spec, form).tolist() == [0, 1, 2, 3]


def test_scaled_frequencies_are_those_of_transformers(tokenizer: Path, tmp_path: Path) -> None:
    directory = model(tokenizer, tmp_path / "hf", "llama3-rope", head_dim=32)
    write_gguf(directory, tmp_path / "m.gguf")
    factors = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight")
    plain = 500000.0 ** -(np.arange(0, 32, 2) / 32)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig.from_pretrained(directory), "cpu")
    assert plain / factors.data == pytest.approx(expected.numpy(), rel=1e-6)
    assert len(set(factors.data.tolist())) > 2, "all three ranges are reached"


def test_the_tokenizer_of_a_sentencepiece_model(llama: Path, tmp_path: Path) -> None:
    (directory := tmp_path / "hf").mkdir()
    shutil.copytree(llama, directory, dirs_exist_ok=True)
    template = (TEMPLATES / "seallm-v2.jinja").read_text(encoding="utf-8")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_gguf(directory, tmp_path / "m.gguf", name="A model")
    found = fields(tmp_path / "m.gguf")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    size = pieces.get_piece_size()
    byte = pieces.piece_to_id("<0x41>")
    assert found["general.name"] == "A model" and found["llama.context_length"] == 128
    assert found["tokenizer.ggml.scores"] == [pieces.get_score(index) for index in range(size)]
    kinds = found["tokenizer.ggml.token_type"]
    assert [kinds[index] for index in (0, 1, byte)] == [2, 3, 6] and set(kinds) == {1, 2, 3, 4, 6}
    assert found["tokenizer.ggml.add_space_prefix"] is True and found["tokenizer.ggml.add_bos_token"] is True
    assert found["tokenizer.ggml.bos_token_id"] == 1 and found["tokenizer.ggml.eos_token_id"] == 2
    assert "generation %}" not in found["tokenizer.chat_template"]
    said = [{"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    both = [
        ChatTemplate(text, "<s>", "</s>").render(said)
        for text in (template, found["tokenizer.chat_template"])
    ]
    assert both[0].rstrip() == both[1].rstrip()


def test_user_defined_pieces_as_gemma_has_them(tmp_path: Path) -> None:
    """Runs of spaces are looked for in text in which a space is a space; no dummy prefix."""
    options = {"user_defined_symbols": ["\u2581\u2581", "\n\n"], "add_dummy_prefix": False}
    tokenizer = sentencepiece_directory(tmp_path, **options)
    directory = model(tokenizer, tmp_path / "hf", "gemma")
    write_gguf(directory, tmp_path / "m.gguf")
    found = fields(tmp_path / "m.gguf")
    index = found["tokenizer.ggml.tokens"].index("  ")
    assert found["tokenizer.ggml.token_type"][index] == 4
    assert found["tokenizer.ggml.add_space_prefix"] is False
    verify_gguf(directory, tmp_path / "m.gguf", [*LINES, "a\n\nb  c"], tokens=20)


def byte_level(directory: Path, step: Any, *, whole_words: bool = False, normalizer: Any = None) -> Path:
    """A directory with a byte-level tokenizer of a pre-tokenizer, and a model that fits."""
    trained = Tokenizer(models.BPE(ignore_merges=whole_words))
    trained.normalizer = normalizer
    trained.pre_tokenizer = step
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    trained.train_from_iterator(fixture_texts("en")[:8], trainer)
    directory.mkdir()
    trained.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return model(directory, directory, bos_token_id=None, eos_token_id=0)


def split(pattern: str) -> Any:
    parts = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(False, use_regex=False),
    ]
    return pre_tokenizers.Sequence(parts)


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


@pytest.mark.parametrize(
    ("expected", "step", "whole_words", "normalizer"),
    [
        ("gpt-2", GPT2, False, None),
        ("smollm", DIGITS, False, None),
        ("llama-bpe", split(LLAMA3), True, None),
        ("smaug-bpe", split(LLAMA3), False, None),
        ("qwen2", split(QWEN2), False, normalizers.NFC()),
        ("tekken", split(TEKKEN), True, None),
    ],
)
def test_byte_level_bases_by_name(
    expected: str, step: Any, whole_words: bool, normalizer: Any, tmp_path: Path
) -> None:
    directory = byte_level(tmp_path / "hf", step, whole_words=whole_words, normalizer=normalizer)
    report = write_gguf(directory, tmp_path / "m.gguf")
    found = fields(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.model"] == "gpt2" and found["tokenizer.ggml.pre"] == expected
    assert bool(report["notes"]) == (normalizer is not None)
    verify_gguf(directory, tmp_path / "m.gguf", LINES, tokens=20)


def test_an_unknown_pre_tokenizer_has_to_be_named(tmp_path: Path) -> None:
    directory = byte_level(tmp_path / "hf", split(r"\s+|\S+"))
    with pytest.raises(TsugikiError, match="--pre-tokenizer NAME"):
        write_gguf(directory, tmp_path / "m.gguf")
    assert write_gguf(directory, tmp_path / "m.gguf", pre="mine")["pre_tokenizer"] == "mine"


def _padded(directory: Path) -> None:
    make_model(replace(BY_NAME["llama"], changes={"vocab_size": 448}), directory)


def _hole(directory: Path) -> None:
    document = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    del vocabulary[next(piece for piece, index in vocabulary.items() if index == 411)]
    parts = {*vocabulary}
    merges = [merge.split(" ") for merge in document["model"]["merges"]]
    document["model"]["merges"] = [
        " ".join(pair) for pair in merges if "".join(pair) in parts and parts.issuperset(pair)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(document))


def _charsmap(directory: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((directory / "tokenizer.model").read_bytes())
    proto.normalizer_spec.precompiled_charsmap = b"x"
    (directory / "tokenizer.model").write_bytes(proto.SerializeToString())


def _large(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (_padded, None, "--trim-padding-rows"),
        (_hole, None, "nothing at 411"),
        (_charsmap, None, "normalisation"),
        (_large, "f16", "a weight of 100000"),
        (lambda _: None, "q8_0", "multiple of 32"),
        (lambda _: None, "q4_k", "f32, f16, bf16, q8_0"),
        (lambda folder: (folder / "tokenizer.model").unlink(), None, "scores"),
    ],
    ids=["padding", "hole", "charsmap", "too-large", "blocks", "type", "no-scores"],
)
def test_what_has_no_form_is_refused(
    damage: Any, kind: str | None, said: str, llama: Path, tmp_path: Path
) -> None:
    directory = shutil.copytree(llama, tmp_path / "hf")
    damage(directory)
    with pytest.raises(TsugikiError, match=said):
        write_gguf(directory, tmp_path / "out" / "m.gguf", kind)
    assert not list((tmp_path / "out").glob("*")), "nothing is left"


def test_a_family_llama_cpp_does_not_know(llama: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from tsugiki.experiment.model.families.llama import Llama

    monkeypatch.setattr(Llama, "gguf", None)
    with pytest.raises(TsugikiError, match="no GGUF form"):
        write_gguf(llama, tmp_path / "m.gguf")


@pytest.mark.parametrize("place", ["tensor", "token", "end"])
def test_a_difference_is_found(place: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(llama, path)
    with pytest.raises(TsugikiError, match="must be a new file"):
        write_gguf(llama, path)
    data = bytearray(path.read_bytes())
    if place == "tensor":
        data[-1000] ^= 1
    elif place == "token":
        at = data.index(b"<0x41>")
        data[at : at + 6] = b"<0x42>"
    else:
        del data[-5000:]
    path.write_bytes(data)
    with pytest.raises(
        TsugikiError, match={"tensor": "1 of", "token": "tokens", "end": "not a whole"}[place]
    ):
        verify_gguf(llama, path, llama_cpp=False)


def _by_ollama(template: str, messages: list[dict[str, str]]) -> str:
    """A Go template of the kind that is written, as Jinja."""
    import re

    import jinja2

    for old, new in (
        (r"{{- range \$i, \$message := .Messages }}", "{% for m in messages %}"),
        (r"{{- (else )?if eq .Role (\S+) }}", lambda f: f"{{% {'el' if f[1] else ''}if m.role == {f[2]} %}}"),
        (r"{{- if eq \$i 0 }}", "{% if loop.first %}"),
        (r"{{- else }}", "{% else %}"),
        (r"{{- end }}{{- end }}$", "{% endif %}{% endfor %}"),
        (r"{{- end }}", "{% endif %}"),
        (r"{{ .Content }}", "{{ m.content }}"),
    ):
        template = re.sub(old, new, template)
    return jinja2.Template(template, keep_trailing_newline=True).render(messages=messages)


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_modelfile_and_preset_say_the_chat_template(name: str, llama: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(llama, tmp_path / "hf")
    source = TEMPLATES / f"{name}.jinja"
    shutil.copyfile(source, directory / "chat_template.jinja")
    settings = {"eos_token_id": 2, "temperature": 0.1, "top_p": 0.95}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    write_gguf(directory, tmp_path / "m.gguf")
    modelfile = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    preset = json.loads((tmp_path / "m.preset.json").read_text(encoding="utf-8"))["operation"]["fields"]
    values = {field["key"]: field["value"] for field in preset}
    assert modelfile.startswith("FROM ./m.gguf\n") and 'PARAMETER stop "</s>"' in modelfile
    assert "PARAMETER temperature 0.1\nPARAMETER top_p 0.95" in modelfile
    assert values["llm.prediction.temperature"] == 0.1
    assert values["llm.prediction.topPSampling"] == {"checked": True, "value": 0.95}
    assert ('stop "Human:"' in modelfile) == (name == "billa")
    template = modelfile.split('TEMPLATE """')[1].split('"""')[0]
    turns = [("user", "U"), ("assistant", "A"), ("user", "V")]
    conversations = [turns[:1], turns]
    if name not in ("billa", "swallow-instruct"):
        conversations.append([("system", "S"), *turns])
    for conversation in conversations:
        messages = [{"role": role, "content": text} for role, text in conversation]
        chat = ChatTemplate(source.read_text(encoding="utf-8").removesuffix("\n"), "<s>", "</s>")
        expected = chat.render(messages, add_generation_prompt=True).removeprefix("<s>")
        assert _by_ollama(template, messages) == expected
    assert ("no place for a system message" in modelfile) == (name in ("billa", "swallow-instruct"))
