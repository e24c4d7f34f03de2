"""Sums over what layers read, histograms of it, and the range that its 8-bit codes get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2t_deploy.calibration import (
    ChannelMaxima,
    Observation,
    RangeMethod,
    observed_model,
    range_of,
    sources,
)
from t2t_deploy.calibration._observe import BINS, MAX_MOMENT_PICTURES, MagnitudeHistogram
from t2t_deploy.errors import CalibrationError

from ..onnx_models import model_of
from .graphs import layer

WIDTHS = {"norm:0": 5, "hidden": 8}


LAYERS = [layer("q", "norm:0", 5), layer("k", "norm:0", 5), layer("fc2", "hidden", 8)]


def batch_of(pictures: int, seed: int, rows: int = 4) -> dict[str, np.ndarray]:
    """What the layers read of some pictures, (pictures, rows, channels)."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(0, 1 + seed, (pictures, rows, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }


def observed(batches: Sequence[dict[str, np.ndarray]]) -> Observation:
    found = Observation.of(LAYERS)
    for batch in batches:
        found.add(batch, len(batch["hidden"]))
    return found


def assert_same(found: Observation, wanted: Observation) -> None:
    assert found.pictures == wanted.pictures
    assert found.sums.keys() == wanted.sums.keys()
    for name, total in wanted.sums.items():
        other = found.sums[name]
        np.testing.assert_array_equal(other.histogram.counts, total.histogram.counts)
        assert other.histogram.top == total.histogram.top
        assert other.histogram.largest == total.histogram.largest
        np.testing.assert_array_equal(other.moments, total.moments)


def test_a_tensor_that_several_layers_read_is_summed_once() -> None:
    assert sources(LAYERS) == ("norm:0", "hidden")
    sums = observed([batch_of(2, 0) | {"unread": np.ones((2, 4, 3), np.float32)}]).sums
    assert {name: total.moments.shape for name, total in sums.items()} == {
        "norm:0": (5, 5),
        "hidden": (8, 8),
    }


def test_of_what_layers_write_a_histogram_is_taken_and_nothing_more() -> None:
    found = Observation.of(LAYERS, LAYERS[:1])
    assert list(found.sums) == ["q:0", "norm:0", "hidden"]
    written = np.random.default_rng(3).normal(0, 2, (2, 4, 3)).astype(np.float32)
    found.add({**batch_of(2, 0), "q:0": written}, 2)
    assert found.sums["q:0"].moments.shape == (0, 0)
    assert found.sums["q:0"].histogram.largest == np.abs(written).max()
    assert found.sums["q:0"].histogram.counts.sum() == written.size
    assert_same(Observation.from_arrays(found.to_arrays()), found)
    # unless another layer reads it
    both = Observation.of([*LAYERS, layer("next", "q:0", 3)], LAYERS[:1])
    assert both.sums["q:0"].moments.shape == (3, 3)


def test_sums_over_batches_are_those_of_numpy_over_all() -> None:
    batches = [batch_of(2, 0), batch_of(3, 1), batch_of(1, 2)]
    found = observed(batches)
    assert found.pictures == 6
    for name, width in WIDTHS.items():
        rows = np.concatenate([batch[name].reshape(-1, width) for batch in batches])
        total = found.sums[name]
        exact = rows.astype(np.float64).T @ rows.astype(np.float64)
        np.testing.assert_allclose(total.moments, exact, rtol=1e-4, atol=1e-3)
        assert total.moments.dtype == np.float32
        assert total.histogram.largest == np.abs(rows).max()
        wanted, _ = np.histogram(np.abs(rows), 4096, (0, total.histogram.top))
        np.testing.assert_array_equal(total.histogram.counts, wanted)


def test_its_size_does_not_depend_on_the_pictures() -> None:
    def size(found: Observation) -> int:
        return sum(value.nbytes for value in found.to_arrays().values())

    assert size(observed([])) == size(observed([batch_of(20, 0), batch_of(9, 5)]))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", WIDTHS)
