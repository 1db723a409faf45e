"""Small corpora and tiny random models for the tests of evaluation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `eval` is not installed"
)
FIXTURES = Path(__file__).parents[1] / "fixtures" / "text"


def fixture_documents(language: str) -> list[dict[str, Any]]:
    lines = (FIXTURES / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_shard(path: Path, documents: list[dict[str, Any]]) -> None:
    import zstandard

    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    path.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))


def write_corpus(directory: Path, heldout: dict[str, list[str]], kinds: dict[str, str] | None = None) -> Path:
    """A corpus directory with these held-out texts; source names are ``<language>`` or ``<language>-<n>``."""
    from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource

    sources = []
    for name, texts in heldout.items():
        documents = [
            {"id": f"{name}/{number}", "text": text, "metadata": {}} for number, text in enumerate(texts)
        ]
        write_shard(directory / name / "heldout-00000.jsonl.zst", documents)
        sources.append(
            CorpusSource(
                name=name,
                language=name.partition("-")[0],
                kind=(kinds or {}).get(name, "text"),
                train=[],
                heldout=[f"{name}/heldout-00000.jsonl.zst"],
                train_documents=0,
                train_bytes=0,
                heldout_documents=len(texts),
                heldout_bytes=sum(len(text.encode()) for text in texts),
            )
        )
    CorpusIndex(sources=sources).save(directory)
    return directory


def write_model(
    directory: Path, *, seed: int = 0, max_positions: int = 64, kind: str = "llama", scale: float = 1.0
) -> Path:
    """A tiny random model with the genuine Mistral vocabulary as a Hugging Face directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from tsugiki.experiment.text.hf_tokenizer import mistral_v1_model, write_hf_tokenizer

    sizes: dict[str, Any] = {
        "vocab_size": 32000,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": max_positions,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3 * scale,
    }
    torch.manual_seed(seed)
    network: Any
    network = (
        LlamaForCausalLM(LlamaConfig(**sizes)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))
    )
    network.save_pretrained(directory)
    write_hf_tokenizer(mistral_v1_model(), directory)
    return directory
