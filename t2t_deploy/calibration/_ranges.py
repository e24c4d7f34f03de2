"""The range that an 8-bit activation gets, from the histogram of its magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np

from t2t_deploy.calibration._observe import BINS, MagnitudeHistogram

INT8_LEVELS = 127
PERCENTILE = 99.99
# Ranges tried by mse, as shares of the largest magnitude.
_SHARES = np.linspace(0.2, 1.0, 161)
# Steps between the ranges tried by entropy, in bins.
_ENTROPY_STRIDE = 16


class RangeMethod(str, Enum):
    """How a range is chosen; each is symmetric around zero."""

    MINMAX = "minmax"
    """The largest magnitude seen: nothing is clipped."""
    PERCENTILE = "percentile"
    """The magnitude that 99.99 % of the values do not exceed."""
    ENTROPY = "entropy"
    """The range that keeps most of the distribution (Kullback-Leibler divergence)."""
    MSE = "mse"
    """The range of the smallest mean squared error, rounding and clipping together."""


def range_of(histogram: MagnitudeHistogram, method: RangeMethod) -> float:
    """The magnitude that the largest code stands for; next to nothing where all was zero."""
    if histogram.top == 0:
        return max(histogram.largest, float(np.finfo(np.float32).tiny))
    chosen = _METHODS[method](histogram)
    return min(chosen, histogram.largest)


def _minmax(histogram: MagnitudeHistogram) -> float:
    return histogram.largest


def _percentile(histogram: MagnitudeHistogram) -> float:
    cumulative = np.cumsum(histogram.counts)
    place = int(np.searchsorted(cumulative, cumulative[-1] * (PERCENTILE / 100)))
    return float((place + 1) * histogram.top / BINS)


def _mse(histogram: MagnitudeHistogram) -> float:
    seen = histogram.counts > 0
    values, counts = histogram.centres[seen], histogram.counts[seen]
    ranges = _SHARES * histogram.largest
    errors = [_squared_error(values, counts, limit) for limit in ranges]
    return float(ranges[int(np.argmin(errors))])


def _squared_error(values: np.ndarray, counts: np.ndarray, limit: float) -> float:
    step = limit / INT8_LEVELS
    rounded = np.minimum(np.round(values / step), INT8_LEVELS) * step
    return float((counts * (values - rounded) ** 2).sum())


def _entropy(histogram: MagnitudeHistogram) -> float:
    """Smallest divergence of the clipped distribution from its 128-level version.

    Source: S. Migacz, 8-bit Inference with TensorRT (GTC 2017).
    """
    counts = histogram.counts.astype(np.float64)
    levels = INT8_LEVELS + 1
    used = int(np.flatnonzero(counts)[-1]) + 1
    stops = [*range(levels, used, _ENTROPY_STRIDE), max(used, levels)]
    divergences = [_divergence(counts, stop, levels) for stop in stops]
    return float(stops[int(np.argmin(divergences))] * histogram.top / BINS)


def _divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    """KL(P || Q): P the first ``stop`` bins, what lies beyond in the last; Q those bins in levels.

    Each level's mass is spread over those of its bins that are not empty.
    """
    kept = counts[:stop]
    clipped = kept.copy()
    clipped[-1] += counts[stop:].sum()
    level = np.arange(stop) * levels // stop
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=levels)
    spread = np.bincount(level, weights=filled, minlength=levels)
    share = np.divide(mass, spread, out=np.zeros(levels), where=spread > 0)
    coded = np.where(filled, share[level], 0.0)
    p, q = clipped / clipped.sum(), coded / max(coded.sum(), 1.0)
    known = p > 0
    floor = 1e-12  # where clipped mass has no bin of its own
    return float((p[known] * np.log(p[known] / np.maximum(q[known], floor))).sum())


_METHODS: dict[RangeMethod, Callable[[MagnitudeHistogram], float]] = {
    RangeMethod.MINMAX: _minmax,
    RangeMethod.PERCENTILE: _percentile,
    RangeMethod.ENTROPY: _entropy,
    RangeMethod.MSE: _mse,
}