def test_numbers_that_are_none_are_refused_and_the_tensor_named(name: str, wrong: float) -> None:
    batch = batch_of(2, 0)
    batch[name][1, 2, 3] = wrong
    message = f"tensor {name} is NaN or infinite on one of the pictures; expected finite numbers: "
    with pytest.raises(CalibrationError, match=message):
        Observation.of(LAYERS).add(batch, 2)
    with pytest.raises(CalibrationError, match=message):
        ChannelMaxima().add(batch)


def test_moments_are_of_the_first_pictures_and_histograms_of_all() -> None:
    first, second, third = (batch_of(MAX_MOMENT_PICTURES // 2, seed, 1) for seed in range(3))
    found = observed([first, second])
    moments = {name: total.moments.copy() for name, total in found.sums.items()}
    half = observed([first])
    found.add(third, len(third["hidden"]))
    assert found.pictures == MAX_MOMENT_PICTURES + MAX_MOMENT_PICTURES // 2
    for name, total in found.sums.items():
        np.testing.assert_array_equal(total.moments, moments[name])
        assert not np.array_equal(total.moments, half.sums[name].moments)
        seen = [np.abs(batch[name]) for batch in (first, second, third)]
        assert total.histogram.counts.sum() == sum(values.size for values in seen)
        assert total.histogram.largest == max(values.max() for values in seen)


def test_a_calibration_goes_on_from_its_arrays_as_if_never_interrupted() -> None:
    batches = [batch_of(2, seed) for seed in range(4)]
    found = Observation.from_arrays(observed(batches[:2]).to_arrays())
    assert_same(found, observed(batches[:2]))
    for batch in batches[2:]:
        found.add(batch, 2)
    assert_same(found, observed(batches))


def test_going_on_leaves_the_arrays_it_was_read_from_alone() -> None:
    arrays = observed([batch_of(2, 0)]).to_arrays()
    before = {name: value.copy() for name, value in arrays.items()}
    Observation.from_arrays(arrays).add(batch_of(2, 0), 2)
    for name, value in before.items():
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize(
    ("name", "stop", "message"),
    [
        *((n, None, f"{n} is missing") for n in ("pictures", "extent:norm:0", "moments:hidden")),
        ("counts:hidden", 2048, r"\(2048,\) bins; expected 4096"),
    ],
)
def test_arrays_that_are_missing_or_of_another_size_are_named(
    name: str, stop: int | None, message: str
) -> None:
    arrays = observed([batch_of(2, 0)]).to_arrays()
    whole = arrays.pop(name)
    if stop is not None:
        arrays[name] = whole[:stop]
    with pytest.raises(CalibrationError, match=f"{message}.*: calibrate again"):
        Observation.from_arrays(arrays)


def test_maxima_are_the_largest_magnitude_of_each_channel_over_all_batches() -> None:
    batches = [batch_of(2, 2), batch_of(3, 0), batch_of(1, 1)]
    maxima = ChannelMaxima()
    for batch in batches:
        maxima.add(batch)
    assert maxima.channels.keys() == WIDTHS.keys()
    for name, width in WIDTHS.items():
        rows = np.concatenate([batch[name].reshape(-1, width) for batch in batches])
        np.testing.assert_array_equal(maxima.channels[name], np.abs(rows).max(axis=0))


def test_an_observed_model_gives_the_tensors_in_place_of_its_outputs() -> None:
    node = onnx.helper.make_node("Relu", ["image"], ["hidden"], name="relu")
    last = onnx.helper.make_node("Neg", ["hidden"], ["logits"], name="neg")
    model = model_of([node, last], [], ["n", 3], ["n", 3])
    before = model.SerializeToString()
    found = observed_model(model, ["hidden", "image"])
    kinds = [(output.name, output.type.tensor_type.elem_type) for output in found.graph.output]
    assert kinds == [("hidden", onnx.TensorProto.FLOAT), ("image", onnx.TensorProto.FLOAT)]
    assert found.graph.node == model.graph.node
    assert model.SerializeToString() == before


# -- histograms -----------------------------------------------------------------------------------


def histogram_of(*batches: np.ndarray) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.add(np.abs(batch).astype(np.float32))
    return histogram


def magnitudes(seed: int, largest: float, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, largest, shape).astype(np.float32)


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
    histogram = histogram_of(np.array([largest, largest / 2, 0], np.float32))
    assert histogram.top == largest == histogram.largest
    assert np.flatnonzero(histogram.counts).tolist() == [0, BINS // 2, BINS - 1]
    histogram.add(np.nextafter(np.array([largest], np.float32), np.float32(100)))
    assert histogram.top == 2 * largest and histogram.counts[BINS // 2] == 1


def test_zeros_are_counted_before_and_after_anything_else() -> None:
    histogram = histogram_of(np.zeros((2, 3), np.float32))
    assert (histogram.top, histogram.largest) == (0, 0)
    assert histogram.counts[0] == 6
    histogram.add(np.array([0, 3], np.float32))
    histogram.add(np.zeros(4, np.float32))
    assert (histogram.top, histogram.largest) == (4, 3)
    assert histogram.counts[0] == 11 and histogram.counts.sum() == 12


def test_centres_are_the_middles_of_the_bins() -> None:
    histogram = histogram_of(np.array([7], np.float32))
    edges = np.linspace(0, 8, BINS + 1)
    np.testing.assert_array_equal(histogram.centres, (edges[1:] + edges[:-1]) / 2)


@pytest.mark.parametrize("largest", [1e-45, 1e-38, 1e-36, 1e-34, 1e-30, 3.4e38])
def test_the_smallest_and_largest_numbers_of_float32_are_counted(largest: float) -> None:
    values = np.array([0, largest], np.float32)
    histogram = histogram_of(values, values)
    assert histogram.counts.sum() == 4
    assert histogram.largest == values[1]


@given(st.lists(st.lists(st.floats(0, 2.0**100, width=32), max_size=6), max_size=6))
@settings(max_examples=100, deadline=None)
def test_every_value_is_counted_once_and_none_lies_beyond_the_top(
    batches: list[list[float]],
) -> None:
    histogram = histogram_of(*(np.array(batch, np.float32) for batch in batches))
    everything = [value for batch in batches for value in batch]
    assert histogram.counts.sum() == len(everything)
    assert histogram.counts.min() >= 0
    assert histogram.largest == max(everything, default=0)
    assert histogram.counts.dtype == np.int64
    assert histogram.largest or not histogram.top
    if histogram.top:
        assert np.log2(histogram.top) % 1 == 0
        assert histogram.top / 2 < histogram.largest <= histogram.top


# -- ranges ---------------------------------------------------------------------------------------

COUNT = 200_000


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


def test_mse_clips_one_far_outlier_and_no_other_range_has_a_smaller_squared_error() -> None:
    """A large error of one value against finer codes for all others."""
    values = np.append(normal(), 100.0)
    found = range_of(histogram_of(values), RangeMethod.MSE)
    assert 5 < found < 60
    assert squared_error(values, found) < 0.8 * squared_error(values, 100)
    for share in (0.7, 0.8, 0.9, 1.1):
        assert squared_error(values, found) < squared_error(values, share * found)


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


def test_a_uniform_distribution_is_kept_whole() -> None:
    """Of entropy also where its largest bin is none of the steps that ranges are tried at."""
    for largest in (0.01, 10, 10.05):
        histogram = histogram_of(uniform(largest))
        assert range_of(histogram, RangeMethod.ENTROPY) == np.float32(largest)
        # by less than one step of its codes
        assert 1 - 1 / 127 < range_of(histogram, RangeMethod.MSE) / np.float32(largest) <= 1


def divergence(counts: np.ndarray, stop: int) -> float:
    """Of the first bins, all beyond added to the last, from what 128 codes leave of them."""
    clipped = counts[:stop].copy()
    clipped[-1] += counts[stop:].sum()
    coded = np.zeros(stop)
    levels = np.arange(stop) * 128 // stop
    for level in range(128):
        filled = (levels == level) & (counts[:stop] > 0)
        coded[filled] = counts[:stop][filled].mean() if filled.any() else 0
    p, q = clipped / clipped.sum(), coded / coded.sum()
    return float((p * np.log(np.where(p > 0, p, 1) / np.maximum(q, 1e-12)))[p > 0].sum())


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
