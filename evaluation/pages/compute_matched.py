"""What training cost, in tokens, bytes of text and FLOPs, and what was reached for equal cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.evaluation.pages.artefacts import Artefacts

AXES = ("bytes", "tokens", "flops")
Curve = Sequence[Mapping[str, float | None]]


def bytes_per_token(artefacts: Artefacts) -> float | None:
    """Bytes of text behind a token of the training mixture."""
    if artefacts.mixture is None:
        return None
    total = sum(
        source["share"] * source["bytes"] / source["tokens"]
        for source in artefacts.mixture["sources"]
        if source["tokens"]
    )
    return float(total) or None


def flops_per_token(artefacts: Artefacts) -> float | None:
    """Forward and backward FLOPs per token, attention counted causal, as training logged them."""
    for line in reversed(artefacts.metrics):
        rate = line.get("throughput/tokens_per_second")
        work = line.get("throughput/tflops_causal_attention")
        if rate and work:
            return float(work) * 1e12 / float(rate)
    return None


def facts(artefacts: Artefacts) -> dict[str, Any]:
    """Size and cost of a run; None for what is not known."""
    tokens = artefacts.consumed_tokens
    per_byte, per_flop = bytes_per_token(artefacts), flops_per_token(artefacts)
    speed = sorted(value for _, value in artefacts.series("throughput/tokens_per_second"))
    return {
        "vocabulary_size": (artefacts.mixture or {}).get("vocabulary_size"),
        "new_pieces": artefacts.added_rows,
        "trained_tokens": tokens,
        "trained_bytes": tokens * per_byte if tokens and per_byte else None,
        "trained_flops": tokens * per_flop if tokens and per_flop else None,
        "tokens_per_second": speed[len(speed) // 2] if speed else None,
    }


def curves(artefacts: Artefacts) -> dict[str, list[dict[str, float | None]]]:
    """Held-out bits per byte per language along training, over all three measures of cost."""
    per_byte, per_flop = bytes_per_token(artefacts), flops_per_token(artefacts)
    return {
        language: [
            {
                "tokens": tokens,
                "bytes": None if per_byte is None else tokens * per_byte,
                "flops": None if per_flop is None else tokens * per_flop,
                "bits_per_byte": value,
            }
            for tokens, value in artefacts.series(f"validation/bits_per_byte/{language}")
        ]
        for language in artefacts.validated_languages()
    }


def compute_matched(runs: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, Any]]:
    """What every run had reached when the one that ended first ended.

    Args:
        runs: by run and language, what :func:`curves` gave.

    Returns:
        By axis (``bytes``, ``tokens``, ``flops``): ``at``, the cost where the shortest curve ends, and
        ``bits_per_byte`` by language and run, linear between two validations. An axis that a run does not
        know, and a language that not every run has validated before and at that point, is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for axis in AXES:
        points = {
            name: {language: _points(curve, axis) for language, curve in languages.items()}
            for name, languages in runs.items()
        }
        ends = [
            max((curve[-1][0] for curve in languages.values() if curve), default=None)
            for languages in points.values()
        ]
        known = [end for end in ends if end is not None]
        if not known or len(known) < len(ends):
            continue
        at = min(known)
        values = {}
        for language in next(iter(points.values())):
            reached = {name: _value(languages.get(language, []), at) for name, languages in points.items()}
            if None not in reached.values():
                values[language] = reached
        if values:
            found[axis] = {"at": at, "bits_per_byte": values}
    return found


def _points(curve: Curve, axis: str) -> list[tuple[float, float]]:
    pairs = [(point[axis], point["bits_per_byte"]) for point in curve]
    return [(cost, value) for cost, value in pairs if cost is not None and value is not None]


def _value(curve: Sequence[tuple[float, float]], at: float) -> float | None:
    """Height of a curve, linear between its points; None outside of them.

    >>> _value([(0.0, 4.0), (10.0, 2.0)], 5.0)
    3.0
    """
    # Sums of floats along two paths to the same number may differ in the last digit.
    slack = 1e-9 * at
    if not curve or not curve[0][0] - slack <= at <= curve[-1][0] + slack:
        return None
    right = min(bisect_left([cost for cost, _ in curve], at), len(curve) - 1)
    if right == 0:
        return curve[0][1]
    (start, before), (end, after) = curve[right - 1], curve[right]
    return before + (after - before) * min((at - start) / (end - start), 1.0)
