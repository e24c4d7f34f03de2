"""The steps of weights' codes, given how each product is written.

What a product writes in 16 bit must not pass its end whatever is fed to it: the steps are chosen
for that here, and `half_bound` is the proof once the codes are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from t2t_deploy.calibration._forms import Form
from t2t_deploy.calibration._layers import Decision
from t2t_deploy.calibration._rounding import (
    RoundedWeight,
    WeightScale,
    code_limit,
    storable_scale,
)
from t2t_deploy.types import HALF_MAX, Precision

# Shares of the largest weight that a single scale is tried at: beyond it weights are clipped.
_CLIPS = np.linspace(0.6, 1.0, 21)
# The smallest ratio of a channel's steps to the base: below it float16 is subnormal.
_LEAST_RATIO = 2.0**-14


def weight_scales(
    decisions: Sequence[Decision],
    weights: Mapping[str, np.ndarray],
    steps: Mapping[str, float],
    precision: Precision,
    dtype: np.dtype,
) -> dict[str, WeightScale]:
    """Steps for the quantised layers whose form has one scale for what the product writes.

    weights: by layer, (inputs, outputs). steps: of the codes of each tensor that layers read.
    dtype: of the graph. Layers that read one tensor share their base, so that TensorRT makes one
    product of them; where the result leaves in codes each has its own.
    """
    groups: dict[tuple[str, bool], list[Decision]] = {}
    found: dict[str, WeightScale] = {}
    for decision in decisions:
        if not decision.quantised or decision.form is Form.VECTOR:
            continue
        name = decision.layer.name
        if decision.form is Form.WEIGHTS:
            largest = float(np.abs(weights[name]).max()) / code_limit(precision)
            base = float(storable_scale(largest, dtype))
            found[name] = _by_channel(weights[name], precision, dtype, base)
        elif decision.form is Form.RESULT:
            base = tensor_scale(weights[name], precision)
            found[name] = WeightScale(storable_scale(base, dtype).astype(np.float32))
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
        steepest = [
            float(np.abs(weights[d.layer.name]).max()) / code_limit(precision)
            for d in group
            if d.form is Form.CHANNEL
        ]
        stored = storable_scale(max(needed or steepest), dtype)
        if not needed:  # all of them by channel
            # sums of nothing but largest codes, times this, are the end of float16
            inputs = max(d.layer.inputs for d in group)
            limit = HALF_MAX / (code_limit(precision) ** 2 * inputs * steps[source])
            if float(stored) > limit:
                stored = storable_scale(limit, dtype)
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
    limit = code_limit(precision)
    steps = _CLIPS * largest / limit
    errors = [
        float(np.square(sizes - np.minimum(np.round(sizes / step), limit) * step).sum())
        for step in steps
    ]
    return float(steps[int(np.argmin(errors))])


def half_bound(weight: RoundedWeight, form: Form, step: float) -> float | None:
    """The largest magnitude that a product can write in 16 bit, whatever codes it reads.

    step: of the activation's codes. None where it writes codes, or no product of codes is. A scale
    in the operator counts for nothing: the bare sums may be written (module `_forms`).
    """
    if form is Form.RESULT or not form.reads_codes:
        return None
    factor = 1.0 if weight.parts is None else float(weight.parts.base) * step
    return weight.largest_sum() * factor
