"""A Hugging Face tokenizer directory from a SentencePiece BPE model, with the same segmentation.

transformers 5 loading a bare ``tokenizer.model`` through ``AutoTokenizer`` loses the dummy prefix, so the
fast tokenizer is written here piece by piece and declared as the plain ``PreTrainedTokenizerFast``, which
loads ``tokenizer.json`` as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tsugiki.experiment.errors import ConfigError, DataError, EnvironmentError_
from tsugiki.experiment.files import write_json_atomically
from tsugiki.experiment.text.tokenizer_settings import merge_pair, portable_settings, written_merges

SPACE = "▁"
"""U+2581: how SentencePiece writes a space."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MODEL_BPE = 2
_COPIED_FILES = ("special_tokens_map.json", "chat_template.jinja")


def mistral_v1_model() -> Path:
    """The genuine SentencePiece model of Mistral-7B-v0.1, which ships in the package ``mistral-common``.

    Raises:
        EnvironmentError_: the package is not installed or no longer carries the file.
    """
    try:
        import mistral_common
    except ImportError as error:
        raise EnvironmentError_(
            "the genuine Mistral tokenizer ships in mistral-common, which is not installed",
            fix="pip install mistral-common",
        ) from error
    path = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    if not path.is_file():
        raise EnvironmentError_(
            "mistral-common carries no tokenizer.model.v1",
            where=path.parent,
            fix="pip install 'mistral-common>=1.8'",
        )
    return path


def load_sentencepiece_proto(path: Path) -> Any:
    """Parse a SentencePiece model into its protobuf ``ModelProto``.

    Raises:
        DataError: the file is missing or is not a SentencePiece model.
        ConfigError: the model is not BPE (Unigram, word or character).
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            "no SentencePiece model here", where=path, expected="a tokenizer.model file"
        ) from None
    except (OSError, DecodeError) as error:
        raise DataError(
            "corrupt SentencePiece model",
            where=path,
            got=error,
            fix="download the file again (a Git LFS pointer or an HTML error page is a frequent cause)",
        ) from error
    if not proto.pieces:
        raise DataError(
            "corrupt SentencePiece model",
            where=path,
            got="no pieces",
            fix="download the file again (a Git LFS pointer or an HTML error page is a frequent cause)",
        )
    if proto.trainer_spec.model_type != _MODEL_BPE:
        kind = {1: "Unigram", 3: "word", 4: "character"}.get(proto.trainer_spec.model_type, "unknown")
        raise ConfigError(
            f"the base tokenizer is a {kind} model, which cannot be extended by merges",
            where=path,
            got=kind,
            expected="a BPE model (Llama 2, Mistral, Yi, Gemma)",
            fix="a Unigram model chooses by probability, so an added piece changes the segmentation of old "
            "text whatever its score: keep the vocabulary (tokenizer.extend=null) or take a BPE base",
        )
    return proto


def write_hf_tokenizer(model_path: Path, output_dir: Path, *, inherit_from: Path | None = None) -> None:
    """Write ``tokenizer.model``, ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        model_path: a SentencePiece BPE model.
        output_dir: existing directory; files of those names are replaced.
        inherit_from: Hugging Face directory of the base model, whose special tokens, chat template,
            post-processor, normaliser and merges are kept (of the merges those that can happen, if pieces
            are added); its ids must be the first ids of the model.

    Raises:
        DataError: the model is missing or corrupt, or ``inherit_from`` has other ids.
        ConfigError: the model is not BPE.
    """
    proto = load_sentencepiece_proto(model_path)
    base = read_json(inherit_from / "tokenizer.json") if inherit_from is not None else None
    document = tokenizer_document(proto) if base is None else _extend_document(base, proto, str(inherit_from))
    config = tokenizer_config(proto, None if inherit_from is None else inherit_from)
    content = model_path.read_bytes()
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "tokenizer.model").write_bytes(content)
    write_json_atomically(output_dir / "tokenizer.json", document)
    write_json_atomically(output_dir / "tokenizer_config.json", config)
    if inherit_from is not None:
        for name in _COPIED_FILES:
            source = inherit_from / name
            if source.is_file() and source.resolve() != (output_dir / name).resolve():
                (output_dir / name).write_bytes(source.read_bytes())


def merges_of(pieces: Iterable[tuple[str, float]], vocabulary: Container[str]) -> list[tuple[str, str]]:
    """The merges that reproduce SentencePiece's segmentation, best first.

    SentencePiece joins any two neighbours whose concatenation is a piece, so a piece stands for one merge
    per split into two pieces of the vocabulary. Of neighbours that score alike it joins the leftmost first
    (``SymbolPairComparator`` in its bpe_model.cc), which a list of merges cannot say in general. What ties in
    published models are runs of one character (all pieces of spaces score -1e9 in Llama 2 and Mistral): there the
    leftmost grows to its full length before the next begins, which is the longest left part first. transformers'
    converter orders merges in the same way.

    Args:
        pieces: pieces and scores.
        vocabulary: surfaces of everything that may be a part of a merge (no control or byte pieces).
    """
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score in pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, -len(left), -len(right), left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]


def effective_merges(merges: Iterable[Sequence[str]]) -> list[list[str]]:
    """The merges that can ever happen, in the same order: at most one for each piece.

    A span of text becomes one token only if no merge across its two ends came first. So what happened within
    it is what happens when the span is encoded alone, and every token is always joined from the same two
    parts. The other merges of a piece, about half of all, only fill the queue and the hash table.

    Args:
        merges: left and right parts, best first.
    """
    pairs = [(left, right) for left, right in merges]
    rank = {pair: index for index, pair in enumerate(pairs)}
    happen = {_last_merge(piece, rank) for piece in {left + right for left, right in pairs}}
    return [list(pair) for pair in pairs if pair in happen]


def _last_merge(piece: str, rank: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """The merge that completes a piece when it is encoded alone; None if it is not reached."""
    parts = list(piece)
    while len(parts) > 2:
        ranks = [rank.get(pair, len(rank)) for pair in pairwise(parts)]
        best = min(ranks)
        if best == len(rank):
            return None
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1])


def mergeable(proto: Any) -> dict[str, int]:
    """Ids of the pieces that text can be merged into: normal ones, by surface."""
    return {piece.piece: index for index, piece in enumerate(proto.pieces) if piece.type == _NORMAL}


def tokenizer_document(proto: Any) -> dict[str, Any]:
    """The content of ``tokenizer.json`` for a SentencePiece BPE model."""
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    parts = mergeable(proto)
    merges = merges_of(((p.piece, p.score) for p in proto.pieces if p.type == _NORMAL), parts)
    unknown = next((p.piece for p in proto.pieces if p.type == _UNKNOWN), None)
    prefix = bool(proto.normalizer_spec.add_dummy_prefix)
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto),
        "normalizer": _normalizer(proto),
        "pre_tokenizer": None,
        "post_processor": _post_processor(proto),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(p.type == _BYTE for p in proto.pieces),
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": written_merges(merges),
        },
    }


def _normalizer(proto: Any) -> dict[str, Any]:
    import base64

    spec = proto.normalizer_spec
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        encoded = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if spec.remove_extra_whitespaces:
        # The library's own Strip would take tabs and line ends too.
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _added_tokens(proto: Any) -> list[dict[str, Any]]:
    # SentencePiece looks for user-defined pieces in normalised text (Gemma's runs of spaces are such pieces). The
    # library would normalise them too, so it can follow only where normalising leaves them as they are.
    spec = proto.normalizer_spec
    normalised = not (spec.add_dummy_prefix or spec.precompiled_charsmap or spec.remove_extra_whitespaces)
    return [
        {
            "id": index,
            "content": piece.piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": normalised and piece.type == _USER_DEFINED,
            "special": piece.type in (_UNKNOWN, _CONTROL),
        }
        for index, piece in enumerate(proto.pieces)
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _post_processor(proto: Any) -> dict[str, Any] | None:
    bos = proto.trainer_spec.bos_id
    if bos < 0 or bos >= len(proto.pieces):
        return None
    token = proto.pieces[bos].piece
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": token, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
    }


def tokenizer_config(proto: Any, inherit_from: Path | None) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``, on top of the base's where there is one."""

    def surface(index: int) -> str | None:
        return proto.pieces[index].piece if 0 <= index < len(proto.pieces) else None

    spec = proto.trainer_spec
    config: dict[str, Any] = {
        "add_bos_token": surface(spec.bos_id) is not None,
        "add_eos_token": False,
        "bos_token": surface(spec.bos_id),
        "eos_token": surface(spec.eos_id),
        "unk_token": surface(spec.unk_id),
        "pad_token": surface(spec.pad_id),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
        "legacy": True,
    }
    if inherit_from is not None:
        config.update(read_json(inherit_from / "tokenizer_config.json") or {})
    return portable_settings(config, source_class="LlamaTokenizer")


