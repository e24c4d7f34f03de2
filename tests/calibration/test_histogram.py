"""Counts of magnitudes in a fixed number of bins whose width follows the data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2t_deploy.calibration._observe import BINS, MagnitudeHistogram


def magnitudes(seed: int, largest: float, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, largest, shape).astype(np.float32)


def filled(*batches: np.ndarray) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def counted(values: np.ndarray, top: float) -> np.ndarray:
    return np.histogram(values.astype(np.float64), BINS, (0, top))[0]


def test_counts_are_those_of_numpy_while_the_top_doubles() -> None:
    batches = [
        magnitudes(0, 0.9, (3, 50, 7)),  # top 1
        magnitudes(1, 0.2, (1000,)),  # no growth
        magnitudes(2, 1.7, (40, 40)),  # once
        magnitudes(3, 100, (2, 2000)),  # six times at one go
        np.zeros((5, 5), np.float32),
        magnitudes(4, 3, (999,)),
    ]
    histogram = MagnitudeHistogram()
    tops = []
    for seen, batch in enumerate(batches, 1):
        histogram.add(batch)
        tops.append(histogram.top)
        everything = np.concatenate([one.reshape(-1) for one in batches[:seen]])
        np.testing.assert_array_equal(histogram.counts, counted(everything, histogram.top))
        assert histogram.largest == everything.max()
    assert tops == [1, 1, 2, 128, 128, 128]


@pytest.mark.parametrize("largest", [0.25, 1, 64])
def test_a_power_of_two_is_the_top_and_falls_into_the_last_bin(largest: float) -> None:
    histogram = filled(np.array([largest, largest / 2, 0], np.float32))
    assert histogram.top == largest == histogram.largest
    assert np.flatnonzero(histogram.counts).tolist() == [0, BINS // 2, BINS - 1]


def test_the_next_number_after_a_power_of_two_doubles_the_top() -> None:
    histogram = filled(np.array([np.nextafter(np.float32(1), np.float32(2))], np.float32))
    assert histogram.top == 2
    assert np.flatnonzero(histogram.counts).tolist() == [BINS // 2]


def test_its_size_is_the_same_for_any_number_of_values() -> None:
    histogram = filled(magnitudes(0, 1, (10,)))
    few = histogram.counts.nbytes
    for scale in (1, 10, 1e6):
        histogram.add(magnitudes(1, scale, (100, 100)))
        assert histogram.counts.nbytes == few and histogram.counts.dtype == np.int64


def test_zeros_are_counted_before_and_after_anything_else() -> None:
    histogram = filled(np.zeros((2, 3), np.float32))
    assert (histogram.top, histogram.largest) == (0, 0)
    assert histogram.counts[0] == 6
    histogram.add(np.array([0, 3], np.float32))
    histogram.add(np.zeros(4, np.float32))
    assert (histogram.top, histogram.largest) == (4, 3)
    assert histogram.counts[0] == 11 and histogram.counts.sum() == 12


def test_nothing_adds_nothing() -> None:
    histogram = filled(np.empty((0, 8), np.float32))
    assert (histogram.top, histogram.largest, histogram.counts.sum()) == (0, 0, 0)


def test_the_largest_is_exact_and_not_the_edge_of_a_bin() -> None:
    largest = np.float32(0.7531)
    histogram = filled(np.array([0.1, largest], np.float32), np.array([0.75], np.float32))
    assert histogram.largest == float(largest)


def test_centres_are_the_middles_of_the_bins() -> None:
    histogram = filled(np.array([7], np.float32))
    edges = np.linspace(0, 8, BINS + 1)
    np.testing.assert_array_equal(histogram.centres, (edges[1:] + edges[:-1]) / 2)


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-36, 1e-34, 1e-30, 3.4e38])
def test_the_smallest_and_largest_numbers_of_float32_are_counted(largest: float) -> None:
    values = np.array([0, largest], np.float32)
    histogram = filled(values, values)
    assert histogram.counts.sum() == 4
    assert histogram.largest == values[1]


@given(
    st.lists(
        st.lists(st.floats(0, 2.0**100, width=32), max_size=6),
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_every_value_is_counted_once_and_none_lies_beyond_the_top(
    batches: list[list[float]],
) -> None:
    histogram = filled(*(np.array(batch, np.float32) for batch in batches))
    everything = [value for batch in batches for value in batch]
    assert histogram.counts.sum() == len(everything)
    assert histogram.counts.min() >= 0
    assert histogram.largest == max(everything, default=0)
    if histogram.top:
        assert np.log2(histogram.top) % 1 == 0
        assert histogram.top / 2 < histogram.largest <= histogram.top
