"""Which layer of a graph differs first from the reference, and by how much."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._codec import to_plain
from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import DEFAULT_BACKEND, REFERENCE_BACKEND, why_not_runnable
from t2t_deploy.types import QUANTIZED, Precision, Status
from t2t_deploy.verify._compare import TAIL_TOLERANCE, tail_fault
from t2t_deploy.verify._layer_tensors import (
    InstrumentedGraph,
    LayerValues,
    instrumented_graph,
)
from t2t_deploy.verify._nodewise_session import stored_non_finite
from t2t_deploy.verify._pictures import PictureSet, nodewise_pictures, pictures_for
from t2t_deploy.workspace import Manifest

if TYPE_CHECKING:
    from t2t_deploy.model import T2TViT
    from t2t_deploy.verify._stepwise import LayerError


# How many times its own sensitivity, plus one rounding, a layer may be off: in all its numbers, and
# in its worst channel. The largest measured of right graphs, of both: fp32 8 (5.9 and 18 with
# weights trained on digits, 5.7 and 12 in full size), fp16 1.4, bf16 1.7 and 2.6, static int8 9.7
# and 7.3 on ranges of digits, 14 on those of eight pictures, dynamic 2.2 and 3.8, fp8 3.
MARGINS = {
    Precision.FP32: (16, 32),  # float32 sums in another order
    Precision.FP16: (8, 16),  # several roundings inside a layer
    Precision.BF16: (8, 16),
    Precision.INT8: (16, 32),  # ranges clip what the pictures they are of did not have
    Precision.FP8: (8, 16),
    Precision.INT8_WEIGHTS: (16, 32),  # weights alone are rounded to 8 bits
    Precision.FP8_WEIGHTS: (8, 16),
}
# The largest relative error of one rounding, of 24, 11 and 8 bits of significand.
_ROUNDINGS = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-11, Precision.BF16: 2.0**-8}


@dataclass(frozen=True, slots=True)
class ComparedLayer:
    """A layer of both: module path of the reference, tensor of the graph.

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
        values = to_plain(self)
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
        agreeing = list(itertools.takewhile(lambda layer: not layer.differs, self.layers))
        return agreeing[-1] if agreeing and len(agreeing) < len(self.layers) else None

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
    margin, channel_margin = MARGINS[precision]
    once = _ROUNDINGS[base] + math.sqrt(error.terms) * _ROUNDINGS[Precision.FP32]
    return ComparedLayer(
        layer=error.layer,
        tensor=tensor,
        rel_l2=error.rel_l2,
        limit=margin * (error.sensitivity + once),
        channel=error.channel,
        channel_error=error.channel_error,
        channel_limit=channel_margin * (error.channel_sensitivity + once),
        on=on,
        non_finite=error.non_finite,
    )


def not_located(reason: str) -> Located:
    """Nothing was compared, which is not that all agrees."""
    return Located(Status.NOT_RUN, reason)


# -- of a file -----------------------------------------------------------------------------------

_PREPROCESSING = "preprocessing"


