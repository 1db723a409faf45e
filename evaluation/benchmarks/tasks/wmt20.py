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


def corpus_bleu(pairs: Sequence[tuple[str, str]], tokenizer: str) -> float:
    """BLEU of (reference, prediction) pairs, between 0 and 1, by sacrebleu."""
    import sacrebleu

    references, predictions = zip(*pairs, strict=True)
    score: float = sacrebleu.corpus_bleu(list(predictions), [list(references)], tokenize=tokenizer).score
    return score / 100
