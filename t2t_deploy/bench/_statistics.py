"""From raw samples to the figures that are reported; pure functions over numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_RESAMPLES = 10_000
UNSTABLE_SPREAD = 0.10
"""Relative spread of the round medians above which a figure is called unstable."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles, mean and standard deviation of one call, and the samples themselves, in ms."""

    p50: float
    p90: float
    p99: float
    mean: float
    stdev: float
    samples: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster than eager, with its 95 % interval over rounds."""

    ratio: float
    low: float
    high: float


def latency_of(samples_ms: Sequence[float]) -> Latency:
    """Summarise raw samples.

    samples_ms: at least one duration, ms. Percentiles interpolate linearly; the standard deviation
    is the sample's (n - 1), 0 for a single sample.
    """
    values = np.asarray(samples_ms, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Latency(
        p50=p50,
        p90=p90,
        p99=p99,
        mean=float(values.mean()),
        stdev=float(values.std(ddof=1)) if values.size > 1 else 0.0,
        samples=tuple(float(value) for value in values),
    )


def round_medians(rounds_ms: Sequence[Sequence[float]]) -> np.ndarray:
    """The median of each round: (R,) float64, ms."""
    return np.array([np.median(samples) for samples in rounds_ms], dtype=np.float64)


def speedup_of(eager_p50_ms: np.ndarray, case_p50_ms: np.ndarray, *, seed: int) -> Speedup:
    """Median over rounds of eager / case, with a percentile bootstrap 95 % interval over rounds.

    eager_p50_ms, case_p50_ms: (R,) round medians, ms. Ratios are taken within a round, whose two
    turns are seconds apart, so that slow drift of the machine cancels. Rounds are what is
    resampled: samples of one round are not independent.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    ratios = np.asarray(eager_p50_ms, np.float64) / np.asarray(case_p50_ms, np.float64)
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, ratios.size, size=(BOOTSTRAP_RESAMPLES, ratios.size))
    low, high = np.percentile(np.median(ratios[picks], axis=1), (2.5, 97.5))
    return Speedup(float(np.median(ratios)), float(low), float(high))


def relative_spread(round_p50_ms: np.ndarray) -> float:
    """Interquartile range of the round medians over their median.

    Not (max - min): the reported median survives one disturbed round out of seven, and on a shared
    machine there nearly always is one, so that flag would say nothing. The quartiles move when a
    quarter of the rounds does, which is when the reported figure would not come back.
    """
    low, middle, high = np.percentile(round_p50_ms, (25, 50, 75))
    return float((high - low) / middle)


def is_unstable(round_p50_ms: np.ndarray) -> bool:
    """Whether the rounds differ by more than `UNSTABLE_SPREAD`."""
    return relative_spread(round_p50_ms) > UNSTABLE_SPREAD