def locate_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    progress: Progress = silent,
) -> Located:
    """Compare every layer of an ONNX file with the reference's, each given the same input.

    All that have a tensor in both, in one run of the graph with those tensors as outputs. Halving
    the list of layers would run it several times and trust that an error persists, which a softmax
    or a LayerNorm may undo.

    On noise, a photograph and cream, or on other pictures; the worst one counts. An engine, or a
    file without the runtime to compute its tensors, is reported as not run.
    """
    if manifest.kind == "engine":
        return not_located("an engine shows no tensors; name the ONNX file it is of")
    reason = why_not_runnable(DEFAULT_BACKEND) or why_not_runnable(REFERENCE_BACKEND)
    if reason is not None:
        return not_located(reason)

    from t2t_deploy.model import config_from_dict, load_reference
    from t2t_deploy.verify._stepwise import reference_layers

    model = read_onnx(path, external_data=True)
    config = config_from_dict(manifest.config)
    chosen = pictures_for(manifest, pictures, nodewise_pictures)
    every = reference_layers(config)
    found: list[list[ComparedLayer]] = []
    faults = []
    with instrumented_graph(model, manifest, every) as graph:
        reference = load_reference(weights, config).double()
        for done, (name, picture) in enumerate(zip(chosen.names, chosen.pictures, strict=True)):
            values = graph.run(picture)
            found.append(_compared(reference, graph, manifest, name, picture, values))
            tail = graph.graph_io.tail
            if tail.appended and (
                fault := tail_fault(values.outputs, values.outputs[tail.output], tail)
            ):
                faults.append(f"the tail is wrong on {name}: {fault}")
            progress.progress("comparing layers", done + 1, len(chosen.names))
    result = Located(
        Status.PASSED,
        layers=tuple(
            max(same, key=lambda layer: layer.excess) for same in zip(*found, strict=True)
        ),
        not_compared=tuple(layer for layer in every if layer not in graph.tensors),
        stored_non_finite=stored_non_finite(model),
        pictures=chosen.names,
    )
    problems = [*_problems(result), *faults[:1]]
    if not problems:
        return result
    return dataclasses.replace(result, status=Status.FAILED, reason="; ".join(problems))


def _problems(result: Located) -> Iterator[str]:
    """What the layers and the stored tensors show to be wrong."""
    if result.stored_non_finite:
        yield f"NaN or infinity is stored in {', '.join(result.stored_non_finite[:3])}"
    first, last = result.first, result.last_agreeing
    if first is not None:
        before = "the picture" if last is None else last.layer
        yield (
            f"{first.layer} differs first, on {first.on} ({first.words}); the last that agrees is "
            f"{before}"
        )


def _compared(
    reference: T2TViT,
    graph: InstrumentedGraph,
    manifest: Manifest,
    name: str,
    picture: np.ndarray,
    values: LayerValues,
) -> list[ComparedLayer]:
    """Every layer for a picture (3, S, S) float32, the graph's own preprocessing too.

    reference: float64. values: what the graph computed for it.
    """
    torch = require("torch")
    from t2t_deploy.verify._stepwise import layer_errors

    precision = base = manifest.precision
    if precision in QUANTIZED:  # what activations are rounded to; ONNX Runtime lowers nothing
        base = Precision.FP32 if manifest.base else Precision(manifest.quantization.base)
    seen = picture[None].astype(np.float64)
    compared = []
    if graph.graph_io.embed_preprocess:
        compared.append(_preprocessing(values.picture, seen, name))
        if np.isfinite(values.picture).all():
            seen = values.picture
    eight_bit = precision.value if precision in QUANTIZED else None
    layers = {layer: torch.from_numpy(own) for layer, own in values.layers.items()}
    for error in layer_errors(
        reference, torch.from_numpy(seen), layers, _ROUNDINGS[base], eight_bit
    ):
        tensor = graph.tensors[error.layer].tensor
        compared.append(compared_layer(error, tensor, name, precision, base))
    return compared


def _preprocessing(actual: np.ndarray, expected: np.ndarray, on: str) -> ComparedLayer:
    """The picture as a graph normalises it, its channels last for the comparison."""
    from t2t_deploy.graph import NORMALISED_NAME

    off, channels = actual - expected, (0, 2, 3)
    norm = max(float(np.sqrt(np.square(expected).sum())), np.finfo(np.float64).tiny)
    errors = np.sqrt(np.square(off).sum(axis=channels)) * np.sqrt(off.shape[1]) / norm
    worst = int(errors.argmax())
    bad = int(actual.size - np.isfinite(actual).sum())
    return ComparedLayer(
        layer=_PREPROCESSING,
        tensor=NORMALISED_NAME,
        rel_l2=np.inf if bad else float(np.sqrt(np.square(off).sum())) / norm,
        limit=TAIL_TOLERANCE,
        channel=worst,
        channel_error=np.inf if bad else float(errors[worst]),
        channel_limit=TAIL_TOLERANCE,
        on=on,
        non_finite=bad,
    )
