"""From raw samples to reported figures; pure functions over numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from t2t_deploy._codec import Rule

MIN_ROUNDS = 5
"""The range of n rounds holds the true median with probability 1 - 2^(1-n): 0.94 at 5, 0.75 at 3.
Fewer rounds cannot give a 95 % interval."""
BOOTSTRAP_RESAMPLES = 10_000
UNSTABLE_SPREAD = 0.10
"""Spread of the rounds (see `rounds_spread`) above which a figure is unstable."""
STALLED_SHARE = 0.2
"""Share of the elapsed time, lost beside calls of the median duration, above which a row is
stalled: its mean is then a quarter above its p50. Sound benches stay below: of 25 rows on a GPU
server that others used, the highest mean was 1.16 times its p50."""

Durations = Annotated[
    tuple[float, ...], Rule(lambda values: min(values, default=0.0) > 0, "durations above 0")
]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles, mean and standard deviation of one call, and the samples themselves, in ms."""

    p50: float
    p90: float
    p99: float
    mean: float
    stdev: float
    samples: Durations


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast as something else, with its 95 % interval over rounds."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"


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

    eager_p50_ms, case_p50_ms: (R,) round medians, ms. Ratios are of one round, whose two turns
    are seconds apart, so that slow drift of the machine cancels. Rounds are resampled, because the
    samples of one round are not independent.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13.
    """
    ratios = eager_p50_ms / case_p50_ms
    return _speedup(np.median(ratios), _resampled_medians(ratios, np.random.default_rng(seed)))


def throughput_ratio(
    base: tuple[np.ndarray, np.ndarray], case: tuple[np.ndarray, np.ndarray], *, seed: int
) -> Speedup:
    """Calls a second of the case over those of the base, with an interval as of `speedup_of`.

    base, case: calls (R,) and elapsed ms (R,) of the same rounds. Each sample's calls and times are
    added up before they are divided, as a stall in one round belongs to the throughput of all.
    """
    rng = np.random.default_rng(seed)
    rounds = base[0].size
    picks = rng.integers(0, rounds, size=(BOOTSTRAP_RESAMPLES, rounds))

    def speed(measured: tuple[np.ndarray, np.ndarray], chosen: np.ndarray) -> np.ndarray:
        calls, elapsed_ms = measured
        return np.asarray(calls[chosen].sum(axis=-1) / elapsed_ms[chosen].sum(axis=-1))

    everything = np.arange(rounds)
    return _speedup(
        speed(case, everything) / speed(base, everything), speed(case, picks) / speed(base, picks)
    )


def ratio_of_medians(old_p50_ms: np.ndarray, new_p50_ms: np.ndarray, *, seed: int) -> Speedup:
    """Median of the old rounds / median of the new, with a percentile bootstrap 95 % interval.

    old_p50_ms: (Q,), new_p50_ms: (R,) round medians, ms. Rounds of two runs are no pairs: each
    run is resampled separately. Source: as `speedup_of`, chapter 13 and section 8.3.
    """
    rng = np.random.default_rng(seed)
    resampled = _resampled_medians(old_p50_ms, rng) / _resampled_medians(new_p50_ms, rng)
    return _speedup(np.median(old_p50_ms) / np.median(new_p50_ms), resampled)


def _speedup(ratio: np.floating | np.ndarray, resampled: np.ndarray) -> Speedup:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Speedup(float(ratio), float(low), float(high))


def _resampled_medians(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Medians of `BOOTSTRAP_RESAMPLES` samples drawn with replacement."""
    picks = rng.integers(0, values.size, size=(BOOTSTRAP_RESAMPLES, values.size))
    return np.asarray(np.median(values[picks], axis=1))


def relative_spread(values: np.ndarray) -> float:
    """Interquartile range over the median.

    Not (max - min): the reported median survives one disturbed round out of seven, and shared
    machines nearly always have one. The quartiles move when a quarter of the rounds does: then the
    reported figure is not reproducible.
    """
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float((high - low) / middle)


def rounds_spread(rounds_ms: Sequence[Sequence[float]]) -> float:
    """The spread of the rounds' medians or of their means, the larger one.

    Medians alone miss a busy neighbour of a small model: calls shorter than a time slice of the
    scheduler wait seldom but long. With four busy processes on two cores the medians of a 0.26 ms
    call stayed the same, its means tripled.
    """
    means = np.array([np.mean(samples) for samples in rounds_ms])
    return max(relative_spread(round_medians(rounds_ms)), relative_spread(means))
