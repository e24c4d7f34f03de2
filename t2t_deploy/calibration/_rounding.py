"""Weights on an 8-bit grid, the error of each row paid back by the rows not yet rounded.

Rounding every weight to the nearest code minimises the error of the weights. What counts is the
error of the products with what the layer really reads: rows of the weight whose inputs move
together can make up for each other. With H = sum of x xT over the rows x a layer reads, rounding
row i by e costs least if the rows j after it move by -e (inv H)_ij / (inv H)_ii, inverses taken
over the rows that are left.

Source: Frantar et al., GPTQ (ICLR 2023), with its Cholesky form, damping and row order.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from t2t_deploy.types import Precision

INT8_MAX = 127
FP8_MAX = 448.0
"""Largest finite number of E4M3."""
# Share of the mean of H's diagonal that is added to it.
_DAMPING = 0.01
_BLOCK = 128


@dataclass(frozen=True, slots=True)
class WeightScale:
    """The steps of a weight's codes: base times ratio.

    base: () float32. ratio: (outputs,) in the graph's type; None where one scale does for all.
    """

    base: np.ndarray
    ratio: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """(outputs,) or (), float32."""
        if self.ratio is None:
            return self.base
        return np.asarray(self.base * self.ratio.astype(np.float32))


@dataclass(frozen=True, slots=True)
class RoundedWeight:
    """codes (inputs, outputs), int8 or float8_e4m3fn, times scale: (outputs,) or (), float32.

    parts: how the scale was put together, where it was.
    """

    codes: np.ndarray
    scale: np.ndarray
    parts: WeightScale | None = None

    def largest_sum(self) -> float:
        """What a row of codes times these codes can reach, all of them at their largest."""
        codes = np.abs(self.codes.astype(np.float32)).sum(axis=0, dtype=np.float64)
        return float(codes.max(initial=0.0)) * codes_max_of(self.codes.dtype)

    def values(self) -> np.ndarray:
        """The weight the codes stand for, float32."""
        return np.asarray(self.codes.astype(np.float32) * self.scale)


def storable_scale(scale: np.ndarray | float, dtype: np.dtype) -> np.ndarray:
    """A step as a graph of this type stores it: rounded to it, and no smaller than it can tell."""
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)  # type: ignore[no-untyped-call]
    return np.asarray(np.maximum(np.asarray(scale, np.float64), smallest).astype(dtype))


def round_weight(
    weight: np.ndarray,
    precision: Precision,
    moments: np.ndarray | None = None,
    *,
    scale_dtype: np.dtype = np.dtype(np.float32),  # noqa: B008  # immutable
    parts: WeightScale | None = None,
) -> RoundedWeight:
    """A weight (inputs, outputs) on the grid of int8 or fp8.

    moments: H, (inputs, inputs); without it each weight goes to the nearest code. scale_dtype: the
    type of the graph that the codes are for. parts: the steps; without them int8 has a scale for
    each output and fp8 one in all, from the largest weights.
    """
    weight = weight.astype(np.float32)
    if parts is None:
        largest = np.abs(weight).max(axis=None if precision is Precision.FP8 else 0)
        scale = storable_scale(largest / code_limit(precision), scale_dtype).astype(np.float32)
    else:
        scale = parts.values
    if moments is None:
        return RoundedWeight(_codes(weight / scale, precision), scale, parts)
    order, factor = _factor(moments)
    left = weight[order]
    codes = np.empty(weight.shape, _dtype(precision))
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for row in range(start, stop):
            code = _codes(left[row] / scale, precision)
            codes[order[row]] = code
            error = (left[row] - code.astype(np.float32) * scale) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return RoundedWeight(codes, scale, parts)


def code_limit(precision: Precision) -> float:
    """The largest code."""
    return FP8_MAX if precision is Precision.FP8 else INT8_MAX


def codes_max_of(dtype: np.dtype) -> float:
    """The largest code of codes that are stored."""
    return INT8_MAX if dtype == np.int8 else FP8_MAX


def _factor(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of rows, largest diagonal first, and the upper Cholesky factor of H's inverse."""
    h = moments.astype(np.float64)
    diagonal = np.diag(h).copy()
    unread = diagonal <= 0  # an input that is always zero: its row may round as it likes
    h[unread, unread] = 1.0
    order = np.argsort(-diagonal, kind="stable")
    h = h[np.ix_(order, order)]
    h[np.diag_indices_from(h)] += _DAMPING * (diagonal.mean() or 1.0)
    return order, np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)


def _codes(values: np.ndarray, precision: Precision) -> np.ndarray:
    if precision is Precision.FP8:
        return np.asarray(np.clip(values, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn))
    return np.asarray(np.clip(np.round(values), -INT8_MAX, INT8_MAX).astype(np.int8))


def _dtype(precision: Precision) -> np.dtype:
    return np.dtype(ml_dtypes.float8_e4m3fn if precision is Precision.FP8 else np.int8)
