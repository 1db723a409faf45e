"""Model directories and checkpoints that are damaged or made up: imported right, or refused with nothing left."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from convert_material import CASES, SMALL, Case, make_model, same_bits, write_tokenizer
from fuzzing import as_json, fuzz, mutated_bytes, mutated_json, right_or_refused
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from tsugiki.experiment.errors import TsugikiError
from tsugiki.experiment.model.model_spec import ModelSpec
from tsugiki.experiment.text.tokenizer_files import open_tokenizer, tokenizer_size
from tsugiki.pretrain.convert import import_checkpoint
from tsugiki.pretrain.formats.safetensors_files import HfReader
from tsugiki.pretrain.formats.torch_dist_metadata import check_before_loading
from tsugiki.pretrain.formats.torch_dist_reader import DistReader

pytestmark = pytest.mark.slow
SHARDED = Case("sharded", "Llama", {"num_hidden_layers": 1, "hidden_size": 32}, shard_bytes=20_000)
FAMILIES = {
    "llama": {}, "mistral": {"sliding_window": 8}, "gemma": {"head_dim": 16}, "qwen2": {}, "phi3": {"sliding_window": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_model(SHARDED, folder / "sharded")
    make_model(Case("one", "Llama", {"num_hidden_layers": 1}), folder / "one")
    write_tokenizer(folder / "tokenizer", 90, [[1, 2]])
    import_checkpoint(folder / "one", folder / "megatron")
    return folder


@fuzz(200)
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
def test_config_json(made: Path, data: st.DataObject, family: str) -> None:
    original = (
        json.loads((made / "one" / "config.json").read_text()) | FAMILIES[family] | {"model_type": family}
    )
    (made / "config").mkdir(exist_ok=True)
    changed = data.draw(st.one_of(mutated_json(original).map(as_json), mutated_bytes(as_json(original))))
    (made / "config" / "config.json").write_bytes(changed)
    spec = right_or_refused(lambda: ModelSpec.from_hf(made / "config"))
    if not isinstance(spec, TsugikiError):
        spec.save(made / "config")
        assert ModelSpec.load(made / "config") == spec


def read_all(directory: Path) -> dict[str, Any]:
    reader = HfReader(directory)
    return {name: reader.read(name) for name in reader.tensors}


def changed_header(header: bytes, draw: Any) -> bytes:
    text = draw(st.one_of(mutated_json(json.loads(header)).map(as_json), mutated_bytes(header)))
    length = draw(st.sampled_from((len(text), len(text), len(text), 0, 1, 2**40, 2**63)))
    return struct.pack("<Q", length) + text


@fuzz(150)
@given(data=st.data())
def test_safetensors(made: Path, data: st.DataObject) -> None:
    """What is read is what the library of the format reads."""
    original = (made / "one" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", original[:8])
    place = made / "weights"
    place.mkdir(exist_ok=True)
    if data.draw(st.booleans()):
        content = changed_header(original[8 : 8 + length], data.draw) + original[8 + length :]
    else:
        content = data.draw(mutated_bytes(original))
    (place / "model.safetensors").write_bytes(content)
    tensors = right_or_refused(lambda: read_all(place))
    if not isinstance(tensors, TsugikiError):
        try:
            expected = load_file(place / "model.safetensors")
        except SafetensorError:
            return  # stricter in what it takes for a header
        assert tensors.keys() == expected.keys()
        assert all(
            same_bits(tensors[name], expected[name])
            for name in tensors
            if tensors[name].element_size() in (2, 4)
        )


@fuzz(25)
@given(data=st.data())
def test_import(made: Path, data: st.DataObject) -> None:
    """The whole import; refused, it leaves nothing."""
    base, target = made / "base", made / "imported"
    for folder in (base, target):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made / "sharded", base)
    name = data.draw(
        st.sampled_from(
            sorted(path.name for path in base.iterdir() if path.suffix in (".json", ".safetensors"))
        )
    )
    content = (base / name).read_bytes()
    if name.endswith(".json"):
        content = data.draw(st.one_of(mutated_json(json.loads(content)).map(as_json), mutated_bytes(content)))
    else:
        content = data.draw(mutated_bytes(content))
    (base / name).write_bytes(content)
    result = right_or_refused(lambda: import_checkpoint(base, target))
    if isinstance(result, TsugikiError):
        assert not target.exists()
    else:
        DistReader(target / "checkpoint").close()


@fuzz(80)
@given(data=st.data())
def test_tokenizers(made: Path, data: st.DataObject) -> None:
    place = made / "changed"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(made / "tokenizer", place)
    name = data.draw(st.sampled_from(("tokenizer.json", "tokenizer_config.json")))
    original = (place / name).read_bytes()
    changed = data.draw(st.one_of(mutated_json(json.loads(original)).map(as_json), mutated_bytes(original)))
    (place / name).write_bytes(changed)
    right_or_refused(lambda: tokenizer_size(place))
    right_or_refused(lambda: open_tokenizer(place))


@fuzz(200)
@given(data=st.data())
def test_metadata(made: Path, data: st.DataObject) -> None:
    """`.metadata` of a checkpoint, and its small objects."""
    place = made / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(made / "megatron" / "checkpoint", place)
    name = data.draw(st.sampled_from((".metadata", ".metadata", ".metadata", "common.pt")))
    (place / name).write_bytes(data.draw(mutated_bytes((place / name).read_bytes())))
    right_or_refused(lambda: read_checkpoint(place))
    right_or_refused(lambda: check_before_loading(place))


def read_checkpoint(directory: Path) -> None:
    reader = DistReader(directory)
    for key, tensor in list(reader.tensors.items())[:2]:
        reader.read(key, tuple((0, size) for size in tensor.shape))
    reader.close()


@fuzz(100)
@given(data=st.data())
def test_metadata_fields(made: Path, data: st.DataObject) -> None:
    """A pickle that is whole, with fields that are not."""
    place = made / "fields"
    if not place.exists():
        shutil.copytree(made / "megatron" / "checkpoint", place)
    metadata = pickle.loads((made / "megatron" / "checkpoint" / ".metadata").read_bytes())
    nasty = st.sampled_from((None, -1, 2**62, 2**80, 0.5, "x", (), [1], "../x", b"x"))
    entries = [item for item in metadata.state_dict_metadata.values() if hasattr(item, "chunks")]
    info = data.draw(st.sampled_from(sorted(metadata.storage_data.items(), key=str)))[1]
    entry = data.draw(st.sampled_from(entries))
    targets = [(info, "offset"), (info, "length"), (info, "relative_path"), (entry, "size"), (entry, "chunks"),
               (entry.properties, "dtype"), (entry.chunks[0], "offsets"), (entry.chunks[0], "sizes")]  # fmt: skip
    for target, name in data.draw(st.lists(st.sampled_from(targets), min_size=1, max_size=2, unique_by=str)):
        object.__setattr__(target, name, data.draw(nasty))
    (place / ".metadata").write_bytes(pickle.dumps(metadata))
    right_or_refused(lambda: read_checkpoint(place))
    right_or_refused(lambda: check_before_loading(place))


def test_the_material(made: Path) -> None:
    assert CASES and SMALL["num_hidden_layers"] > 1
    assert not isinstance(right_or_refused(lambda: ModelSpec.from_hf(made / "one")), TsugikiError)
    assert not isinstance(right_or_refused(lambda: open_tokenizer(made / "tokenizer")), TsugikiError)
    assert read_all(made / "one")
    read_checkpoint(made / "megatron" / "checkpoint")
