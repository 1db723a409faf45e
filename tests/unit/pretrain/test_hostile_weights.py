"""Weight files and configurations that cannot be: refused by file and tensor, without reading elsewhere."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tsugiki.experiment.errors import CheckpointError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.pretrain.formats.safetensors_files import HfReader, safetensors_header


def tensor(begin: Any = 0, end: Any = 8, shape: Any = (4,), dtype: Any = "F16") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [begin, end],
    }


def file(folder: Path, header: object, data: int = 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


HEADERS: dict[str, tuple[object, str]] = {
    "not json": (b"{not json", "not a whole"),
    "list": ([1, 2], "list as header"),
    "deep": (b"[" * 100_000, "not a whole"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "not a whole"),
    "twice": (b'{"a": {}, "a": {}}', "'a' comes twice"),
    "overlap": ({"a": tensor(), "b": tensor(4, 12)}, "overlap.*|a ends at byte"),
    "same place": ({"a": tensor(), "b": tensor()}, "overlap"),
    "negative": ({"a": tensor(-8, 0)}, "unreadable tensor entry"),
    "backwards": ({"a": tensor(8, 0)}, "contradicts"),
    "beyond": ({"a": tensor(16, 24)}, "truncated"),
    "oversized": ({"a": tensor(0, 1 << 70, (1 << 69,))}, "unreadable tensor entry"),
    "fraction": ({"a": tensor(0, 8.0)}, "unreadable tensor entry"),
    "boolean": ({"a": tensor(0, 2, (True,))}, "unreadable tensor entry"),
    "string sizes": ({"a": tensor("0", "8")}, "unreadable tensor entry"),
    "string shape": ({"a": tensor(shape="4")}, "unreadable tensor entry"),
    "negative shape": ({"a": tensor(shape=(-2, -2))}, "unreadable tensor entry"),
    "wrong shape": ({"a": tensor(shape=(5,))}, "contradicts"),
    "unknown type": ({"a": tensor(dtype="F17")}, "unknown type"),
    "type list": ({"a": tensor(dtype=["F16"])}, "unreadable tensor entry"),
    "no type": ({"a": {"shape": [4], "data_offsets": [0, 8]}}, "unreadable tensor entry"),
    "not an entry": ({"a": 5}, "unreadable tensor entry"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be(tmp_path: Path, name: str) -> None:
    header, message = HEADERS[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        safetensors_header(file(tmp_path, header))
    assert str(tmp_path / "model.safetensors") in str(caught.value)


def test_a_header_longer_than_its_file(tmp_path: Path) -> None:
    for length in (1 << 63, 1 << 40, 300):
        with pytest.raises(CheckpointError, match="header of"):
            safetensors_header(file(tmp_path, {"a": tensor()}, length=length))


def test_files_that_are_right_are_read(tmp_path: Path) -> None:
    save_file(
        {"a": torch.ones(2, 3), "e": torch.ones(0, 3), "b": torch.ones(4)}, tmp_path / "model.safetensors"
    )
    reader = HfReader(tmp_path)
    assert reader.tensors["e"].size_bytes == 0
    assert reader.read("a").equal(torch.ones(2, 3)) and reader.read("b").equal(torch.ones(4))


INDEXES: dict[str, tuple[object, str]] = {
    "parent": ({"weight_map": {"a": "../outside.safetensors"}}, "outside the model's directory"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "outside the model's directory"),
    "folder": ({"weight_map": {"a": "b/c.safetensors"}}, "outside the model's directory"),
    "here": ({"weight_map": {"a": ".."}}, "outside the model's directory"),
    "number": ({"weight_map": {"a": 5}}, "outside the model's directory"),
    "list": ([], "unreadable weight index"),
    "map is a list": ({"weight_map": ["a"]}, "unreadable weight index"),
    "no map": ({}, "unreadable weight index"),
    "not json": (b"{", "unreadable weight index"),
    "not text": (b"\xff\xfe", "unreadable weight index"),
    "deep": (b"[" * 100_000, "unreadable weight index"),
    "twice": (b'{"weight_map": {"a": "x", "a": "y"}}', "comes twice"),
}


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_indexes_that_cannot_be(tmp_path: Path, name: str, kind: str) -> None:
    content, message = INDEXES[name]
    file(tmp_path, {"a": tensor()}).rename(tmp_path / "outside.safetensors")
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / f"{kind}.index.json"
    index.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        HfReader(tmp_path / "model")
    assert str(index) in str(caught.value)


@pytest.mark.parametrize("content", [[], {}, 5, {"a": 1}, {1: torch.ones(2)}, torch.ones(2)], ids=str)
def test_pytorch_files_without_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no tensors by name"):
        HfReader(tmp_path)


CONFIG: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 97,
}  # fmt: skip
WRONG: list[tuple[str, str, Any]] = [
    ("llama", "num_hidden_layers", 10**9),
    ("qwen2", "num_hidden_layers", 10**9),
    ("llama", "num_hidden_layers", 1e9),
    ("llama", "num_hidden_layers", "2"),
    ("llama", "num_hidden_layers", True),
    ("llama", "vocab_size", "97"),
    ("llama", "vocab_size", 10**20),
    ("llama", "hidden_size", [32]),
    ("llama", "rms_norm_eps", "1e-5"),
    ("llama", "rms_norm_eps", float("inf")),
    ("llama", "rms_norm_eps", 10**400),
    ("llama", "rope_theta", "10000"),
    ("llama", "rope_theta", {}),
    ("llama", "tie_word_embeddings", "false"),
    ("llama", "attention_bias", "no"),
    ("llama", "mlp_bias", 1),
    ("llama", "architectures", 5),
    ("llama", "architectures", "LlamaForCausalLM"),
    ("llama", "hidden_act", ["silu"]),
    ("llama", "rope_scaling", {"rope_type": "linear", "factor": "4"}),
    ("mistral", "sliding_window", "4096"),
    ("phi3", "sliding_window", "x"),
]


@pytest.mark.parametrize(("family", "key", "value"), WRONG, ids=lambda item: str(item)[:20])
def test_settings_of_another_type_are_refused_by_name(
    tmp_path: Path, family: str, key: str, value: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": family, key: value}))
    name = {"rope_scaling": "linear factor"}.get(key, key)
    with pytest.raises(CheckpointError, match=f"cannot use this model: {name}") as caught:
        ModelSpec.from_hf(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_settings_nobody_thought_of_are_refused_too(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": [["full"], {}]}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "model_type": "qwen2", **window}))
    with pytest.raises(CheckpointError, match="of another type"):
        ModelSpec.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="unreadable"):
        ModelSpec.from_hf(tmp_path)


def test_a_described_model_has_a_bounded_number_of_layers(tmp_path: Path) -> None:
    spec = ModelSpec.from_hf({**CONFIG, "model_type": "llama"}).model_copy(update={"layers": 10**9})
    spec.save(tmp_path)
    with pytest.raises(CheckpointError, match="layers"):
        ModelSpec.load(tmp_path)
