"""Selecting pieces and merging them into a SentencePiece BPE model.

SentencePiece's BPE joins, again and again, the two neighbours whose concatenation is the piece of the best
score. Added pieces have unique scores below every base piece. So the base finishes its own segmentation
first, and an added piece can change a text only if it is the concatenation of two neighbours of that
segmentation: that is what candidates are tested for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import DataError
from tsugiki.experiment.text.hf_tokenizer import SPACE
from tsugiki.tokenizer.base.base import NORMAL, UNUSED, USER_DEFINED, BaseTokenizer, exact_processor

RESERVED = "<reserved_{}>"
_LINE_START = 40


def neighbour_concatenations(
    processor: Any, texts: Iterable[str], is_foreign: Callable[[str], bool]
) -> set[str]:
    """Every concatenation of two neighbouring tokens in the base segmentation of protected text.

    A piece among them would change the segmentation of that text; a piece that is not, cannot.

    Args:
        processor: exact SentencePiece processor of the base.
        texts: protected text.
        is_foreign: whether a string holds characters of a target script, where change is the purpose.
    """
    forbidden: set[str] = set()
    for chunk in _chunks(_contexts(texts), 2000):
        for tokens in processor.encode(chunk, out_type=str):
            forbidden.update(map(operator.add, tokens, tokens[1:]))
    return {item for item in forbidden if not is_foreign(item)}


def _contexts(texts: Iterable[str]) -> Iterator[str]:
    """A text as a whole, and the beginning of each line as if a text began there, with its dummy prefix."""
    for text in texts:
        yield " " + text
        for line in text.split("\n"):
            if line:
                yield " " + line[:_LINE_START]


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def close_under_merges(candidates: Sequence[str], known: set[str]) -> list[str]:
    """The candidates, in order, that can be reached by joining two pieces that exist by then.

    A piece longer than one character is kept only if some split of it consists of pieces known before it;
    a single character is always reachable.

    Args:
        candidates: pieces, best first.
        known: surfaces of the base pieces that merges can use.
    """
    have = set(known)
    kept: list[str] = []
    for piece in candidates:
        if piece in have:
            continue
        if len(piece) == 1 or any(
            piece[:cut] in have and piece[cut:] in have for cut in range(1, len(piece))
        ):
            have.add(piece)
            kept.append(piece)
    return kept


def unreachable(processor: Any, pieces: Sequence[str], first_id: int) -> list[str]:
    """The pieces that do not come back as one token when their own surface is encoded.

    Args:
        processor: exact processor of the merged model.
        pieces: added pieces in id order.
        first_id: id of the first.
    """
    encoded = processor.encode([piece.replace(SPACE, " ") for piece in pieces], out_type=int)
    return [
        piece
        for offset, (piece, ids) in enumerate(zip(pieces, encoded, strict=True))
        if ids != [first_id + offset]
    ]


def select_reachable(base: BaseTokenizer, candidates: Sequence[str], count: int) -> list[str]:
    """The first ``count`` candidates of which every one is really produced by the merged model.

    Closure alone is not enough: the base's merges come first and may cut a piece across its own parts. So
    the merged model is built and asked, what does not come back is dropped, and the freed places are filled.

    Args:
        base: the base.
        candidates: pieces, best first, more than wanted.
        count: pieces wanted.
    """
    known = {piece.piece for piece in base.proto.pieces if piece.type == NORMAL}
    pool = list(candidates)
    while True:
        pieces = close_under_merges(pool, known)[:count]
        proto = merge_sentencepiece(base, pieces, base.size + len(pieces))
        missing = set(unreachable(exact_processor(proto), pieces, base.size))
        if not missing:
            return pieces
        pool = [piece for piece in pool if piece not in missing]


def padded_size(size: int, multiple_of: int, tensor_parallel: int) -> int:
    """The vocabulary size rounded up to a multiple of ``multiple_of`` and of 8 x tensor parallel size."""
    import math

    multiple = math.lcm(multiple_of, 8 * tensor_parallel)
    return -(-size // multiple) * multiple


def scores_below(proto: Any, count: int) -> list[float]:
    """Unique descending scores, exact in float32, strictly below every normal piece of a model.

    Llama-like models give runs of spaces a score of -1e9, where float32 has steps of 64; counting down by
    one there would make every added piece tie.
    """
    import numpy as np

    lowest = min((piece.score for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)), default=0.0)
    score = np.float32(min(lowest, 0.0))
    scores: list[float] = []
    for _ in range(count):
        lower = np.float32(np.floor(score - np.float32(1)))
        if lower >= score:
            lower = np.nextafter(score, np.float32(-np.inf), dtype=np.float32)
        score = lower
        scores.append(float(score))
    return scores


def merge_sentencepiece(base: BaseTokenizer, pieces: Sequence[str], final_size: int) -> Any:
    """The base model with pieces and reserved rows appended; base pieces, ids and normaliser untouched.

    Args:
        base: the base.
        pieces: added pieces in merge order.
        final_size: rows of the final vocabulary.

    Returns:
        A ``ModelProto``.

    Raises:
        DataError: the base has added tokens whose ids leave gaps.
    """
    proto = type(base.proto)()
    proto.CopyFrom(base.proto)
    _append_added_tokens(proto, base)
    for piece, score in zip(pieces, scores_below(proto, len(pieces)), strict=True):
        proto.pieces.add(piece=piece, score=score, type=NORMAL)
    taken = {piece.piece for piece in proto.pieces}
    number = 0
    while len(proto.pieces) < final_size:
        name = RESERVED.format(number)
        number += 1
        if name not in taken:
            proto.pieces.add(piece=name, score=0.0, type=UNUSED)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto


def _append_added_tokens(proto: Any, base: BaseTokenizer) -> None:
    """Tokens that only ``tokenizer.json`` has keep their ids: they become user-defined pieces."""
    extra = {
        int(token["id"]): str(token["content"])
        for token in (base.document or {}).get("added_tokens") or []
        if int(token["id"]) >= len(proto.pieces)
    }
    for index in range(len(proto.pieces), base.size):
        if index not in extra:
            raise DataError(
                "the ids of the base tokenizer have a gap",
                where=base.directory / "tokenizer.json",
                got=f"no token with id {index}",
                expected=f"ids 0 to {base.size - 1}",
                fix="add a placeholder token with that id to added_tokens",
            )
        proto.pieces.add(piece=extra[index], score=0.0, type=USER_DEFINED)


def write_proto(proto: Any, path: Path) -> None:
    """Serialise a model."""
    path.write_bytes(proto.SerializeToString())
