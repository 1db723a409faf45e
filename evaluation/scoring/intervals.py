"""Confidence intervals by resampling documents with replacement (percentile bootstrap).

The document is the unit: tokens of one document are not independent, so intervals over tokens would be
far too narrow. Differences between models resample the same documents for both.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsugiki.evaluation.scoring.bits_per_byte import Score

if TYPE_CHECKING:
    import numpy as np

Interval = tuple[float, float]


class Resampler:
    """Draws of documents, the same for every model that is compared.

    Args:
        documents: number of documents.
        resamples: number of draws.
        confidence: coverage, e.g. 0.95.
        seed: seed of the experiment.
        name: tells apart the draws of different languages.
    """

    def __init__(self, documents: int, resamples: int, confidence: float, seed: int, name: str) -> None:
        import numpy as np

        self._usable = documents > 1 and resamples > 0
        self._tails = [50 * (1 - confidence), 50 * (1 + confidence)]
        if self._usable:
            random = np.random.default_rng([seed, zlib.crc32(name.encode())])
            even = np.full(documents, 1 / documents)
            # counts[r, d]: how often document d is in draw r
            self._counts = random.multinomial(documents, even, size=resamples).astype(np.float64)

    @property
    def usable(self) -> bool:
        """Whether there is anything to draw: two documents or more."""
        return self._usable

    def rates(self, scores: Sequence[Score]) -> np.ndarray:
        """Bits per byte in each draw, [resamples]."""
        import numpy as np

        nats = np.array([score.nats for score in scores])
        sizes = np.array([score.bytes for score in scores], dtype=np.float64)
        rates: np.ndarray = (self._counts @ nats) / (self._counts @ sizes) / math.log(2)
        return rates

    def bits_per_byte(self, scores: Sequence[Score]) -> Interval | None:
        """Interval of bits per byte; None with fewer than two documents."""
        return self.interval(self.rates(scores)) if self._usable else None

    def difference(self, before: Sequence[Score], after: Sequence[Score]) -> Interval | None:
        """Interval of ``after - before`` in bits per byte on the same documents."""
        return self.interval(self.rates(after) - self.rates(before)) if self._usable else None

    def interval(self, values: np.ndarray) -> Interval:
        """Interval of any quantity that was computed in each draw."""
        import numpy as np

        low, high = np.percentile(values, self._tails)
        return float(low), float(high)
