"""Small corpora and bases for the tests of the vocabulary stage."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import zstandard

from tsugiki.experiment.artefacts.corpus_index import CorpusIndex, CorpusSource
from tsugiki.experiment.text.hf_tokenizer import (
    load_sentencepiece_proto,
    mistral_v1_model,
    write_hf_tokenizer,
)

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "text"


def fixture_texts(language: str) -> list[str]:
    """Documents of tests/fixtures/text."""
    lines = (FIXTURES / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def write_corpus(directory: Path, texts: dict[str, list[str]], heldout: int = 3) -> Path:
    """A corpus artefact whose last documents of each language are held out."""
    sources = []
    for language, documents in texts.items():
        folder = directory / f"src-{language}"
        folder.mkdir(parents=True)
        splits = {"train": documents[:-heldout] if heldout else documents, "heldout": documents[-heldout:]}
        for split, items in splits.items():
            records = (
                json.dumps(
                    {"id": f"{language}-{split}-{n}", "text": text, "metadata": {}}, ensure_ascii=False
                )
                for n, text in enumerate(items)
            )
            data = zstandard.ZstdCompressor().compress(("\n".join(records) + "\n" if items else "").encode())
            (folder / f"{split}.jsonl.zst").write_bytes(data)
        size = {split: sum(len(text.encode()) for text in items) for split, items in splits.items()}
        sources.append(
            CorpusSource(
                name=f"src-{language}",
                language=language,
                train=[f"src-{language}/train.jsonl.zst"],
                heldout=[f"src-{language}/heldout.jsonl.zst"],
                train_documents=len(splits["train"]),
                train_bytes=size["train"],
                heldout_documents=len(splits["heldout"]),
                heldout_bytes=size["heldout"],
            )
        )
    CorpusIndex(sources=sources).save(directory)
    return directory


def mistral_base(directory: Path) -> Path:
    """The genuine Mistral-7B-v0.1 tokenizer as a Hugging Face directory."""
    directory.mkdir(parents=True, exist_ok=True)
    write_hf_tokenizer(mistral_v1_model(), directory)
    return directory


def processor(proto: object) -> sentencepiece.SentencePieceProcessor:
    """A processor of a protobuf model."""
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())  # type: ignore[attr-defined]


def mistral_proto():
    """The genuine Mistral-7B-v0.1 model."""
    return load_sentencepiece_proto(mistral_v1_model())


def train_model(lines: list[str], path: Path, **options: object) -> Path:
    """A small SentencePiece model."""
    model = io.BytesIO()
    settings = {"vocab_size": 400, "hard_vocab_limit": False, "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(settings | options)
    )
    path.write_bytes(model.getvalue())
    return path
