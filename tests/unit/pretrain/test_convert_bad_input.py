"""Damaged and unfitting models: an error that names the tensor, and nothing that looks whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from convert_material import CASES, Case, make_model, read_weights, same_bits, write_tokenizer
from safetensors.torch import load_file, save_file

import tsugiki.pretrain.conversion.import_hf
from tsugiki.experiment.errors import CheckpointError, ConfigError, DataError, EnvironmentError_
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint, verify_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig

NO_VERIFY = ExportConfig(verify=False)
SHARDED = Case("sharded", "Llama", {"hidden_size": 64}, shard_bytes=60_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_model(SHARDED, folder / "sharded")
    make_model(CASES[0], folder / "single")
    import_checkpoint(folder / "single", folder / "megatron")
    return folder


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "single", tmp_path / "base"))


@pytest.fixture
def sharded(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "sharded", tmp_path / "base"))


@pytest.fixture
def megatron(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "megatron", tmp_path / "megatron"))


def refused(directory: Path, target: Path, *parts: str, **options: Any) -> None:
    with pytest.raises((CheckpointError, DataError)) as caught:
        import_checkpoint(directory, target, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert not target.exists()


def change_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))


def test_missing_shard(sharded: Path, tmp_path: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    refused(sharded, tmp_path / "out", "missing shard", victim.name)


def test_truncated_shard(sharded: Path, tmp_path: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    refused(sharded, tmp_path / "out", "truncated", victim.name, "model.layers.", "[")


def test_header_cut(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:50])
    refused(base, tmp_path / "out", "not a whole safetensors file")


def test_index_names_an_absent_tensor(sharded: Path, tmp_path: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    name = "model.layers.1.mlp.up_proj.weight"
    index["weight_map"][name] = next(file for file in files if file != index["weight_map"][name])
    path.write_text(json.dumps(index))
    refused(sharded, tmp_path / "out", "does not hold", name)


def test_no_weights_and_no_model(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    refused(base, tmp_path / "out", "no weights here", "config.json")
    refused(tmp_path / "nothing", tmp_path / "out", "not a Hugging Face model directory")


def test_unknown_architecture(base: Path, tmp_path: Path) -> None:
    change_config(base, model_type="mamba")
    with pytest.raises(ConfigError, match="no such model family") as caught:
        import_checkpoint(base, tmp_path / "out")
    assert "mamba" in str(caught.value) and "llama" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_shape_contradicts_the_config(base: Path, tmp_path: Path) -> None:
    change_config(base, intermediate_size=56)
    refused(base, tmp_path / "out", "gate_proj", "[48, 32]", "[56, 32]")


def test_missing_and_left_over_tensors(base: Path, tmp_path: Path) -> None:
    change_weights(base, model__layers__2__self_attn__v_proj__weight=None)
    refused(base, tmp_path / "out", "missing", "model.layers.2.self_attn.v_proj.weight", "[16, 32]")
    change_weights(base, model__layers__2__self_attn__v_proj__weight=torch.zeros(16, 32))
    change_weights(base, model__layers__0__self_attn__q_proj__lora_A=torch.zeros(4, 32))
    refused(base, tmp_path / "out", "no place", "q_proj.lora_A", "[4, 32]")


def test_buffers_of_old_checkpoints_are_ignored(base: Path, tmp_path: Path) -> None:
    before = read_weights(base)
    change_weights(base, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(4))
    import_checkpoint(base, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", config=NO_VERIFY)
    after = read_weights(tmp_path / "export")
    assert sorted(before) == sorted(after) and all(same_bits(before[name], after[name]) for name in before)


def test_unsupported_type(base: Path, tmp_path: Path) -> None:
    change_weights(base, model__norm__weight=torch.ones(32, dtype=torch.float64))
    refused(base, tmp_path / "out", "F64")


def test_tied_matrices_that_differ(base: Path, tmp_path: Path) -> None:
    change_config(base, tie_word_embeddings=True)
    refused(base, tmp_path / "out", "tie_word_embeddings", "lm_head.weight")


def test_tied_matrix_saved_twice(tmp_path: Path) -> None:
    tied = make_model(CASES[3], tmp_path / "base")
    change_weights(tied, lm_head__weight=read_weights(tied)["model.embed_tokens.weight"].clone())
    import_checkpoint(tied, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", config=NO_VERIFY)
    assert "lm_head.weight" not in read_weights(tmp_path / "export")


def test_tokenizer_of_another_size(base: Path, tmp_path: Path) -> None:
    larger = write_tokenizer(tmp_path / "larger", 99, [])
    refused(base, tmp_path / "out", "larger", "99", "[97, 32]", tokenizer_dir=larger)
    smaller = write_tokenizer(tmp_path / "smaller", 90, [])
    refused(base, tmp_path / "out", "smaller", "90", "[97, 32]", tokenizer_dir=smaller)
    elsewhere = write_tokenizer(tmp_path / "elsewhere", 120, [[1]])
    refused(base, tmp_path / "out", "120", "[97, 32]", tokenizer_dir=elsewhere)
    unknown = write_tokenizer(tmp_path / "unknown", 97, [[1], [200]])
    refused(base, tmp_path / "out", "200", tokenizer_dir=unknown)


def test_padding_rows_of_the_base_go_when_asked(base: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 90, [])
    config = GraftConfig(trim_padding_rows=True)
    import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=tokenizer, config=config)
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", tokenizer_dir=tokenizer, config=NO_VERIFY)
    before, after = read_weights(base), read_weights(tmp_path / "export")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert same_bits(before[name][:90].clone(), after[name])
    assert json.loads((tmp_path / "export" / "config.json").read_text())["vocab_size"] == 90


def test_new_pieces_over_padding_rows(base: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 90, [[1]] * 10)
    import_checkpoint(base, tmp_path / "megatron", tokenizer_dir=tokenizer)
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", tokenizer_dir=tokenizer, config=NO_VERIFY)
    old, new = (read_weights(path)["lm_head.weight"] for path in (base, tmp_path / "export"))
    assert new.shape[0] == 100 and new[:90].equal(old[:90]) and new[90:].equal(old[1].expand(10, -1))


def test_verification_without_a_tokenizer_is_refused_at_once(megatron: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)without its tokenizer.*--tokenizer DIR"):
        export_checkpoint(megatron, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_export_with_another_tokenizer(megatron: Path, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 97, [[1]])
    with pytest.raises(DataError, match="differ in size"):
        export_checkpoint(megatron, tmp_path / "out", tokenizer_dir=tokenizer, config=NO_VERIFY)
    assert not (tmp_path / "out").exists()


def test_damaged_megatron_checkpoint(megatron: Path, tmp_path: Path) -> None:
    data = next((megatron / "checkpoint").glob("*.distcp"))
    whole = data.read_bytes()
    data.write_bytes(whole[:-2000])
    with pytest.raises(CheckpointError, match="cut short"):
        export_checkpoint(megatron, tmp_path / "out", config=NO_VERIFY)
    data.write_bytes(whole)
    spec = json.loads((megatron / "model.json").read_text())
    (megatron / "model.json").write_text(json.dumps({**spec, "ffn_size": 64}))
    with pytest.raises(CheckpointError, match="linear_fc1") as caught:
        export_checkpoint(megatron, tmp_path / "out", config=NO_VERIFY)
    assert "[4, 96, 32]" in str(caught.value) and "[4, 128, 32]" in str(caught.value)
    (megatron / "checkpoint" / ".metadata").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="metadata"):
        export_checkpoint(megatron, tmp_path / "out", config=NO_VERIFY)
    (megatron / "checkpoint" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        export_checkpoint(megatron, tmp_path / "out", config=NO_VERIFY)
    assert not (tmp_path / "out").exists()


def test_verify_finds_one_changed_bit(base: Path, megatron: Path) -> None:
    assert verify_checkpoint(base, megatron)["weights"]["tensors"] == 39
    weights = load_file(base / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"].view(torch.int32)[5, 7] ^= 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.mlp\.down_proj\.weight") as caught:
        verify_checkpoint(base, megatron)
    assert "1 of 1536 elements" in str(caught.value)


def test_full_disk_is_noticed_before_anything_is_written(
    base: Path, megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(tsugiki.pretrain.conversion.import_hf.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EnvironmentError_, match="disk space"):
        import_checkpoint(base, tmp_path / "out")
    with pytest.raises(EnvironmentError_, match="disk space"):
        export_checkpoint(megatron, tmp_path / "out", config=NO_VERIFY)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("out.partial/**/*.distcp")) + list(
        tmp_path.glob("out.partial/*.safetensors")
    )


def test_existing_output_is_kept(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        import_checkpoint(base, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"not a model directory, and is not replaced[\s\S]*mine"):
        import_checkpoint(base, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine").is_file()


def test_overwriting_replaces_a_model_as_a_whole(base: Path, tmp_path: Path) -> None:
    import_checkpoint(base, tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("")
    import_checkpoint(base, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine").exists()
    assert not (tmp_path / "out" / ".work").exists() and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_that_holds_or_lies_in_an_input_is_refused(
    base: Path, megatron: Path, tmp_path: Path, overwrite: bool
) -> None:
    run, hf = tmp_path / "R", tmp_path / "hf"
    shutil.copytree(megatron, run / "train")
    shutil.copytree(megatron, run / "other.partial")
    shutil.copytree(base, hf)
    (tmp_path / "link").symlink_to(hf)
    (run / "config.yaml").write_text("name: x")
    before = sorted(tmp_path.rglob("*"))
    for source, target in (
        (hf, hf),
        (tmp_path / "link", hf),
        (hf, tmp_path / "link" / "megatron"),
        (hf, hf / "m"),
    ):
        with pytest.raises(ConfigError, match="what it is made from"):
            import_checkpoint(source, target, overwrite=overwrite)
    for source, target in (
        (run / "train", run), (run / "other.partial", run / "other"), (run / "train", run / "train"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="what it is made from"):
            export_checkpoint(source, target, config=NO_VERIFY, overwrite=overwrite)
    with pytest.raises(ConfigError, match="what it is made from"):
        export_checkpoint(megatron, hf, base_dir=hf, config=NO_VERIFY, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["mine.txt", ".key.json"])
def test_partial_folder_of_another_origin_is_kept(base: Path, tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "out.partial"
    (theirs / ".work").mkdir(parents=True)
    (theirs / name).write_text("text")
    if name == ".key.json":  # a stage that converts has a journal as well
        (theirs / ".work" / "conversion.jsonl").write_text("")
    with pytest.raises(ConfigError, match="used by something else"):
        import_checkpoint(base, tmp_path / "out")
    assert (theirs / name).read_text() == "text"


def test_output_that_is_a_file_or_a_link_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "dangling", "file/below"):
        with pytest.raises(ConfigError, match=r"the output (directory cannot be used|is a link)"):
            import_checkpoint(base, tmp_path / name, overwrite=True)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("action", ["import", "export"])
def test_an_interrupted_conversion_goes_on(
    action: str, base: Path, megatron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"

    def convert() -> None:
        if action == "import":
            import_checkpoint(base, target, workers=1)
        else:
            export_checkpoint(megatron, target, config=NO_VERIFY, workers=1)

    calls: list[int] = []
    module = {
        "import": "tsugiki.pretrain.conversion.import_hf",
        "export": "tsugiki.pretrain.conversion.export_hf",
    }[action]
    copy = tsugiki.pretrain.conversion.import_hf.copy_range

    def failing(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == limit:
            raise Interrupted
        copy(*arguments)

    monkeypatch.setattr(f"{module}.copy_range", failing)
    limit = 25
    with pytest.raises(Interrupted):
        convert()
    assert not target.exists() and (tmp_path / "out.partial").is_dir()
    calls.clear()
    limit = -1
    convert()
    resumed = len(calls)
    result = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    shutil.rmtree(target)
    calls.clear()
    convert()
    assert 0 < resumed < len(calls)
    fresh = {path.relative_to(target): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert result == fresh
    assert not (tmp_path / "out.partial").exists()


def test_a_changed_source_is_not_continued(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tsugiki.pretrain.conversion.import_hf.copy_range
    calls: list[int] = []

    def failing(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 25:
            raise Interrupted
        copy(*arguments)

    monkeypatch.setattr("tsugiki.pretrain.conversion.import_hf.copy_range", failing)
    with pytest.raises(Interrupted):
        import_checkpoint(base, tmp_path / "out", workers=1)
    make_model(CASES[0], base, seed=1)
    import_checkpoint(base, tmp_path / "out", workers=1)
    assert verify_checkpoint(base, tmp_path / "out")["weights"]["tensors"] == 39


@pytest.mark.parametrize("sharded_file", [False, True])
def test_legacy_pytorch_files(base: Path, sharded_file: bool, tmp_path: Path) -> None:
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    if sharded_file:
        names = sorted(weights)
        parts = {f"pytorch_model-0000{n}-of-00002.bin": names[n - 1 :: 2] for n in (1, 2)}
        for file, held in parts.items():
            torch.save({name: weights[name] for name in held}, base / file)
        index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(weights, base / "pytorch_model.bin")
    import_checkpoint(base, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "export", config=NO_VERIFY)
    after = read_weights(tmp_path / "export")
    assert sorted(after) == sorted(weights)
    assert all(same_bits(weights[name], after[name]) for name in weights)


def test_truncated_legacy_file(base: Path, tmp_path: Path) -> None:
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    path = base / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-500])
    refused(base, tmp_path / "out", "not a whole PyTorch weight file")


def test_intermediate_iteration_and_unfinished_save(megatron: Path, tmp_path: Path) -> None:
    train = tmp_path / "train"
    for step in (0, 5, 10):
        shutil.copytree(megatron / "checkpoint", train / "checkpoints" / f"iter_{step:07}")
        if step < 10:  # the last save is still being written
            (train / "checkpoints" / f"iter_{step:07}" / "checkpoint.json").write_text("{}")
    for file in ("model.json", "hf_config.json"):
        shutil.copy(megatron / file, train / file)
    from tsugiki.pretrain.conversion.trained_model import find_checkpoint

    assert find_checkpoint(train).iteration == 5
    assert find_checkpoint(train, 0).iteration == 0
    assert find_checkpoint(train / "checkpoints" / "iter_0000005").iteration == 5
    with pytest.raises(ConfigError, match="one of 0, 5"):
        find_checkpoint(train, 7)
    with pytest.raises(CheckpointError, match="not whole"):
        find_checkpoint(train / "checkpoints" / "iter_0000010")
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        find_checkpoint(tmp_path)
