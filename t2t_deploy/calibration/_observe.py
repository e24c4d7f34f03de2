"""What linear layers read, summed over pictures, and the range that its 8-bit codes get."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx

from t2t_deploy.calibration._layers import LinearLayer
from t2t_deploy.errors import CalibrationError

MAX_MOMENT_PICTURES = 128
"""Batches are summed until this many pictures are in; more of them change second moments little."""


def observed_model(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy whose outputs are these tensors, float32."""
    observed = copy.deepcopy(model)
    del observed.graph.output[:]
    observed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors
    )
    return observed


def sources(layers: Iterable[LinearLayer]) -> tuple[str, ...]:
    """The tensors that layers read, each once, in the graph's order."""
    return tuple(dict.fromkeys(layer.source for layer in layers))


@dataclass(slots=True)
class ChannelMaxima:
    """The largest magnitude of each channel of the tensors that layers read, (K,) float32 each."""

    channels: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Add the tensors of a batch of pictures. Raises CalibrationError for NaN or infinity."""
        for name, values in outputs.items():
            found = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
            _check_finite(name, found)
            before = self.channels.get(name)
            self.channels[name] = found if before is None else np.maximum(before, found)


@dataclass(slots=True)
class TensorSum:
    """What is known of one tensor of K channels.

    moments: (K, K) float32, the sum of x xT over its rows x; (0, 0) of a tensor that layers write.
    """

    histogram: MagnitudeHistogram
    moments: np.ndarray


@dataclass(slots=True)
class Observation:
    """Sums over the tensors that layers read; its size depends on the layers alone.

    pictures: how many are in the sums; the moments are of the first `MAX_MOMENT_PICTURES`.
    """

    sums: dict[str, TensorSum] = field(default_factory=dict)
    pictures: int = 0

    @classmethod
    def of(cls, layers: Sequence[LinearLayer], written: Iterable[LinearLayer] = ()) -> Observation:
        """Empty sums for the tensors that these layers read, and of what some of them write."""
        widths = {layer.result: 0 for layer in written}
        widths |= {layer.source: layer.inputs for layer in layers}
        return cls(
            {
                name: TensorSum(MagnitudeHistogram(), np.zeros((width, width), np.float32))
                for name, width in widths.items()
            }
        )

    def add(self, outputs: Mapping[str, np.ndarray], pictures: int) -> None:
        """Add the tensors of a batch of pictures. Raises CalibrationError for NaN or infinity."""
        keeps_moments = self.pictures < MAX_MOMENT_PICTURES
        for name, total in self.sums.items():
            values = outputs[name]
            magnitudes = np.abs(values)
            _check_finite(name, magnitudes.max(initial=0.0))
            total.histogram.add(magnitudes)
            if keeps_moments and total.moments.size:
                rows = values.reshape(-1, values.shape[-1])
                total.moments += rows.T @ rows
        self.pictures += pictures

    def to_arrays(self) -> dict[str, np.ndarray]:
        """As named arrays, to go on later."""
        arrays: dict[str, np.ndarray] = {"pictures": np.array(self.pictures)}
        for name, total in self.sums.items():
            arrays[f"counts:{name}"] = total.histogram.counts
            arrays[f"extent:{name}"] = np.array([total.histogram.top, total.histogram.largest])
            arrays[f"moments:{name}"] = total.moments
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Observation:
        """Read what `to_arrays` wrote. Raises CalibrationError where something is missing."""
        try:
            found = cls({}, int(arrays["pictures"]))
            for key, counts in arrays.items():
                kind, _, name = key.partition(":")
                if kind != "counts":
                    continue
                if counts.shape != (BINS,):
                    raise CalibrationError(
                        f"a histogram has {counts.shape} bins; expected {BINS}: calibrate again"
                    )
                top, largest = arrays[f"extent:{name}"].tolist()
                found.sums[name] = TensorSum(
                    MagnitudeHistogram(counts.copy(), top, largest),
                    arrays[f"moments:{name}"].copy(),
                )
        except (KeyError, ValueError) as err:
            raise CalibrationError(
                f"{err.args[0]} is missing or of another shape among the sums of a calibration: "
                "calibrate again"
            ) from err
        return found


def _check_finite(tensor: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"tensor {tensor} is NaN or infinite on one of the pictures; expected finite numbers: "
            "check the weights with t2t-deploy verify"
        )


BINS = 4096
# A top below this has a reciprocal beyond float32: values that small are counted as zeros.
_SMALLEST = float(np.finfo(np.float32).tiny) * BINS


@dataclass(slots=True)
class MagnitudeHistogram:
    """Counts of |x| in ``BINS`` bins of equal width from 0 to ``top``, a power of two.

    A value beyond ``top`` doubles it, pairs of bins becoming one. largest: the exact maximum.
    """

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    top: float = 0.0
    largest: float = 0.0

    def add(self, magnitudes: np.ndarray) -> None:
        """Count values >= 0 of any shape, float32. NaN and infinity are the caller's to refuse."""
        largest = float(magnitudes.max(initial=0.0))
        self.largest = max(self.largest, largest)
        self._reach(largest)
        if self.top == 0:  # zeros alone so far
            self.counts[0] += magnitudes.size
            return
        bins = (magnitudes.reshape(-1) * np.float32(BINS / self.top)).astype(np.int32)
        np.minimum(bins, BINS - 1, out=bins)
        self.counts += np.bincount(bins, minlength=BINS)

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64."""
        return (np.arange(BINS) + 0.5) * (self.top / BINS)

    def _reach(self, largest: float) -> None:
        if largest <= _SMALLEST:
            return
        if self.top == 0:
            self.top = 2.0 ** math.ceil(math.log2(largest))
        while self.top < largest:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), (0, BINS // 2))
            self.top *= 2


# -- ranges ---------------------------------------------------------------------------------------

INT8_LEVELS = 127
PERCENTILE = 99.99
# Ranges tried by mse, as shares of the largest magnitude.
_SHARES = np.linspace(0.2, 1.0, 161)
# Steps between the ranges tried by entropy, in bins.
_ENTROPY_STRIDE = 16


class RangeMethod(str, Enum):
    """How a range is chosen; each is symmetric around zero."""

    MINMAX = "minmax"
    """The largest magnitude seen: nothing is clipped."""
    PERCENTILE = "percentile"
    """The magnitude that 99.99 % of the values do not exceed."""
    ENTROPY = "entropy"
    """The range that keeps most of the distribution (Kullback-Leibler divergence)."""
    MSE = "mse"
    """The range of the smallest mean squared error, rounding and clipping together."""


def range_of(histogram: MagnitudeHistogram, method: RangeMethod) -> float:
    """The magnitude that the largest code stands for; next to nothing where all was zero."""
    if histogram.top == 0:
        return max(histogram.largest, float(np.finfo(np.float32).tiny))
    chosen = _METHODS[method](histogram)
    return min(chosen, histogram.largest)


def _percentile(histogram: MagnitudeHistogram) -> float:
    cumulative = np.cumsum(histogram.counts)
    index = int(np.searchsorted(cumulative, cumulative[-1] * (PERCENTILE / 100)))
    return float((index + 1) * histogram.top / BINS)


def _mse(histogram: MagnitudeHistogram) -> float:
    seen = histogram.counts > 0
    values, counts = histogram.centres[seen], histogram.counts[seen]
    ranges = _SHARES * histogram.largest
    errors = []
    for step in ranges / INT8_LEVELS:
        rounded = np.minimum(np.round(values / step), INT8_LEVELS) * step
        errors.append(float((counts * (values - rounded) ** 2).sum()))
    return float(ranges[int(np.argmin(errors))])


def _entropy(histogram: MagnitudeHistogram) -> float:
    """Smallest divergence of the clipped distribution from its 128-level version.

    Source: S. Migacz, 8-bit Inference with TensorRT (GTC 2017).
    """
    counts = histogram.counts.astype(np.float64)
    levels = INT8_LEVELS + 1
    used = int(np.flatnonzero(counts)[-1]) + 1
    stops = [*range(levels, used, _ENTROPY_STRIDE), max(used, levels)]
    divergences = [_divergence(counts, stop, levels) for stop in stops]
    return float(stops[int(np.argmin(divergences))] * histogram.top / BINS)


def _divergence(counts: np.ndarray, stop: int, levels: int) -> float:
    """KL(P || Q): P the first ``stop`` bins, what lies beyond in the last; Q those bins in levels.

    Each level's mass is spread over those of its bins that are not empty.
    """
    kept = counts[:stop]
    clipped = kept.copy()
    clipped[-1] += counts[stop:].sum()
    level = np.arange(stop) * levels // stop
    filled = kept > 0
    mass = np.bincount(level, weights=kept, minlength=levels)
    spread = np.bincount(level, weights=filled, minlength=levels)
    share = np.divide(mass, spread, out=np.zeros(levels), where=spread > 0)
    coded = np.where(filled, share[level], 0.0)
    p, q = clipped / clipped.sum(), coded / max(coded.sum(), 1.0)
    known = p > 0
    floor = 1e-12  # where clipped mass has no bin of its own
    return float((p[known] * np.log(p[known] / np.maximum(q[known], floor))).sum())


_METHODS: dict[RangeMethod, Callable[[MagnitudeHistogram], float]] = {
    RangeMethod.MINMAX: lambda histogram: histogram.largest,
    RangeMethod.PERCENTILE: _percentile,
    RangeMethod.ENTROPY: _entropy,
    RangeMethod.MSE: _mse,
}
