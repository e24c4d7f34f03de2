"""Weights as 8-bit codes, and what their products lose."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from t2t_deploy.calibration import round_weight
from t2t_deploy.calibration._weights import FP8_MAX, storable_scale
from t2t_deploy.types import Precision

INT8, FP8 = Precision.INT8, Precision.FP8
EIGHT_BIT = pytest.mark.parametrize("precision", [INT8, FP8])
FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


def weight_of(inputs: int, outputs: int = 24, seed: int = 0) -> np.ndarray:
    """Outputs of very different size."""
    random = np.random.default_rng(seed)
    sizes = np.geomspace(0.01, 1, outputs)
    return np.asarray(random.standard_normal((inputs, outputs)) * sizes, np.float32)


def correlated(inputs: int, rows: int = 1500, seed: int = 1) -> np.ndarray:
    """Rows that mix a few sources, as the tokens of a picture do, with a little of their own."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, inputs // 8)) @ random.standard_normal(
        (inputs // 8, inputs)
    )
    return np.asarray(mixed + 0.1 * random.standard_normal((rows, inputs)), np.float32)


def lost(x: np.ndarray, weight: np.ndarray, rounded: np.ndarray) -> float:
    return float(np.linalg.norm(x @ (weight - rounded)))


def test_int8_has_a_scale_for_each_output() -> None:
    weight = weight_of(40)
    found = round_weight(weight, INT8)
    assert found.codes.dtype == np.int8 and found.scale.dtype == np.float32
    np.testing.assert_allclose(found.scale, np.abs(weight).max(axis=0) / 127, rtol=1e-6)
    assert np.abs(found.codes.astype(int)).max(axis=0).tolist() == [127] * weight.shape[1]


def test_fp8_has_one_scale_for_all() -> None:
    weight = weight_of(40)
    found = round_weight(weight, FP8)
    assert found.codes.dtype == ml_dtypes.float8_e4m3fn and found.scale.dtype == np.float32
    assert found.scale.shape == ()
    assert float(found.scale) == pytest.approx(np.abs(weight).max() / 448, rel=1e-6)
    assert np.abs(found.codes.astype(np.float32)).max() == 448


@EIGHT_BIT
def test_values_are_codes_times_scale(precision: Precision) -> None:
    found = round_weight(weight_of(30), precision)
    values = found.values()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, found.codes.astype(np.float32) * found.scale)


def test_without_moments_an_int8_code_is_the_nearest() -> None:
    weight = weight_of(50)
    found = round_weight(weight, INT8)
    np.testing.assert_array_equal(found.codes, np.round(weight / found.scale))
    assert (np.abs(found.values() - weight) <= found.scale * 0.5001).all()


def test_without_moments_an_fp8_code_is_the_nearest() -> None:
    """Of all the finite numbers that E4M3 has."""
    grid = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    grid = grid[np.isfinite(grid)]
    weight = weight_of(20, 6)
    found = round_weight(weight, FP8)
    steps = weight / found.scale
    nearest = np.abs(steps[..., None] - grid).min(axis=-1)
    np.testing.assert_array_equal(np.abs(steps - found.codes.astype(np.float32)), nearest)


@EIGHT_BIT
@pytest.mark.parametrize(("inputs", "most"), [(64, 0.25), (300, 0.3)])
def test_inputs_that_move_together_pay_for_each_other(
    precision: Precision, inputs: int, most: float
) -> None:
    """Measured: 0.14 to 0.21 of the error of rounding to nearest, also across blocks of rows."""
    weight, x = weight_of(inputs), correlated(inputs)
    nearest = lost(x, weight, round_weight(weight, precision).values())
    paid = lost(x, weight, round_weight(weight, precision, x.T @ x).values())
    assert paid < most * nearest


@EIGHT_BIT
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_inputs_that_do_not_move_together_round_to_nearest(
    precision: Precision, size: float
) -> None:
    weight = weight_of(150)
    sizes = np.random.default_rng(2).uniform(0.5, 2, len(weight)) * size
    found = round_weight(weight, precision, np.diag(sizes).astype(np.float32))
    np.testing.assert_array_equal(found.codes, round_weight(weight, precision).codes)


@pytest.mark.parametrize(("precision", "first", "most"), [(INT8, 100.4, 127), (FP8, 431, 448)])
def test_codes_stay_on_the_grid_whatever_is_paid_back(
    precision: Precision, first: float, most: float
) -> None:
    """The first input is four times the second, whose weight has the largest code already."""
    weight = np.array([[first, -first], [most, -most]], np.float32)
    x = np.full((100, 2), [4, 1], np.float32)
    found = round_weight(weight, precision, x.T @ x).codes.astype(np.float32)
    assert found[1].tolist() == [most, -most]
    assert np.isfinite(found).all()


