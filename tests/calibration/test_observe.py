"""Sums over what layers read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from t2t_deploy.calibration import ChannelMaxima, LinearLayer, Observation, observed_model, sources
from t2t_deploy.calibration._observe import MAX_MOMENT_PICTURES
from t2t_deploy.errors import CalibrationError

WIDTHS = {"norm:0": 5, "hidden": 8}


def layer(name: str, source: str, inputs: int) -> LinearLayer:
    return LinearLayer(name, f"/{name}", f"{name}.weight", source, f"{name}:0", inputs, 3, 4, False)


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
    sums = Observation.of(LAYERS).sums
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
    again = Observation.from_arrays(found.to_arrays())
    assert_same(again, found)


def test_what_one_layer_writes_and_another_reads_keeps_its_moments() -> None:
    written = layer("fc1", "norm:0", 5)
    found = Observation.of([*LAYERS, layer("next", "fc1:0", 3)], [written])
    assert found.sums["fc1:0"].moments.shape == (3, 3)


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


def test_tensors_that_no_layer_was_asked_for_are_left_alone() -> None:
    found = Observation.of(LAYERS[:1])
    found.add(batch_of(2, 0), 2)
    assert list(found.sums) == ["norm:0"]


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


@pytest.mark.parametrize("missing", ["pictures", "extent:norm:0", "moments:hidden"])
def test_an_array_that_is_missing_is_named(missing: str) -> None:
    arrays = observed([batch_of(2, 0)]).to_arrays()
    del arrays[missing]
    with pytest.raises(CalibrationError, match=f"{missing} is missing .*: calibrate again"):
        Observation.from_arrays(arrays)


def test_a_histogram_of_another_size_is_refused() -> None:
    arrays = observed([batch_of(2, 0)]).to_arrays()
    arrays["counts:hidden"] = arrays["counts:hidden"][:2048]
    with pytest.raises(CalibrationError, match=r"\(2048,\) bins; expected 4096: calibrate again"):
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
    node = onnx.helper.make_node("Relu", ["x"], ["hidden"], name="relu")
    last = onnx.helper.make_node("Neg", ["hidden"], ["logits"], name="neg")
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3])
        for name in ("x", "logits")
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node, last], "small", infos[:1], infos[1:])
    )
    before = model.SerializeToString()
    found = observed_model(model, ["hidden", "x"])
    assert [output.name for output in found.graph.output] == ["hidden", "x"]
    assert {output.type.tensor_type.elem_type for output in found.graph.output} == {
        onnx.TensorProto.FLOAT
    }
    assert found.graph.node == model.graph.node
    assert model.SerializeToString() == before
