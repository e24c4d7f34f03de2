"""Which layer of a graph differs first from the reference, and by how much.

Every layer that has a tensor in both is compared, in one run of the graph with those tensors as
outputs, and the reference's layer is given what the graph's layer before it gave
(`model/_stepwise.py`). Halving the list of layers would run the graph several times and trust that
an error persists, which a softmax or a LayerNorm may undo; one pass over all layers costs two runs
of the reference for each picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2t_deploy.types import Precision, Status

if TYPE_CHECKING:
    from t2t_deploy.model import LayerError


@dataclass(frozen=True, slots=True)
class Margin:
    """How many times its own sensitivity, plus one rounding, a layer may be off, and why so much.

    rel_l2: of all its numbers; channel: of its worst channel.
    """

    rel_l2: float
    channel: float
    because: str


# The largest measured of right graphs, in rel_l2 and in a channel: fp32 8 (5.9 and 18 with weights
# trained on digits, 5.7 and 12 in full size), fp16 1.4, bf16 1.7 and 2.6, static int8 9.7 and 7.3
# on ranges of digits, 14 on those of eight pictures, dynamic 2.2 and 3.8, fp8 3.
MARGINS = {
    Precision.FP32: Margin(16, 32, "float32 sums in another order"),
    Precision.FP16: Margin(8, 16, "several roundings inside a layer"),
    Precision.BF16: Margin(8, 16, "several roundings inside a layer"),
    Precision.INT8: Margin(16, 32, "ranges clip what the pictures they are of did not have"),
    Precision.FP8: Margin(8, 16, "ranges clip what the pictures they are of did not have"),
    Precision.INT8_WEIGHTS: Margin(16, 32, "weights alone are rounded to 8 bits"),
    Precision.FP8_WEIGHTS: Margin(8, 16, "weights alone are rounded to 8 bits"),
}
# float32, float16, bfloat16: 24, 11 and 8 bits of significand
_ROUNDINGS = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}


def rounding_of(precision: Precision) -> float:
    """The largest relative error of one rounding to a float type."""
    return _ROUNDINGS[precision]


@dataclass(frozen=True, slots=True)
class ComparedLayer:
    """A layer in both worlds: module path of the reference, tensor of the graph.

    rel_l2, limit: its own error, and what its precision may make of it; channel_error,
    channel_limit: the same of its worst channel. on: the worst picture. non_finite: how many
    numbers of the graph's tensor are NaN or infinite.
    """

    layer: str
    tensor: str
    rel_l2: float
    limit: float
    channel: int
    channel_error: float
    channel_limit: float
    on: str
    non_finite: int = 0

    @property
    def excess(self) -> float:
        """Error over limit, of all numbers or of the worst channel; above 1 the layer differs."""
        return max(self.rel_l2 / self.limit, self.channel_error / self.channel_limit)

    @property
    def differs(self) -> bool:
        """Whether it is further off than its precision can make it."""
        return not self.excess <= 1.0

    @property
    def words(self) -> str:
        """How far it is off, for a message."""
        if self.non_finite:
            return f"{self.non_finite} numbers of tensor {self.tensor} are NaN or infinite"
        text = f"tensor {self.tensor}: relative error {self.rel_l2:.1e}"
        if self.rel_l2 <= self.limit:
            return (
                f"{text}, of channel {self.channel} {self.channel_error:.1e}, at most "
                f"{self.channel_limit:.1e} expected"
            )
        return f"{text}, at most {self.limit:.1e} expected"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an error that is not finite is null."""
        values = dataclasses.asdict(self)
        for name in ("rel_l2", "channel_error"):
            if not math.isfinite(values[name]):
                values[name] = None
        return {**values, "differs": self.differs}


@dataclass(frozen=True, slots=True)
class Located:
    """All layers of a graph, in order, and the verdict on them.

    not_compared: layers of the reference that a rewrite folded away. stored_non_finite: stored
    tensors of the graph that hold NaN or infinity.
    """

    status: Status
    reason: str | None = None
    layers: tuple[ComparedLayer, ...] = ()
    not_compared: tuple[str, ...] = ()
    stored_non_finite: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    @property
    def first(self) -> ComparedLayer | None:
        """The first layer that differs."""
        return next((layer for layer in self.layers if layer.differs), None)

    @property
    def last_agreeing(self) -> ComparedLayer | None:
        """The layer before it; None where the first one differs, or none does."""
        first = self.first
        if first is None:
            return None
        place = self.layers.index(first)
        return self.layers[place - 1] if place else None

    def summary(self) -> dict[str, Any]:
        """The verdict without the other layers, for a manifest."""
        first, last = self.first, self.last_agreeing
        return {
            "status": self.status.value,
            "reason": self.reason,
            "first": None if first is None else first.to_dict(),
            "last_agreeing": None if last is None else last.to_dict(),
            "pictures": list(self.pictures),
        }

    def to_dict(self) -> dict[str, Any]:
        """The ``located`` object of the JSON output."""
        return {
            **self.summary(),
            "stored_non_finite": list(self.stored_non_finite),
            "not_compared": list(self.not_compared),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def compared_layer(
    error: LayerError, tensor: str, on: str, precision: Precision, base: Precision
) -> ComparedLayer:
    """A layer's error beside its limit: the margin of its precision times what one rounding does.

    base: what activations are rounded to. Sums over n tokens are float32 and drift by sqrt(n)
    roundings of it.
    """
    margin = MARGINS[precision]
    once = rounding_of(base) + math.sqrt(error.terms) * rounding_of(Precision.FP32)
    return ComparedLayer(
        layer=error.layer,
        tensor=tensor,
        rel_l2=error.rel_l2,
        limit=margin.rel_l2 * (error.sensitivity + once),
        channel=error.channel,
        channel_error=error.channel_error,
        channel_limit=margin.channel * (error.channel_sensitivity + once),
        on=on,
        non_finite=error.non_finite,
    )


def not_located(reason: str) -> Located:
    """Nothing was compared, which is not that all agrees."""
    return Located(Status.NOT_RUN, reason)


def located(
    pictures: Sequence[tuple[str, Sequence[ComparedLayer]]],
    *,
    not_compared: Iterable[str] = (),
    stored_non_finite: Iterable[str] = (),
    faults: Iterable[str] = (),
) -> Located:
    """Verdict over pictures, each with the same layers in the same order; the worst one counts.

    faults: what else is wrong with the graph.
    """
    layers = tuple(
        max(same, key=lambda layer: layer.excess)
        for same in zip(*(found for _, found in pictures), strict=True)
    )
    result = Located(
        Status.PASSED,
        layers=layers,
        not_compared=tuple(not_compared),
        stored_non_finite=tuple(stored_non_finite),
        pictures=tuple(name for name, _ in pictures),
    )
    first, last = result.first, result.last_agreeing
    parts = []
    if result.stored_non_finite:
        parts.append(f"NaN or infinity is stored in {', '.join(result.stored_non_finite[:3])}")
    if first is not None:
        before = "the picture" if last is None else last.layer
        parts.append(
            f"{first.layer} differs first, on {first.on} ({first.words}); the last that agrees is "
            f"{before}"
        )
    parts += faults
    if not parts:
        return result
    return dataclasses.replace(result, status=Status.FAILED, reason="; ".join(parts))
