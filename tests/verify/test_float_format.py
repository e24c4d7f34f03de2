"""Rounding to the types of a graph, against numpy and against the bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from t2t_deploy.verify._typed_graph import BFLOAT16, FLOAT16, FLOAT32, FloatFormat


def f32(values: object) -> np.ndarray:
    return np.asarray(values, np.float32)


def bfloat16_by_hand(values: np.ndarray) -> np.ndarray:
    """Round to nearest even on the bits: the upper half of a float32."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return kept.astype(np.uint32).view(np.float32)


def test_bfloat16_rounding_is_exact() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    ties = (generator.integers(0, 2**16, 20_000, dtype=np.uint64) << 16 | 0x8000).astype(np.uint32)
    values = np.concatenate((bits, ties)).view(np.float32)
    values = values[np.isfinite(values)]
    found = BFLOAT16.round(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bfloat16_by_hand(values))
    np.testing.assert_array_equal(found, values.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert not np.array_equal(found, values)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (65504, 65504),
        (65519.996, 65504),
        (65520, np.inf),  # half way to the next that fp16 does not have
        (-70000, -np.inf),
        (1 + 2**-11, 1),  # a tie goes to the even one
        (1 + 3 * 2**-11, 1 + 2**-9),
        (2.0**-24, 2.0**-24),
        (2.0**-25, 0),
        (2.0**-25 * 1.001, 2.0**-24),
    ],
)
def test_float16_rounding(value: float, rounded: float) -> None:
    assert FLOAT16.round(f32([value]))[0] == np.float32(rounded)


def test_float16_rounding_is_exact() -> None:
    """Against numpy's: any numbers, and each of the type with its middles and their neighbours."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    near = np.concatenate((halves, middles, np.nextafter(middles, 0), np.nextafter(middles, 9e9)))
    extreme = f32([65519.996, 65520, 1e9, np.inf])
    values = np.concatenate((bits.view(np.float32), near, -near, extreme, -extreme, f32([np.nan])))
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = values.astype(np.float16).astype(np.float32)
    found = FLOAT16.round(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    numbers = ~np.isnan(wanted)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(wanted[numbers]))


@pytest.mark.parametrize("form", [FLOAT16, BFLOAT16], ids=lambda form: form.name)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4)])
def test_rounding_keeps_the_shape(form: FloatFormat, shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1 / 3, np.float32).T
    found = form.round(values)
    assert (found.shape, found.dtype) == (values.shape, np.float32)
    assert np.all(found == form.round(f32([1 / 3]))[0])


def test_the_ends_of_the_types() -> None:
    for form, dtype in ((FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)):
        info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # as the package has it
        assert (form.max, form.smallest_normal) == (float(info.max), float(info.smallest_normal))
    assert FLOAT32.max == float(np.finfo(np.float32).max)
    assert FLOAT32.round(f32([0.1]))[0] == np.float32(0.1)
