"""Exports read by other releases of transformers, in environments of their own.

Needs Pythons that have them, and is skipped without: for example

    python -m venv t445 && t445/bin/pip install torch transformers==4.45.2 sentencepiece
    TSUGIKI_TRANSFORMERS="t445/bin/python t457/bin/python" pytest tests/unit/pretrain/test_earlier_transformers.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from convert_material import LLAMA3_ROPE, Case, make_model
from tokenizer_material import mistral_base

from tsugiki.experiment.text.hf_tokenizer import write_hf_tokenizer
from tsugiki.pretrain.convert import export_checkpoint, import_checkpoint
from tsugiki.pretrain.convert_config import ExportConfig
from tsugiki.tokenizer.base.base import load_base
from tsugiki.tokenizer.base.merge import merge_sentencepiece

READERS = os.environ.get("TSUGIKI_TRANSFORMERS", "").split()
SCRIPT = Path(__file__).parents[2] / "support" / "earlier_transformers.py"
ROPES = {"base": {"rope_type": "default", "rope_theta": 100_000.0}, "scaled": LLAMA3_ROPE}
TEXTS = ["Hello, world", "東京 and a longer line of text", " " * 40 + "x", "\tif x:\t# 東京", ""]


@pytest.fixture(scope="module", params=ROPES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    base_dir = mistral_base(root / "tokenizer-base")
    base = load_base(base_dir)
    (root / "m.model").write_bytes(merge_sentencepiece(base, ["東京"], base.size + 8).SerializeToString())
    write_hf_tokenizer(root / "m.model", root / "tokenizer", inherit_from=base_dir)
    changes = {"vocab_size": base.size + 8, "num_hidden_layers": 1, "rope_parameters": ROPES[request.param]}
    model = make_model(Case("rope", "Llama", changes, dtype="bfloat16"), root / "base")
    import_checkpoint(model, root / "megatron")
    options = {"tokenizer_dir": root / "tokenizer", "base_dir": model, "config": ExportConfig(verify=False)}
    export_checkpoint(root / "megatron", root / "export", **options)
    return root / "export"


def read_by(python: str, directory: Path, texts: Path) -> dict[str, Any]:
    texts.write_text(json.dumps(TEXTS), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, SCRIPT, directory, texts],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not READERS, reason="TSUGIKI_TRANSFORMERS names no Python with another transformers")
@pytest.mark.slow
def test_every_release_reads_the_same_model(exported: Path, tmp_path: Path) -> None:
    ours = read_by(sys.executable, exported, tmp_path / "texts.json")
    assert ours["inputs"] == ["attention_mask", "input_ids"]
    for python in READERS:
        found = read_by(python, exported, tmp_path / "texts.json")
        differing = [key for key in ours if key not in ("version", "logits") and found[key] != ours[key]]
        assert differing == [], found["version"]
        assert found["logits"] == pytest.approx(ours["logits"], abs=1e-4), found["version"]
