"""The range of a tensor's 8-bit codes, by each method."""

from __future__ import annotations

import numpy as np
import pytest

from t2t_deploy.calibration import RangeMethod, range_of
from t2t_deploy.calibration._observe import MagnitudeHistogram

COUNT = 200_000


def histogram_of(*batches: np.ndarray) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.add(np.abs(batch).astype(np.float32))
    return histogram


def uniform(largest: float) -> np.ndarray:
    """Evenly spread from 0 to largest, both included."""
    return np.linspace(0, largest, COUNT)


def normal() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(COUNT)


def squared_error(values: np.ndarray, limit: float) -> float:
    """Of int8 codes of these values with this range, measured on the values themselves."""
    step = limit / 127
    return float(np.mean((np.clip(np.round(values / step), -127, 127) * step - values) ** 2))


@pytest.mark.parametrize("largest", [0.3, 1.0, 5.7])
def test_minmax_is_the_largest_magnitude_seen(largest: float) -> None:
    found = range_of(histogram_of(uniform(largest), -uniform(largest / 3)), RangeMethod.MINMAX)
    assert found == np.float32(largest)


def test_a_percentile_of_a_uniform_distribution_is_that_share_of_it() -> None:
    """It is the first edge of a bin that the share does not exceed."""
    found = range_of(histogram_of(uniform(1.0), np.array([1.5])), RangeMethod.PERCENTILE)
    assert 0.9999 <= found < 0.9999 + 2 / 4096


@pytest.mark.parametrize(("outliers", "clipped"), [(1, True), (9, True), (11, False), (50, False)])
def test_a_percentile_leaves_out_one_value_in_ten_thousand(outliers: int, clipped: bool) -> None:
    histogram = histogram_of(np.ones(100_000 - outliers), np.full(outliers, 100.0))
    found = range_of(histogram, RangeMethod.PERCENTILE)
    assert found == (pytest.approx(1, abs=128 / 4096) if clipped else 100)


def test_mse_clips_one_far_outlier() -> None:
    """A large error of one value against finer codes for all others."""
    values = np.append(normal(), 100.0)
    found = range_of(histogram_of(values), RangeMethod.MSE)
    assert 5 < found < 60
    assert squared_error(values, found) < 0.8 * squared_error(values, 100)


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9, 1.1])
def test_no_other_range_has_a_smaller_squared_error(share: float) -> None:
    values = np.append(normal(), 100.0)
    found = range_of(histogram_of(values), RangeMethod.MSE)
    assert squared_error(values, found) < squared_error(values, share * found)


def test_mse_hardly_clips_a_distribution_without_outliers() -> None:
    """By less than one step of its codes."""
    found = range_of(histogram_of(uniform(10)), RangeMethod.MSE)
    assert 10 * (1 - 1 / 127) < found <= 10


@pytest.mark.parametrize("values", [uniform(10), normal(), np.full(99, 3.0), np.append(0.0, 7)])
@pytest.mark.parametrize("method", RangeMethod)
def test_a_range_is_finite_and_no_larger_than_the_largest(
    values: np.ndarray, method: RangeMethod
) -> None:
    histogram = histogram_of(values)
    found = range_of(histogram, method)
    assert np.isfinite(found) and 0 < found <= histogram.largest


def test_entropy_clips_a_lone_far_outlier() -> None:
    """It keeps the whole of the distribution that the outlier does not belong to."""
    values = normal()
    found = range_of(histogram_of(values, np.array([100.0])), RangeMethod.ENTROPY)
    assert 3.5 < found < 1.1 * np.abs(values).max()


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    """Also where its largest bin is none of the steps that ranges are tried at."""
    for largest in (0.01, 10, 10.05):
        found = range_of(histogram_of(uniform(largest)), RangeMethod.ENTROPY)
        assert found == np.float32(largest)


def divergence(counts: np.ndarray, stop: int) -> float:
    """Of the first bins, all beyond added to the last, from what 128 codes leave of them."""
    clipped = counts[:stop].copy()
    clipped[-1] += counts[stop:].sum()
    coded = np.zeros(stop)
    for level in range(128):
        bins = [place for place in range(stop) if place * 128 // stop == level]
        filled = [place for place in bins if counts[place]]
        coded[filled] = counts[filled].mean() if filled else 0
    p, q = clipped / clipped.sum(), coded / coded.sum()
    return float(sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a))


def test_no_other_range_has_a_smaller_divergence() -> None:
    values = np.random.default_rng(0).exponential(1, 3000)
    histogram = histogram_of(values, np.array([30.0]))
    found = round(range_of(histogram, RangeMethod.ENTROPY) / histogram.top * 4096)
    counts = histogram.counts.astype(np.float64)
    tried = {stop: divergence(counts, stop) for stop in range(128, 2048, 16)}
    assert found == min(tried, key=lambda stop: tried[stop])


@pytest.mark.parametrize("method", RangeMethod)
def test_a_range_grows_with_its_tensor(method: RangeMethod) -> None:
    """Times a power of two every bin is the same, so the range is that many times as large."""
    values = np.append(normal(), 20.0).astype(np.float32)
    small, large = (range_of(histogram_of(values * scale), method) for scale in (1, 8))
    assert large == 8 * small


@pytest.mark.parametrize("method", RangeMethod)
def test_a_tensor_of_zeros_has_a_range_that_can_be_divided_by(method: RangeMethod) -> None:
    for histogram in (MagnitudeHistogram(), histogram_of(np.zeros((4, 9)))):
        found = range_of(histogram, method)
        assert 0 < found < 1e-30 and np.float32(found) > 0


@pytest.mark.parametrize("method", RangeMethod)
@pytest.mark.parametrize("largest", [1e-30, 1e-36])
def test_a_tensor_of_next_to_nothing_is_not_clipped_to_nothing(
    method: RangeMethod, largest: float
) -> None:
    histogram = histogram_of(np.full(50, largest))
    assert range_of(histogram, method) == pytest.approx(largest, rel=1e-3, abs=0)