@EIGHT_BIT
def test_inputs_that_are_always_zero_cost_nothing(precision: Precision) -> None:
    weight, x = weight_of(64), correlated(64)
    dead = [0, 17, 63]
    x[:, dead] = 0
    found = round_weight(weight, precision, x.T @ x)
    nearest = round_weight(weight, precision)
    np.testing.assert_array_equal(found.codes[dead], nearest.codes[dead])
    assert lost(x, weight, found.values()) < 0.3 * lost(x, weight, nearest.values())


@EIGHT_BIT
def test_a_layer_that_reads_zeros_alone_rounds_to_nearest(precision: Precision) -> None:
    weight = weight_of(20)
    found = round_weight(weight, precision, np.zeros((20, 20), np.float32))
    np.testing.assert_array_equal(found.codes, round_weight(weight, precision).codes)


@EIGHT_BIT
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), FLOAT16, BFLOAT16])
def test_an_output_without_weights_has_codes_of_zero(precision: Precision, dtype: np.dtype) -> None:
    weight = weight_of(30)
    weight[:, 3] = 0
    x = correlated(30)
    for moments in (None, x.T @ x):
        found = round_weight(weight, precision, moments, scale_dtype=dtype)
        assert (found.values()[:, 3] == 0).all() and np.isfinite(found.values()).all()
        zeros = round_weight(np.zeros_like(weight), precision, moments, scale_dtype=dtype)
        assert (zeros.values() == 0).all()


@EIGHT_BIT
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16])
def test_a_scale_is_a_number_of_the_graphs_type(precision: Precision, dtype: np.dtype) -> None:
    """Codes are made for the scale as it is stored, not for the one before it was rounded."""
    weight = weight_of(60) * np.float32(30)
    found = round_weight(weight, precision, scale_dtype=dtype)
    np.testing.assert_array_equal(found.scale, found.scale.astype(dtype).astype(np.float32))
    if precision is INT8:
        wanted = np.clip(np.round(weight / found.scale), -127, 127)
        np.testing.assert_array_equal(found.codes, wanted)
    assert not np.array_equal(found.scale, round_weight(weight, precision).scale)


@EIGHT_BIT
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-12, 1e-30])
def test_tiny_weights_of_a_float16_graph_do_not_blow_up(precision: Precision, size: float) -> None:
    """A scale below its normal numbers would be inexact there, or zero, and be divided by."""
    weight = weight_of(40) * np.float32(size)
    x = correlated(40)
    for moments in (None, x.T @ x):
        found = round_weight(weight, precision, moments, scale_dtype=FLOAT16)
        assert (found.scale >= np.finfo(np.float16).smallest_normal).all()
        assert np.isfinite(found.codes.astype(np.float32)).all()
        assert np.abs(found.values()).max() <= 2 * np.abs(weight).max() + found.scale.max()
    nearest = round_weight(weight, INT8, scale_dtype=FLOAT16)
    assert (np.abs(nearest.values() - weight) <= nearest.scale * 0.5001).all()


@pytest.mark.parametrize(
    ("scale", "dtype", "stored"),
    [
        (0.1, FLOAT16, np.float16(0.1)),
        (0.1, BFLOAT16, 0.10009765625),
        (0.0, FLOAT16, 2.0**-14),
        (1e-7, FLOAT16, 2.0**-14),
        (0.0, np.dtype(np.float32), 2.0**-126),
        (1e-45, BFLOAT16, 2.0**-126),
    ],
)
def test_a_step_as_it_is_stored(scale: float, dtype: np.dtype, stored: float) -> None:
    found = storable_scale(scale, dtype)
    assert found.dtype == dtype and found.shape == () and float(found) == stored


@EIGHT_BIT
def test_the_same_weight_has_the_same_codes_each_time_and_is_left_alone(
    precision: Precision,
) -> None:
    weight, x = weight_of(140), correlated(140)
    x[:, 5] = 0
    moments = x.T @ x
    before = weight.copy(), moments.copy()
    first, second = (round_weight(weight, precision, moments) for _ in range(2))
    assert first.codes.tobytes() == second.codes.tobytes()
    assert first.scale.tobytes() == second.scale.tobytes()
    np.testing.assert_array_equal(weight, before[0])
    np.testing.assert_array_equal(moments, before[1])


def test_the_largest_number_of_fp8_is_finite() -> None:
    largest = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)  # type: ignore[no-untyped-call]
    assert largest == FP8_MAX
