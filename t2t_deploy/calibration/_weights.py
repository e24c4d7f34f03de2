"""The steps of weights' codes, and weights rounded to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from t2t_deploy.calibration._forms import Form
from t2t_deploy.calibration._layers import Decision
from t2t_deploy.types import HALF_MAX, Precision

INT8_MAX = 127
FP8_MAX = 448.0
"""Largest finite number of E4M3."""
_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
# Share of the mean of H's diagonal that is added to it.
_DAMPING = 0.01
_BLOCK = 128
# Shares of the largest weight that a single scale is tried at: beyond it weights are clipped.
_CLIPS = np.linspace(0.6, 1.0, 21)
# The smallest ratio of a channel's steps to the base: below it float16 is subnormal.
_LEAST_RATIO = 2.0**-14


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

    def values(self) -> np.ndarray:
        """The weight the codes stand for, float32."""
        return np.asarray(self.codes.astype(np.float32) * self.scale)


def storable_scale(scale: np.ndarray | float, dtype: np.dtype) -> np.ndarray:
    """A step as a graph of this type stores it: rounded to it, and never subnormal."""
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

    The error of each row is paid back by the rows not yet rounded: rows whose inputs move together
    can make up for each other. With H = sum of x xT over the rows x a layer reads, rounding row i
    by e costs least if the rows j after it move by -e (inv H)_ij / (inv H)_ii, inverses taken over
    the rows that are left. Source: Frantar et al., GPTQ (ICLR 2023), with its Cholesky form,
    damping and row order.

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
    codes = np.empty(weight.shape, _FP8 if precision is Precision.FP8 else np.int8)
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
        return np.asarray(np.clip(values, -FP8_MAX, FP8_MAX).astype(_FP8))
    return np.asarray(np.clip(np.round(values), -INT8_MAX, INT8_MAX).astype(np.int8))


def weight_scales(
    decisions: Sequence[Decision],
    weights: Mapping[str, np.ndarray],
    steps: Mapping[str, float],
    precision: Precision,
    dtype: np.dtype,
) -> dict[str, WeightScale]:
    """Steps for the quantised layers whose form has one scale for what the product writes.

    What it writes in 16 bit must not pass its end whatever is fed to it: `half_bound` is the proof.

    weights: by layer, (inputs, outputs). steps: of the codes of each tensor that layers read.
    dtype: of the graph. Layers that read one tensor share their base, so that TensorRT makes one
    product of them; where the result leaves in codes each has its own.
    """
    groups: dict[tuple[str, bool], list[Decision]] = {}
    found: dict[str, WeightScale] = {}
    for decision in decisions:
        if not decision.quantised or decision.form is Form.VECTOR:
            continue
        name, weight = decision.layer.name, weights[decision.layer.name]
        if decision.form is Form.WEIGHTS:
            base = float(storable_scale(_steepest(weight, precision), dtype))
            found[name] = _by_channel(weight, precision, dtype, base)
        elif decision.form is Form.RESULT:
            step = storable_scale(tensor_scale(weight, precision), dtype)
            found[name] = WeightScale(step.astype(np.float32))
        else:
            # What reads all rows for one stays a product of its own, by a step of its own: merged
            # with the others by TensorRT-RTX, all of them are copied afterwards.
            key = (decision.layer.ranged, decision.layer.cut_from is not None)
            groups.setdefault(key, []).append(decision)
    for (source, alone), group in groups.items():
        needed = [
            tensor_scale(weights[d.layer.name], precision)
            for d in group
            if d.form is not Form.CHANNEL
        ]
        steepest = max(_steepest(weights[d.layer.name], precision) for d in group)
        stored = storable_scale(max(needed, default=steepest), dtype)
        if not needed:  # all of them by channel
            # sums of nothing but largest codes, times this, are the end of float16
            inputs = max(d.layer.inputs for d in group)
            limit = HALF_MAX / (code_limit(precision) ** 2 * inputs * steps[source])
            stored = storable_scale(min(float(stored), limit), dtype)
            if float(stored) > limit:
                stored = np.nextafter(stored, np.zeros((), dtype))
        if alone:
            stored = np.nextafter(stored, np.asarray(np.inf, dtype))
        shared = stored.astype(np.float32)
        for decision in group:
            name = decision.layer.name
            if decision.form is Form.CHANNEL:
                found[name] = _by_channel(weights[name], precision, dtype, float(shared))
            else:
                found[name] = WeightScale(shared)
    return found


def _steepest(weight: np.ndarray, precision: Precision) -> float:
    """The step at which the largest weight is the largest code."""
    return float(np.abs(weight).max()) / code_limit(precision)


def _by_channel(
    weight: np.ndarray, precision: Precision, dtype: np.dtype, base: float
) -> WeightScale:
    """A base and ratios so that each output's largest weight is its largest code."""
    steps = np.abs(weight).max(axis=0) / code_limit(precision)
    ratio = np.maximum(steps / base, _LEAST_RATIO).astype(dtype)
    return WeightScale(np.asarray(base, np.float32), ratio)


def tensor_scale(weight: np.ndarray, precision: Precision) -> float:
    """The step of the smallest squared error, rounding to the nearest and clipping together."""
    sizes = np.abs(np.asarray(weight, np.float32)).ravel()
    largest = float(sizes.max(initial=0.0)) or float(np.finfo(np.float32).tiny)
    if precision is Precision.FP8:
        return largest / code_limit(precision)
    steps = _CLIPS * largest / INT8_MAX
    errors = [
        float(np.square(sizes - np.minimum(np.round(sizes / step), INT8_MAX) * step).sum())
        for step in steps
    ]
    return float(steps[int(np.argmin(errors))])


def half_bound(weight: RoundedWeight, form: Form, step: float) -> float | None:
    """The largest magnitude that a product can write in 16 bit, whatever codes it reads.

    step: of the activation's codes. None where it writes codes, or no product of codes is. A scale
    in the operator counts for nothing: the bare sums may be written (see `Form`).
    """
    if form is Form.RESULT or not form.reads_codes:
        return None
    factor = 1.0 if weight.parts is None else float(weight.parts.base) * step
    sums = np.abs(weight.codes.astype(np.float32)).sum(axis=0, dtype=np.float64)
    largest = FP8_MAX if weight.codes.dtype == _FP8 else INT8_MAX
    return float(sums.max(initial=0.0)) * largest * factor
