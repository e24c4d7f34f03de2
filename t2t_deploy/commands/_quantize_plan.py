"""What to quantise and how, before anything takes time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from t2t_deploy._options import AnyPath
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
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Manifest, Workspace


class QuantizationMode(str, Enum):
    """When the range of an activation is chosen."""

    STATIC = "static"
    """Beforehand, from pictures."""
    DYNAMIC = "dynamic"
    """At run time, for each tensor of each call: ONNX Runtime on the CPU."""


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What to quantise and how, the defaults filled in, the files found.

    images, ranges: what tells ranges, at most one of them; ranges_file: of the latter. evaluation:
    images to judge by, none of which is calibrated on. search: whether the builder is asked for a
    placement that is better than this one.
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
    search: bool = False
    ranges_file: Path | None = None
    method: RangeMethod = DEFAULT_METHOD
    equalise: bool = True
    max_drop: float | None = None


def quantization_target(
    precision: Precision, mode: QuantizationMode, asked: Target | None, source: Target
) -> Target:
    """What a quantised graph is made for where nothing was asked."""
    if asked is not None:
        return asked
    if mode is QuantizationMode.DYNAMIC:
        return Target.CPU
    engines_only = precision.codes is Precision.FP8 or precision.weights_only
    return Target.TENSORRT if engines_only else source


def plan_quantization(
    workspace: Workspace,
    artifact: AnyPath | None = None,
    precision: Precision = Precision.INT8,
    mode: QuantizationMode = QuantizationMode.STATIC,
    target: Target | None = None,
    base: Precision | None = None,
    *,
    images: AnyPath | None = None,
    count: int = DEFAULT_COUNT,
    method: RangeMethod = DEFAULT_METHOD,
    equalise: bool = True,
    ranges: AnyPath | None = None,
    placement: str | None = None,
    max_drop: float | None = None,
    evaluate_on: AnyPath | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> QuantizationPlan:
    """Fill in the defaults and find the files, before anything takes time.

    Raises UsageError where options do not go together, ArtifactError, ImageError, CalibrationError.
    """
    dynamic = mode is QuantizationMode.DYNAMIC
    name = precision.value
    if precision.weights_only and dynamic:
        raise UsageError(
            f"{name} quantises no activation, so there is no range to take at run time: leave the "
            "mode out"
        )
    if precision is Precision.FP8 and dynamic:
        raise UsageError("fp8 has no dynamic mode; expected static: leave the mode out")
    if ranges is not None and images is not None:
        raise UsageError("ranges and images both say what ranges are; give one of them")
    if ranges is None and images is None and not (dynamic or precision.weights_only):
        raise UsageError(
            "static ranges are taken on pictures; give a folder of images, or the ranges file of "
            "an earlier calibration"
        )
    if max_drop is not None and evaluate_on is None:
        raise UsageError(
            f"a drop of at most {max_drop:g} is measured on pictures; give them with eval: a "
            "folder of class folders, or of pictures without labels"
        )
    source = quantizable_export(workspace, artifact, progress, force=force)
    chosen = quantization_target(precision, mode, target, Target(source.target))
    if base is None:
        base = Precision.FP16 if chosen is Target.TENSORRT else Precision.FP32
    _check_base(precision, chosen, base, dynamic=dynamic)
    taken = None if images is None else calibration_images(Path(images), count, progress)
    stored = None if ranges is None else load_calibration(Path(ranges))
    evaluation = None
    if evaluate_on is not None:
        seen = stored.pictures if stored is not None else taken.digests() if taken else ()
        evaluation = evaluation_images(Path(evaluate_on), seen, source.variant)
    return QuantizationPlan(
        source=source,
        precision=precision,
        mode=mode,
        target=chosen,
        base=base,
        batch=source.batch,
        images=taken,
        ranges=stored,
        evaluation=evaluation,
        placement=_placement(placement, precision, mode, chosen, base, progress),
        search=placement == AUTO,
        ranges_file=None if ranges is None else Path(ranges),
        method=method,
        equalise=equalise,
        max_drop=max_drop,
    )


def _check_base(precision: Precision, target: Target, base: Precision, *, dynamic: bool) -> None:
    """Raise UsageError where no runtime computes a type on a base for a target."""
    if dynamic and (target not in (Target.CPU, Target.PORTABLE) or base is not Precision.FP32):
        raise UsageError(
            f"dynamic ranges for {target.value} on an {base.value} base: only ONNX Runtime's CPU "
            "kernels take them, in float32: expected target cpu or portable, base fp32"
        )
    engines_only = precision is Precision.FP8 or precision.weights_only
    if engines_only and (target is not Target.TENSORRT or base is not Precision.FP16):
        raise UsageError(
            f"{precision.value} for {target.value} on an {base.value} base; expected target "
            "tensorrt, base fp16: no other runtime here multiplies in it"
        )
    if base is Precision.FP16 and target in (Target.CPU, Target.OPENVINO):
        raise UsageError(
            f"an fp16 base for {target.value}: its kernels have no fp16 products; expected base "
            "fp32, or target tensorrt"
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


def _placement(
    asked: str | None,
    precision: Precision,
    mode: QuantizationMode,
    target: Target,
    base: Precision,
    progress: Progress,
) -> Placement:
    """The forms that layers get, where the target has a choice."""
    known = PLACEMENTS[precision]
    static = mode is QuantizationMode.STATIC
    if not (static and target is Target.TENSORRT and base is Precision.FP16):
        if asked is not None:
            raise UsageError(
                f"placement {asked} is for engines; expected target tensorrt and base fp16: leave "
                "the placement out"
            )
        return IN_OPERATOR
    names = [*known] if precision.weights_only else [AUTO, *known]
    if asked is not None and asked not in names:
        raise UsageError(
            f"{precision.value} has no placement {asked!r}; expected one of {', '.join(names)}"
        )
    # a search starts from the default
    found = known[asked if asked in known else BALANCED.name]
    if asked is None:
        progress.note(f"layers are placed as --placement {found.name} does, the default")
    return found
