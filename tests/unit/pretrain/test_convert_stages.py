"""The graft and export stages as the pipeline runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
import zstandard
from convert_material import CASES, make_model, read_weights, write_tokenizer

import tsugiki.pretrain.export
import tsugiki.pretrain.graft
from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.artefacts.mixture import Mixture, MixtureSource
from tsugiki.experiment.errors import CheckpointError, DataError
from tsugiki.experiment.run.stage import StageContext
from tsugiki.pretrain.conversion.verify import LogitsReport, check_logits, compare_logits
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint, verify_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig, GraftConfig

CONTEXT = StageContext(workers=2, experiment_name="tiny-ja")


def write_corpus(directory: Path) -> None:
    (directory / "news").mkdir(parents=True)
    record = {"id": "1", "text": " ".join(f"w{index}" for index in range(100)), "metadata": {}}
    data = zstandard.compress((json.dumps(record) + "\n").encode())
    (directory / "news" / "heldout-00000.jsonl.zst").write_bytes(data)
    source = CorpusSource(
        name="news", language="ja", train=[], heldout=["news/heldout-00000.jsonl.zst"],
        train_documents=7, train_bytes=7000, heldout_documents=1, heldout_bytes=290,
    )  # fmt: skip
    CorpusIndex(sources=[source]).save(directory)


def write_tokens(directory: Path) -> None:
    directory.mkdir()
    source = MixtureSource(
        name="news", language="ja", prefix="news", heldout_prefix=None, documents=7, tokens=1234,
        bytes=7000, heldout_documents=1, heldout_tokens=90, heldout_bytes=290, share=1.0,
        planned_tokens=5000, epochs=4.05,
    )  # fmt: skip
    Mixture(vocabulary_size=101, bos_id=1, eod_id=2, total_tokens=5000, sources=[source]).save(directory)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, tokenizer, corpus, tokens, graft, and a train directory whose weights are the graft's."""
    run = tmp_path_factory.mktemp("run")
    base = make_model(CASES[1], run / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/tiny-7b\n---\n# Tiny\n")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "LICENSE").write_text("Apache License")
    write_tokenizer(run / "tokenizer", 97, [[1, 2], [3], [4], []])
    sizes = {
        "base": {"ja": {"tokens_per_character": 1.5}},
        "extended": {"ja": {"tokens_per_character": 0.75}},
    }
    (run / "tokenizer" / "report.json").write_text(json.dumps({"tokenizers": sizes}))
    write_corpus(run / "corpus")
    write_tokens(run / "tokens")
    (run / "graft").mkdir()
    inputs = {"base": run / "base", "tokenizer": run / "tokenizer"}
    # Trained in fp32 from a bf16 base, as mixed-precision training keeps it.
    result = tsugiki.pretrain.graft.run(GraftConfig(dtype="fp32"), inputs, run / "graft", CONTEXT)
    assert result.counts["vocabulary_size"] == 101 and result.counts["new_rows"] == 4
    train = run / "train"
    for step in (5, 10):
        iteration = train / "checkpoints" / f"iter_{step:07}"
        shutil.copytree(run / "graft" / "checkpoint", iteration)
        facts = {"iteration": step, "consumed_tokens": 512 * step}
        (iteration / "checkpoint.json").write_text(json.dumps(facts))
    for name in ("model.json", "hf_config.json"):
        shutil.copy(run / "graft" / name, train / name)
    metrics = [{"step": step, "validation/bits_per_byte/ja": 3.0 - step / 10} for step in (0, 5, 10)]
    (train / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in metrics))
    import_checkpoint(base, run / "base-megatron")
    config = ExportConfig(verify=False)
    export_checkpoint(train, run / "export", tokenizer_dir=run / "tokenizer", config=config)
    return run


