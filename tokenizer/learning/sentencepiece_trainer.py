"""Candidates from an independent SentencePiece BPE model: the usual recipe of vocabulary extension."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from tsugiki.experiment.errors import ConfigError, DataError
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import NORMAL

PRETOKENISATION_DELIMITER = "\u0001"
_MAXIMUM_LINE_BYTES = 4192


def train_candidates(
    lines: Iterator[str],
    vocabulary_size: int,
    base_spec: Mapping[str, Any],
    *,
    threads: int,
    maximum_piece_characters: int,
) -> list[str]:
    """Train a SentencePiece BPE model and return its pieces in merge order, single characters last.

    Args:
        lines: training text; pieces do not cross :data:`PRETOKENISATION_DELIMITER`.
        vocabulary_size: size of the trained model.
        base_spec: ``split_digits`` and the like of the base, followed here.
        threads: trainer threads.
        maximum_piece_characters: longest piece.

    Raises:
        DataError: the text is too small or empty for the trainer.
        ConfigError: the size does not hold the characters of the text.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_bounded(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=0.99995,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            max_sentencepiece_length=maximum_piece_characters,
            pretokenization_delimiter=PRETOKENISATION_DELIMITER,
            num_threads=threads,
            minloglevel=2,
            max_sentence_length=_MAXIMUM_LINE_BYTES,
            **base_spec,
        )
    except RuntimeError as error:
        reason = str(error).rsplit("] ", 1)[-1].strip()
        if "required_chars" in str(error):
            raise ConfigError(
                "size is smaller than the characters that the sample needs",
                where="tokenizer.extend.size",
                got=f"{vocabulary_size} candidates; {reason}",
                fix="raise size, or use method: continued, in which characters compete with merges",
            ) from error
        raise DataError(
            "SentencePiece could not train on the sample",
            where="tokenizer.extend",
            got=reason or error,
            fix="raise sample_bytes or lower size: the sample must hold more distinct pieces than asked for",
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(processor.serialized_model_proto())
    # The trainer writes merges first and the alphabet after them.
    return [piece.piece for piece in proto.pieces if piece.type == NORMAL and piece.piece != SPACE]


def _bounded(lines: Iterator[str]) -> Iterator[str]:
    """Lines no longer than the trainer takes; it silently skips longer ones."""
    for line in lines:
        while len(line.encode()) > _MAXIMUM_LINE_BYTES - 8:
            head = line[: (_MAXIMUM_LINE_BYTES - 8) // 4]
            yield head
            line = line[len(head) :]
        if line:
            yield line
