"""A histogram of magnitudes that grows with its data and costs the same for any number of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 4096
# A top below this has a reciprocal beyond float32: values that small are counted as zeros.
_SMALLEST = float(np.finfo(np.float32).tiny) * BINS


@dataclass(slots=True)
class MagnitudeHistogram:
    """Counts of |x| in ``BINS`` bins of equal width from 0 to ``top``, a power of two.

    A value beyond ``top`` doubles it, pairs of bins becoming one. largest: the exact maximum.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    top: float = 0.0
    largest: float = 0.0

    def add(self, magnitudes: np.ndarray) -> None:
        """Count values >= 0 of any shape, float32. NaN and infinity are the caller's to refuse."""
        largest = float(magnitudes.max(initial=0.0))
        self.largest = max(self.largest, largest)
        self._reach(largest)
        if self.top == 0:  # zeros alone so far
            self.counts[0] += magnitudes.size
            return
        places = (magnitudes.reshape(-1) * np.float32(BINS / self.top)).astype(np.int32)
        np.minimum(places, BINS - 1, out=places)
        self.counts += np.bincount(places, minlength=BINS)

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64."""
        return (np.arange(BINS) + 0.5) * (self.top / BINS)

    def _reach(self, largest: float) -> None:
        if largest <= _SMALLEST or largest <= self.top:
            return
        if self.top == 0:
            self.top = 2.0 ** math.ceil(math.log2(largest))
            return
        while self.top < largest:
            self.counts = np.concatenate(
                (self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64))
            )
            self.top *= 2
