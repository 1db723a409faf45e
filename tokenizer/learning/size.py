"""How many pieces: the measured curve of compression against size, and the size that costs least."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsugiki.experiment.model.family import family_names
from tsugiki.tokenizer.base.base import BaseTokenizer
from tsugiki.tokenizer.base.merge import merge_sentencepiece
from tsugiki.tokenizer.config import ExtendConfig
from tsugiki.tokenizer.learning.bpe_trainer import LearnedPiece
from tsugiki.tokenizer.learning.byte_level import merged_document
from tsugiki.tokenizer.learning.cost import MISTRAL_7B, ModelShape, shape_of

Curve = tuple[list[int], dict[str, list[float]]]
"""Sizes in pieces, and tokens relative to the base at each of them by language."""

_LINES = 2000
_SMALLEST = 128


def held_out_curve(
    base: BaseTokenizer, pieces: Sequence[LearnedPiece], texts: Mapping[str, Sequence[str]], points: int = 12
) -> Curve:
    """Tokens of held-out text relative to the base when only the first pieces are added.

    Pieces come in merge order, and each is made of earlier ones, so a prefix of them is a vocabulary too.
    Sizes are spaced evenly in their logarithm, in which the curve is nearly straight.
    """
    least = min(len(pieces), _SMALLEST)
    sizes = [0, *sorted({round(size) for size in np.geomspace(least, len(pieces), points - 1).tolist()})]
    sample = {language: list(lines[:_LINES]) for language, lines in texts.items()}
    tokens: dict[str, list[int]] = {language: [] for language in sample}
    for size in sizes:
        count = _counter(base, pieces[:size])
        for language, lines in sample.items():
            tokens[language].append(count(lines))
    return sizes, {
        language: [value / max(found[0], 1) for value in found] for language, found in tokens.items()
    }


def _counter(base: BaseTokenizer, pieces: Sequence[LearnedPiece]) -> Any:
    if base.kind == "sentencepiece":
        import sentencepiece

        proto = merge_sentencepiece(base, [item.piece for item in pieces], base.size + len(pieces))
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        return lambda lines: sum(map(len, processor.encode(lines, out_type=int)))
    from tokenizers import Tokenizer

    document = merged_document(base, pieces, base.size + len(pieces))
    tokenizer = Tokenizer.from_str(json.dumps(document))
    return lambda lines: sum(
        len(item.ids) for item in tokenizer.encode_batch_fast(lines, add_special_tokens=False)
    )


def best_size(curve: Curve, base: BaseTokenizer, extend: ExtendConfig) -> int:
    """The size at which a further row costs as much as it saves.

    Cost at k pieces is (tokens) x (FLOPs per token) x (parameters), each relative to the base: tokens falls
    with k by the measured curve, FLOPs and parameters rise with every row. The logarithm of the tokens is
    interpolated over that of k, and the minimum taken within ``auto.minimum`` and ``auto.maximum``.
    """
    sizes, ratios = curve
    shape = model_shape(base, extend)
    total = sum(extend.languages[language] for language in ratios)
    log_tokens = sum(
        extend.languages[language] / total * np.log(np.array(found)) for language, found in ratios.items()
    )
    grid = np.arange(min(extend.auto.minimum, sizes[-1]), min(extend.auto.maximum, sizes[-1]) + 1)
    rows = base.size + grid
    body, hidden = shape.body_parameters, shape.hidden_size
    cost = (
        np.interp(np.log(grid + 1), np.log(np.array(sizes) + 1), log_tokens)
        + np.log(body + rows * hidden)
        + np.log(body + shape.matrices * rows * hidden)
    )
    return int(grid[int(cost.argmin())])


def model_shape(base: BaseTokenizer, extend: ExtendConfig) -> ModelShape:
    """Shape of the model to be trained: configured, or read from the base, or Mistral-7B's.

    Raises:
        ConfigError: the base's model family is not known, and the shape is not configured.
    """
    file = base.directory / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    configured = extend.auto.hidden_size is not None and extend.auto.parameters is not None
    known = "hidden_size" in config and not (
        configured and str(config.get("model_type")).lower() not in family_names()
    )
    found = shape_of(config, file) if known else MISTRAL_7B
    return ModelShape(
        hidden_size=extend.auto.hidden_size or found.hidden_size,
        body_parameters=extend.auto.parameters or found.body_parameters,
        tied=found.tied,
        context_tokens=found.context_tokens,
    )