def _extend_document(base: dict[str, Any], proto: Any, where: str) -> dict[str, Any]:
    """The base's ``tokenizer.json`` with the pieces that its vocabulary lacks appended."""
    model = dict(base.get("model") or {})
    old: dict[str, int] = dict(model.get("vocab") or {})
    added = {token["content"]: token["id"] for token in base.get("added_tokens") or []}
    if model.get("type") != "BPE":
        raise ConfigError(
            f"the base tokenizer.json is a {model.get('type')} model", where=where, expected="BPE"
        )
    for piece, index in (*old.items(), *added.items()):
        if index >= len(proto.pieces) or proto.pieces[index].piece != piece:
            found = proto.pieces[index].piece if index < len(proto.pieces) else "nothing"
            raise DataError(
                "tokenizer.json and tokenizer.model of the base disagree",
                where=where,
                got=f"id {index} is {piece!r} in tokenizer.json and {found!r} in tokenizer.model",
                fix="take both files from the same release of the base model",
            )
    fresh = [
        (index, piece)
        for index, piece in enumerate(proto.pieces)
        if piece.piece not in old and piece.piece not in added
    ]
    # Added tokens too: one that the vocabulary lacks would be numbered anew, behind the new pieces.
    old.update((piece.piece, index) for index, piece in enumerate(proto.pieces))
    parts = mergeable(proto)
    new_merges = merges_of(((p.piece, p.score) for _, p in fresh if p.type == _NORMAL), parts)
    merges = [merge_pair(merge) for merge in model.get("merges") or []]
    model["vocab"] = old
    merges += [list(merge) for merge in new_merges]
    # With dropout, merges that never happen otherwise do.
    kept = merges if model.get("dropout") or not new_merges else effective_merges(merges)
    model["merges"] = written_merges(kept)
    return {**base, "model": model}


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of one of a tokenizer's JSON files; None where there is no such file.

    Raises:
        DataError: it is not a JSON object.
    """
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("unreadable tokenizer file", where=path, got=error) from error
    if not isinstance(value, dict):
        raise DataError(
            "unreadable tokenizer file", where=path, got=type(value).__name__, expected="a mapping"
        )
    return value
