"""BLEU, a score of all answers together."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.evaluation.benchmarks.scores import SCORES


@SCORES.register("bleu", kind="corpus")
def bleu(pairs: Sequence[tuple[str, str]]) -> float:
    """BLEU of (reference, prediction) pairs, words cut as WMT does (13a)."""
    return corpus_bleu(pairs, "13a")


@SCORES.register(
    "bleu_ja", kind="corpus", requires=("MeCab", "BLEU into Japanese", "pip install 'sacrebleu[ja]'")
)
def bleu_ja(pairs: Sequence[tuple[str, str]]) -> float:
    """BLEU of (reference, prediction) pairs, words cut by MeCab."""
    return corpus_bleu(pairs, "ja-mecab")


@SCORES.register(
    "bleu_nagisa",
    kind="corpus",
    requires=("nagisa", "BLEU over nagisa's words", "pip install 'tsugiki[eval]'"),
)
def bleu_nagisa(pairs: Sequence[tuple[str, str]]) -> float:
    """BLEU of (reference, prediction) pairs, both cut into nagisa's words first, then as WMT does (13a).

    Source of the facts: ``lm_eval/tasks/translation.py`` and ``metrics.py`` of Stability-AI/lm-evaluation-harness at
    9b42d41.
    """
    import nagisa

    cut = [tuple(" ".join(nagisa.tagging(text.strip()).words) for text in pair) for pair in pairs]
    return corpus_bleu([(reference, prediction) for reference, prediction in cut], "13a")


def corpus_bleu(pairs: Sequence[tuple[str, str]], tokenizer: str) -> float:
    """BLEU of (reference, prediction) pairs, between 0 and 1, by sacrebleu."""
    import sacrebleu

    references, predictions = zip(*pairs, strict=True)
    score: float = sacrebleu.corpus_bleu(list(predictions), [list(references)], tokenize=tokenizer).score
    return score / 100
