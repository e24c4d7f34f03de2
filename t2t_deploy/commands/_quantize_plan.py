"""What to quantise and how, before anything takes time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from t2t_deploy._progress import Progress, silent
from t2t_deploy.calibration import (
    ACCURATE,
    BALANCED,
    COMPACT,
    FP8_BALANCED,
    FP8_COMPACT,
    IN_OPERATOR,
    WEIGHTS_BALANCED,
    WEIGHTS_COMPACT,
    Calibration,
    Placement,
    RangeMethod,
    load_calibration,
)
from t2t_deploy.commands._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    calibration_images,
    quantizable_export,
)
from t2t_deploy.errors import UsageError
from t2t_deploy.pictures import ImageSet, LabelledSet, evaluation_images
from t2t_deploy.types import QUANTIZED, Precision, Target
from t2t_deploy.workspace import Manifest, Workspace


class QuantizationMode(str, Enum):
    """When the range of an activation is chosen."""

    STATIC = "static"
    """Beforehand, from pictures."""
    DYNAMIC = "dynamic"
    """At run time, for each tensor of each call: ONNX Runtime on the CPU."""


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """What to quantise and how; None means the default named in the field's comment."""

    artifact: Path | None = None  # the newest export
    precision: Precision = Precision.INT8
    mode: QuantizationMode = QuantizationMode.STATIC
    target: Target | None = None  # cpu for dynamic, tensorrt for fp8, else the artifact's
    base: Precision | None = None  # fp16 for tensorrt, else fp32
    images: Path | None = None
    count: int = DEFAULT_COUNT
    method: RangeMethod = DEFAULT_METHOD
    ranges: Path | None = None
    equalise: bool = True
    placement: str | None = None  # balanced, for tensorrt alone
    max_drop: float | None = None  # points; every layer the policy names is quantised
    eval_images: Path | None = None
    measure_speed: bool = True
    output: Path | None = None  # the workspace
    force: bool = False


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """A request with its defaults filled in, its files found.

    images, ranges: what tells ranges, at most one of them. evaluation: pictures to judge by, none
    of which is calibrated on.
    """

    source: Manifest
    precision: Precision
    mode: QuantizationMode
    target: Target
    base: Precision
    batch: int | None
    images: ImageSet | None
    ranges: Calibration | None
    evaluation: LabelledSet | None
    placement: Placement = IN_OPERATOR


def quantization_target(
    precision: Precision, mode: QuantizationMode, asked: Target | None, source: Target
) -> Target:
    """What a quantised graph is made for where nothing was asked: see `QuantizeRequest`."""
    if asked is not None:
        return asked
    if mode is QuantizationMode.DYNAMIC:
        return Target.CPU
    engines_only = precision.codes is Precision.FP8 or precision.weights_only
    return Target.TENSORRT if engines_only else source


def plan_quantization(
    workspace: Workspace, request: QuantizeRequest, progress: Progress = silent
) -> QuantizationPlan:
    """Fill in the defaults and find the files, before anything takes time.

    Raises UsageError where options do not go together, ArtifactError, ImageError, CalibrationError.
    """
    dynamic = request.mode is QuantizationMode.DYNAMIC
    fp8 = request.precision is Precision.FP8
    if request.precision not in QUANTIZED:
        raise UsageError(
            f"{request.precision.value} is no type to quantise to; expected int8 or fp8: export "
            f"with --precision {request.precision.value} instead"
        )
    if request.precision.weights_only and dynamic:
        raise UsageError(
            f"{request.precision.value} quantises no activation, so that there is no range to take "
            "at run time: leave --mode out"
        )
    if fp8 and dynamic:
        raise UsageError("fp8 has no dynamic mode; expected --mode static: leave --mode out")
    if request.ranges is not None and request.images is not None:
        raise UsageError("--ranges and --images both say what ranges are; give one of them")
    ranged = not dynamic and not request.precision.weights_only
    if ranged and request.ranges is None and request.images is None:
        raise UsageError(
            "static ranges are taken on pictures; give --images DIR, or the --ranges FILE of an "
            "earlier calibration"
        )
    if request.max_drop is not None and request.eval_images is None:
        raise UsageError(
            f"--max-drop {request.max_drop:g} is measured on pictures; give --eval DIR, a folder "
            "of class folders, or of pictures without labels"
        )
    source = quantizable_export(workspace, request.artifact, progress, force=request.force)
    target = quantization_target(
        request.precision, request.mode, request.target, Target(source.target)
    )
    base = request.base
    if base is None:
        base = Precision.FP16 if target is Target.TENSORRT else Precision.FP32
    if dynamic and (target not in (Target.CPU, Target.PORTABLE) or base is not Precision.FP32):
        raise UsageError(
            f"dynamic ranges for {target.value} on an {base.value} base: only ONNX Runtime's CPU "
            "kernels take them, in float32: expected --target cpu or portable, --base fp32"
        )
    engines_only = fp8 or request.precision.weights_only
    if engines_only and (target is not Target.TENSORRT or base is not Precision.FP16):
        raise UsageError(
            f"{request.precision.value} for {target.value} on an {base.value} base; expected "
            "--target tensorrt, --base fp16: no other runtime here multiplies in it"
        )
    if base is Precision.FP16 and target in (Target.CPU, Target.OPENVINO):
        raise UsageError(
            f"an fp16 base for {target.value}: its kernels have no fp16 products; expected --base "
            "fp32, or --target tensorrt"
        )
    images = ranges = evaluation = None
    if request.images is not None:
        images = calibration_images(request.images, request.count, progress)
    if request.ranges is not None:
        ranges = load_calibration(request.ranges)
    if request.eval_images is not None:
        known = ranges.pictures if ranges is not None else images.digests() if images else ()
        evaluation = evaluation_images(request.eval_images, known, source.variant)
    return QuantizationPlan(
        source=source,
        precision=request.precision,
        mode=request.mode,
        target=target,
        base=base,
        batch=source.batch,
        images=images,
        ranges=ranges,
        evaluation=evaluation,
        placement=_placement(request, target, base),
    )


_OF_WEIGHTS = {one.name: one for one in (WEIGHTS_BALANCED, WEIGHTS_COMPACT)}
PLACEMENTS = {
    Precision.INT8: {one.name: one for one in (BALANCED, COMPACT, ACCURATE)},
    Precision.FP8: {one.name: one for one in (FP8_BALANCED, FP8_COMPACT)},
    Precision.INT8_WEIGHTS: _OF_WEIGHTS,
    Precision.FP8_WEIGHTS: _OF_WEIGHTS,
}
"""By type: those that can be asked for, the default first."""
AUTO = "auto"


def _placement(request: QuantizeRequest, target: Target, base: Precision) -> Placement:
    """The forms that layers get: `QuantizeRequest.placement`, where the target has a choice."""
    asked, known = request.placement, PLACEMENTS[request.precision]
    static = request.mode is QuantizationMode.STATIC
    if not (static and target is Target.TENSORRT and base is Precision.FP16):
        if asked is not None:
            raise UsageError(
                f"--placement {asked} is for engines; expected --target tensorrt and --base fp16: "
                "leave --placement out"
            )
        return IN_OPERATOR
    names = [*known] if request.precision.weights_only else [AUTO, *known]
    if asked is not None and asked not in names:
        raise UsageError(
            f"{request.precision.value} has no placement {asked!r}; expected one of "
            f"{', '.join(names)}"
        )
    # a search starts from the default
    return known[asked if asked in known else BALANCED.name]
