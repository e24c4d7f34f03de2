"""Weights as 8-bit codes and their steps: what products lose, and that none passes float16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from t2t_deploy.calibration import (
    Decision,
    Form,
    RoundedWeight,
    code_limit,
    half_bound,
    round_weight,
    storable_scale,
    weight_scales,
)
from t2t_deploy.calibration._weights import FP8_MAX, WeightScale, tensor_scale
from t2t_deploy.types import HALF_MAX, Precision

from .graphs import layer

INT8, FP8 = Precision.INT8, Precision.FP8
CODES = {INT8: np.dtype(np.int8), FP8: np.dtype(ml_dtypes.float8_e4m3fn)}
EIGHT_BIT = pytest.mark.parametrize("precision", [INT8, FP8])
FLOAT32, FLOAT16, BFLOAT16 = map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16))


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


@EIGHT_BIT
def test_int8_has_a_scale_for_each_output_and_fp8_one_for_all(precision: Precision) -> None:
    weight = weight_of(40)
    axis, largest = (0, 127) if precision is INT8 else (None, 448)
    found = round_weight(weight, precision)
    assert (found.codes.dtype, found.scale.dtype) == (CODES[precision], np.float32)
    np.testing.assert_allclose(found.scale, np.abs(weight).max(axis=axis) / largest, rtol=1e-6)
    assert (np.abs(found.codes.astype(np.float32)).max(axis=axis) == largest).all()


@EIGHT_BIT
def test_values_are_codes_times_scale(precision: Precision) -> None:
    found = round_weight(weight_of(30), precision)
    values = found.values()
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, found.codes.astype(np.float32) * found.scale)


@EIGHT_BIT
def test_without_moments_a_code_is_the_nearest(precision: Precision) -> None:
    """Of all the finite numbers that its type has, but for -128."""
    grid = np.arange(256, dtype=np.uint8).view(CODES[precision]).astype(np.float32)
    grid = grid[np.isfinite(grid) & (grid > -128 if precision is INT8 else True)]
    weight = weight_of(20, 6)
    found = round_weight(weight, precision)
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
@pytest.mark.parametrize("size", [0, 1e-6, 1.0, 1e6])
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
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16])
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
        (0.0, FLOAT32, 2.0**-126),
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


# -- steps ----------------------------------------------------------------------------------------

STEP = 0.02


def decision(name: str, form: Form, *, source: str = "x", cut_from: str | None = None) -> Decision:
    return Decision(layer(name, source, 64, 8, cut_from=cut_from), True, "", form)


def gaussian(seed: int = 0, size: float = 1.0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((64, 8)) * size
    return drawn.astype(np.float32)


def scales_of(
    *decisions: Decision,
    weights: dict[str, np.ndarray],
    step: float = STEP,
    precision: Precision = INT8,
    dtype: np.dtype = FLOAT16,
) -> dict[str, WeightScale]:
    steps = dict.fromkeys(("x", "y", "whole"), step)
    return weight_scales(decisions, weights, steps, precision, dtype)


def rounded(weight: np.ndarray, form: Form, precision: Precision, step: float) -> RoundedWeight:
    parts = scales_of(
        decision("a", form), weights={"a": weight}, step=step, precision=precision
    ).get("a")
    return round_weight(weight, precision, scale_dtype=FLOAT16, parts=parts)


def products(codes: np.ndarray, weight: RoundedWeight, step: float) -> np.ndarray:
    """What leaves the product, float64: sums of codes times the one factor."""
    sums = codes.astype(np.float64) @ weight.codes.astype(np.float64)
    factor = 1.0 if weight.parts is None else float(weight.parts.base) * step
    return np.asarray(sums * factor)


@EIGHT_BIT
@pytest.mark.parametrize("form", [Form.TENSOR, Form.CHANNEL, Form.VECTOR])
def test_no_codes_pass_the_bound_and_the_worst_reach_it(form: Form, precision: Precision) -> None:
    random = np.random.default_rng(1)
    dtype = CODES[precision]
    limit = code_limit(precision)
    for seed in range(5):
        weight = rounded(gaussian(seed, 0.1), form, precision, STEP)
        bound = half_bound(weight, form, STEP)
        assert bound is not None
        drawn = random.uniform(-limit, limit, (2000, 64)).round().astype(dtype)
        graph_io = random.choice([-limit, limit], (2000, 64)).astype(dtype)
        for codes in (drawn, graph_io):
            assert np.abs(products(codes, weight, STEP)).max() <= bound
        worst = limit * np.sign(weight.codes.astype(np.float32)).T
        reached = np.abs(products(worst, weight, STEP)).max()
        assert reached == pytest.approx(bound, rel=1e-6)


def test_codes_at_their_ends_pass_float16_where_scales_stand_in_the_operator() -> None:
    """What was wrong: 64 products of 127 by 127 are 1,032,256, and float16 ends at 65,504."""
    weight = np.full((64, 8), 127.0, np.float32)
    vector = round_weight(weight, INT8, scale_dtype=FLOAT16)
    assert (vector.codes == 127).all() and vector.scale.shape == (8,) and vector.parts is None
    assert half_bound(vector, Form.VECTOR, STEP) == 64 * 127 * 127 == 1_032_256 > HALF_MAX
    with np.errstate(over="ignore"):
        sums = products(np.full((1, 64), 127), vector, STEP).astype(np.float16)
    assert np.isinf(sums).all()
    # the same weights with one factor for the sum, and the rest by channel afterwards
    channel = rounded(weight, Form.CHANNEL, INT8, STEP)
    bound = half_bound(channel, Form.CHANNEL, STEP)
    assert bound is not None and bound < HALF_MAX
    assert np.isfinite(products(np.full((1, 64), 127), channel, STEP).astype(np.float16)).all()
    np.testing.assert_allclose(channel.values(), weight, rtol=1e-3)


@EIGHT_BIT
@pytest.mark.parametrize("form", [Form.RESULT, Form.WEIGHTS, Form.FLOAT])
def test_what_writes_codes_or_multiplies_none_has_no_bound(
    form: Form, precision: Precision
) -> None:
    weight = round_weight(gaussian(), precision, scale_dtype=FLOAT16)
    assert half_bound(weight, form, STEP) is None


@EIGHT_BIT
@pytest.mark.parametrize("step", [1e-4, 1.0, 64.0])
def test_a_base_of_channels_alone_is_chosen_below_the_end(
    precision: Precision, step: float
) -> None:
    """Whatever is fed to it: the base shrinks with the step of what is read."""
    weight = gaussian(size=30.0)
    found = rounded(weight, Form.CHANNEL, precision, step)
    bound = half_bound(found, Form.CHANNEL, step)
    assert bound is not None and bound <= HALF_MAX
    largest = np.abs(weight).max() / code_limit(precision)
    assert found.parts is not None and found.parts.ratio is not None
    assert bool(float(found.parts.base) < 0.99 * largest) is (step >= 1)
    # the ratios make up for it
    steps = np.abs(weight).max(axis=0) / code_limit(precision)
    np.testing.assert_allclose(found.parts.values, steps, rtol=2e-3)


@EIGHT_BIT
def test_a_dead_channel_has_a_small_ratio_that_is_no_subnormal(precision: Precision) -> None:
    weight = gaussian()
    weight[:, 3] = 0
    weight[:, 5] *= 1e-7
    parts = scales_of(decision("a", Form.CHANNEL), weights={"a": weight}, precision=precision)["a"]
    assert parts.ratio is not None and parts.ratio.dtype == FLOAT16
    least = np.float16(2.0**-14)
    assert least == np.finfo(np.float16).smallest_normal
    np.testing.assert_array_equal(parts.ratio[[3, 5]], least)
    assert (np.delete(parts.ratio, [3, 5]) > 0.1).all()
    found = round_weight(weight, precision, scale_dtype=FLOAT16, parts=parts)
    assert not found.values()[:, 3].any() and np.isfinite(found.values()).all()


def squared_error(weight: np.ndarray, step: float) -> float:
    codes = np.clip(np.round(weight / step), -127, 127)
    return float(np.square(weight - codes * step).sum())


def test_one_step_clips_gaussian_weights_where_that_costs_less() -> None:
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    largest = float(np.abs(weight).max())
    step = tensor_scale(weight, INT8)
    assert 0.6 * largest / 127 <= step < largest / 127
    assert squared_error(weight, step) < 0.95 * squared_error(weight, largest / 127)
    # no other of a fine search is much better
    shares = np.linspace(0.5, 1.1, 200) * largest / 127
    assert squared_error(weight, step) < 1.02 * min(squared_error(weight, s) for s in shares)


@pytest.mark.parametrize(
    ("weight", "precision", "largest"),
    [
        (np.where(gaussian() > 0, 0.3, -0.3).astype(np.float32), INT8, 127),
        # steps of FP8 grow with the numbers: the largest cost no small one its bits
        (gaussian(), FP8, 448),
    ],
)
def test_one_step_clips_nothing_where_that_gains_nothing(
    weight: np.ndarray, precision: Precision, largest: int
) -> None:
    found = tensor_scale(weight, precision)
    assert found == pytest.approx(float(np.abs(weight).max()) / largest, rel=1e-6)


def test_layers_that_read_one_tensor_have_the_largest_step_of_them() -> None:
    weights = {"q": gaussian(0), "k": gaussian(1, 3.0), "v": gaussian(2), "other": gaussian(3)}
    found = scales_of(
        decision("q", Form.TENSOR),
        decision("k", Form.TENSOR),
        decision("v", Form.CHANNEL),
        decision("other", Form.TENSOR, source="y"),
        weights=weights,
    )
    wanted = np.float16(tensor_scale(weights["k"], INT8))
    assert [found[name].base for name in "qkv"] == [wanted] * 3
    assert [found[name].ratio is None for name in "qkv"] == [True, True, False]
    steps = np.abs(weights["v"]).max(axis=0) / 127
    np.testing.assert_allclose(found["v"].values, steps, rtol=2e-3)
    assert found["other"].base == np.float16(tensor_scale(weights["other"], INT8))


def test_what_leaves_in_codes_keeps_its_own_step() -> None:
    weights = {"features": gaussian(0), "norms": gaussian(1, 3.0)}
    found = scales_of(
        decision("features", Form.TENSOR), decision("norms", Form.RESULT), weights=weights
    )
    for name, weight in weights.items():
        assert found[name].base == np.float16(tensor_scale(weight, INT8))
        assert found[name].ratio is None
    assert found["norms"].base > 2 * found["features"].base


def test_a_layer_whose_row_is_cut_afterwards_is_one_number_of_float16_above() -> None:
    """Even with the very weights of another, TensorRT does not make one product of both."""
    weight = gaussian()
    found = scales_of(
        decision("k", Form.TENSOR, source="whole"),
        decision("q", Form.TENSOR, cut_from="whole"),
        weights={"q": weight, "k": weight},
    )
    assert found["q"].base == np.nextafter(np.float16(found["k"].base), np.float16(np.inf))
    assert found["q"].base > found["k"].base


def test_layers_of_the_old_form_and_float_ones_are_left_out() -> None:
    weights = {"a": gaussian(), "b": gaussian()}
    float_layer = Decision(layer("b", "x"), False, "", Form.TENSOR)
    assert scales_of(decision("a", Form.VECTOR), float_layer, weights=weights) == {}


@EIGHT_BIT
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32])
def test_a_base_is_a_number_of_the_graph_type(precision: Precision, dtype: np.dtype) -> None:
    zeros = np.zeros((64, 8), np.float32)
    for form in (Form.TENSOR, Form.CHANNEL, Form.RESULT, Form.WEIGHTS):
        parts = scales_of(
            decision("a", form), weights={"a": gaussian()}, precision=precision, dtype=dtype
        )["a"]
        assert parts.base.dtype == np.float32 and parts.base.shape == ()
        assert float(parts.base.astype(dtype)) == float(parts.base)
        if parts.ratio is not None:
            assert parts.ratio.dtype == dtype
        none = scales_of(
            decision("a", form), weights={"a": zeros}, precision=precision, dtype=dtype
        )["a"]
        assert none.base >= np.finfo(np.float16).smallest_normal or dtype != FLOAT16
        assert np.isfinite(none.values).all()
        assert not round_weight(zeros, precision, parts=none).values().any()


def test_steps_of_weights_alone_reach_each_channels_largest() -> None:
    weight = gaussian() * np.logspace(-2, 1, 8, dtype=np.float32)
    parts = scales_of(decision("a", Form.WEIGHTS), weights={"a": weight})["a"]
    found = round_weight(weight, INT8, scale_dtype=FLOAT16, parts=parts)
    assert (np.abs(found.codes.astype(int)).max(axis=0) >= 126).all()
    errors = np.abs(found.values() - weight).max(axis=0)
    assert (errors <= 0.51 * np.abs(weight).max(axis=0) / 127).all()
