from __future__ import annotations

import numpy as np
import pytest

from t2t_deploy.bench import _statistics
from t2t_deploy.bench._statistics import (
    UNSTABLE_SPREAD,
    Speedup,
    latency_of,
    relative_spread,
    round_medians,
    rounds_spread,
    speedup_of,
    throughput_ratio,
)


def test_latency_of_known_samples() -> None:
    found = latency_of([float(value) for value in range(1, 102)])
    assert (found.p50, found.p90, found.p99, found.mean) == (51.0, 91.0, 100.0, 51.0)
    assert found.stdev == pytest.approx(29.300170647967224, rel=1e-14)
    assert found.samples == tuple(float(value) for value in range(1, 102))


def test_percentiles_interpolate_and_stdev_is_the_samples() -> None:
    found = latency_of([2.0, 4.0])
    assert (found.p50, found.p90, found.p99) == pytest.approx((3.0, 3.8, 3.98), rel=1e-14)
    assert found.stdev == pytest.approx(2**0.5, rel=1e-14)


def test_one_sample_has_no_deviation() -> None:
    found = latency_of([5.0])
    assert (found.p50, found.p99, found.stdev) == (5.0, 5.0, 0.0)


def test_round_medians() -> None:
    assert round_medians([[1.0, 9.0, 2.0], [4.0, 6.0]]).tolist() == [2.0, 5.0]


@pytest.mark.parametrize(
    ("eager", "ours", "expected"),
    [
        # the machine slows threefold half way: within each round the ratio stays 2
        ([10.0, 10.0, 10.0, 30.0, 30.0], [5.0, 5.0, 5.0, 15.0, 15.0], (2.0, 2.0, 2.0)),
        # of 5 rounds, a resampled median is the lowest with probability 0.058 and the highest alike
        ([1.0, 2.0, 3.0, 4.0, 100.0], [1.0] * 5, (3.0, 1.0, 100.0)),
    ],
)
def test_speedup_is_a_median_of_the_rounds_ratios_with_an_interval(
    eager: list[float], ours: list[float], expected: tuple[float, ...]
) -> None:
    assert speedup_of(np.array(eager), np.array(ours), seed=0) == Speedup(*expected)


def test_throughput_ratio_is_of_all_calls_over_all_time() -> None:
    base = np.array([10, 10, 10, 10, 10]), np.array([100.0] * 5)
    case = np.array([10, 10, 10, 10, 10]), np.array([20.0] * 4 + [420.0])
    found = throughput_ratio(base, case, seed=0)
    assert found.ratio == pytest.approx(1.0)  # 500 ms each; the median of the rounds says 5
    assert found.low < 1 < found.high == pytest.approx(5.0)
    assert throughput_ratio(base, base, seed=0) == Speedup(1.0, 1.0, 1.0)


def test_bootstrap_is_narrower_with_more_rounds() -> None:
    ratios = np.arange(1.0, 102.0)
    found = speedup_of(ratios, np.ones(101), seed=0)
    assert found.ratio == 51.0
    assert 30 < found.low < 46 and 56 < found.high < 72


def test_bootstrap_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_statistics, "BOOTSTRAP_RESAMPLES", 20)  # so few that the seed shows
    ratios = np.random.default_rng(5).normal(2.0, 0.3, 40)
    first, again, other = (speedup_of(ratios, np.ones(40), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_relative_spread_is_the_interquartile_range() -> None:
    assert relative_spread(np.array([9.0, 10.0, 10.0, 10.0, 12.0])) == 0.0
    assert relative_spread(np.array([8.0, 9.0, 10.0, 11.0, 12.0])) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("medians", "unstable"),
    [
        ([10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 30.0], False),  # one disturbed round of seven
        ([10.0, 10.0, 10.0, 10.0, 13.0, 13.0, 13.0], True),  # throttled half way
        ([10.0, 10.4, 10.8, 11.2, 11.6], False),  # 7.4 %
        ([10.0, 10.6, 11.2, 11.8, 12.4], True),  # 10.7 %
    ],
)
def test_unstable(medians: list[float], unstable: bool) -> None:
    assert (rounds_spread([[median] for median in medians]) > UNSTABLE_SPREAD) is unstable


def test_calls_that_are_delayed_seldom_but_long_are_unstable() -> None:
    """What a busy neighbour does to a call shorter than the scheduler's slice."""
    quiet, busy = [1.0] * 20, [1.0] * 18 + [5.0] * 2
    rounds = [quiet] * 4 + [busy] * 3
    assert relative_spread(round_medians(rounds)) == 0.0
    assert rounds_spread(rounds) == pytest.approx(0.4)