@pytest.mark.slow
def test_export_stage_writes_a_verified_model_with_its_card(run_dir: Path, tmp_path: Path) -> None:
    inputs = {name: run_dir / name for name in ("train", "base", "tokenizer", "tokens", "corpus")}
    result = tsugiki.pretrain.export.run(ExportConfig(iteration=5), inputs, tmp_path, CONTEXT)
    assert result.counts["dtype"] == "bf16"
    assert {tensor.dtype for tensor in read_weights(tmp_path).values()} == {torch.bfloat16}
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["vocabulary_size"] == 101 and report["logits"]["tokens"] == 100
    # Trained in fp32, exported in bf16: both sides see the rounded weights.
    assert report["logits"]["max_difference"] <= 1e-5 and report["logits"]["argmax_agreement"] == 1.0
    card = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "apache-2.0"
    # The base is a folder without a name on a hub; the model that it was made from is not ours.
    assert "base_model" not in metadata and "whose own base is someone/tiny-7b" in card
    assert metadata["language"] == ["ja"]
    assert "| Tokens of continued pretraining | 2,560 |" in card
    assert "| news | ja | 7 | 7,000 | 1,234 | 100.0 % | 4.05 |" in card
    assert "| ja | 1.500 | 0.750 |" in card
    assert "| ja | 3.000 | 2.500 |" in card  # bits per byte at the exported step, not the last
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (tmp_path / name).is_file()
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"  # the base's
    # Scratch, which the stage graph removes when it seals the stage.
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".work"]


def test_the_template_of_the_training_replaces_that_of_the_base(run_dir: Path, tmp_path: Path) -> None:
    tokens = shutil.copytree(run_dir / "tokens", tmp_path / "tokens")
    template = Path(__file__).parents[3] / "configs" / "chat_templates" / "sus-chat.jinja"
    shutil.copy(template, tokens / "chat_template.jinja")
    inputs = {name: run_dir / name for name in ("train", "base", "tokenizer", "corpus")}
    (tmp_path / "export").mkdir()
    tsugiki.pretrain.export.run(
        ExportConfig(verify=False), {**inputs, "tokens": tokens}, tmp_path / "export", CONTEXT
    )
    assert (tmp_path / "export" / "chat_template.jinja").read_bytes() == template.read_bytes()


@pytest.mark.slow
def test_verify_command_with_logits(run_dir: Path) -> None:
    result = verify_checkpoint(run_dir / "base", run_dir / "base-megatron", logits=True, tokens=40)
    assert result["weights"]["tensors"] == 39
    assert result["logits"]["tokens"] == 40 and result["logits"]["max_difference"] <= 1e-5
    with pytest.raises(DataError, match="no text"):
        verify_checkpoint(run_dir / "export", run_dir / "train", logits=True, texts=["", ""])
    (run_dir / "export" / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    with pytest.raises(DataError, match="unreadable tokenizer"):
        verify_checkpoint(run_dir / "export", run_dir / "train", logits=True, texts=["w1"])


def test_damage_after_export_is_found(run_dir: Path, tmp_path: Path) -> None:
    target = tmp_path / "hf"
    config = ExportConfig(verify=False)
    export_checkpoint(run_dir / "train", target, tokenizer_dir=run_dir / "tokenizer", config=config)
    path = target / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="tensor differs"):
        verify_checkpoint(target, run_dir / "train")


def test_logits_report_by_hand() -> None:
    left = torch.tensor([[0.0, 0.25], [1.0, 0.0]])
    right = torch.tensor([[0.0, 0.5], [0.0, 1.0]])
    report = compare_logits([left], [right])
    assert report.tokens == 2 and report.max_difference == 1.0 and report.argmax_agreement == 0.5
    assert report.mean_difference == pytest.approx(2.25 / 4)
    first = torch.distributions.Categorical(logits=left)
    second = torch.distributions.Categorical(logits=right)
    expected = torch.distributions.kl_divergence(first, second).mean().item()
    assert report.kl_divergence == pytest.approx(expected, rel=1e-6)
    with pytest.raises(CheckpointError, match="logits"):
        check_logits(report, 1e-4, Path("x"))
    broken = compare_logits([left], [torch.full_like(right, float("nan"))])
    with pytest.raises(CheckpointError, match="inf"):
        check_logits(broken, 1e-4, Path("x"))
    check_logits(LogitsReport(2, 1e-5, 0.0, 1.0, 0.0, 1.0), 1e-4, Path("x"))
