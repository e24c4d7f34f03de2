"""What to quantise and how, before anything takes time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy._options import AnyPath
from t2t_deploy._processor import read_processor
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
    Codes,
    Placement,
    RangeMethod,
    load_calibration,
)
from t2t_deploy.commands._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    calibration_images,
    check_quantizable,
    quantizable_export,
)
from t2t_deploy.commands._decisions import labelled_images
from t2t_deploy.errors import UsageError
from t2t_deploy.pictures import ClassOrder, ImageSet, LabelledSet, evaluation_images
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Manifest, Workspace


class QuantizationMode(str, Enum):
    """When the range of an activation is chosen."""

    STATIC = "static"
    """Beforehand, from pictures."""
    DYNAMIC = "dynamic"
    """At run time, for each tensor of each call: ONNX Runtime on the CPU."""


@dataclass(frozen=True, slots=True)
class QuantizationRequest:
    """What is asked of a quantisation, as the options of `quantize_onnx`; None is the default."""

    precision: Precision = Precision.INT8
    mode: QuantizationMode = QuantizationMode.STATIC
    target: Target | None = None
    base: Precision | None = None
    images: AnyPath | None = None
    count: int = DEFAULT_COUNT
    method: RangeMethod = DEFAULT_METHOD
    equalise: bool = True
    ranges: AnyPath | None = None
    placement: str | None = None
    codes: Codes | None = None
    max_drop: float | None = None
    evaluate_on: AnyPath | None = None
    class_order: ClassOrder | Path | None = None
    targets: AnyPath | None = None
    threshold: float | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> QuantizationRequest:
        """What arguments of `quantize_onnx` ask for, as it has read them."""
        renamed = {"precision": "type", "evaluate_on": "eval"}
        names = [field.name for field in fields(cls)]
        return cls(**{name: given[renamed.get(name, name)] for name in names})


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What to quantise and how, the defaults filled in, the files found.

    images, ranges: what gives ranges, at most one of them. evaluation: images to judge by, none of
    which is calibrated on.
    """

    asked: QuantizationRequest
    source: Manifest
    target: Target
    base: Precision
    images: ImageSet | None
    ranges: Calibration | None
    evaluation: LabelledSet | None
    placement: Placement
    codes: Codes

    @property
    def precision(self) -> Precision:
        """The type of what is quantised."""
        return self.asked.precision

    @property
    def lowered(self) -> Precision | None:
        """What a runtime computes float32 tensors in; None is as they are typed."""
        return self.base if self.base is Precision.BF16 else None

    @property
    def typed(self) -> Precision:
        """The type of the graph's other tensors; OpenVINO computes float32 ones in bf16."""
        return Precision.FP32 if self.lowered else self.base

    @property
    def batch(self) -> int | None:
        """That of the source, None where it is free."""
        return self.source.batch


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
    artifact: AnyPath | None,
    asked: QuantizationRequest,
    progress: Progress = silent,
    *,
    force: bool = False,
) -> QuantizationPlan:
    """Fill in the defaults and find the files, before anything takes time.

    Raises UsageError where options do not go together, ArtifactError, ImageError, CalibrationError.
    """
    _check_ranges(asked)
    source = quantizable_export(workspace, artifact, progress, force=force)
    target, base, placement = settle_quantization(asked, Target(source.target))
    if asked.placement is None and placement is not IN_OPERATOR:
        progress.note(f"layers are placed as --placement {placement.name} does, the default")
    images = ranges = evaluation = None
    if asked.images is not None:
        images = calibration_images(Path(asked.images), asked.count, progress)
    if asked.ranges is not None:
        ranges = load_calibration(Path(asked.ranges))
    if asked.evaluate_on is not None:
        seen = ranges.pictures if ranges is not None else images.digests() if images else ()
        labelled = labelled_images(asked.evaluate_on, asked.targets, progress)
        evaluation = evaluation_images(labelled, seen, source.variant).for_model(
            int(source.config["num_classes"]), asked.class_order, source.class_names
        )
        if evaluation.known is not None and evaluation.known.note is not None:
            progress.note(evaluation.known.note)
    codes = _codes(asked, target, progress)
    if target is Target.OPENVINO and asked.base is None and read_processor().has_bf16:
        progress.note(
            "the rest is computed in fp32, the default; this processor has bf16: --base bf16 "
            "computes it faster"
        )
    return QuantizationPlan(
        asked, source, target, base, images, ranges, evaluation, placement, codes
    )


def settle_quantization(
    asked: QuantizationRequest, source: Target
) -> tuple[Target, Precision, Placement]:
    """What options come to: the target, the base and the placement.

    source: the target of the export. Raises UsageError where options do not go together.
    """
    _check_ranges(asked)
    target = quantization_target(asked.precision, asked.mode, asked.target, source)
    check_quantizable(target)
    base = asked.base
    if base is None:
        base = Precision.FP16 if target is Target.TENSORRT else Precision.FP32
    _check_base(asked, target, base)
    if asked.codes is not None and not _chooses_codes(asked, target):
        raise UsageError(
            f"codes {asked.codes.value} is for ONNX Runtime on the CPU; expected target cpu or "
            "dynamic ranges: leave the codes out"
        )
    return target, base, _placement(asked, target, base)


def _check_ranges(asked: QuantizationRequest) -> None:
    """Raise UsageError where what ranges or a drop are taken on does not fit the type."""
    dynamic, precision = asked.mode is QuantizationMode.DYNAMIC, asked.precision
    if precision.weights_only and dynamic:
        raise UsageError(
            f"{precision.value} quantises no activation, so there is no range to take at run time: "
            "leave the mode out"
        )
    if precision is Precision.FP8 and dynamic:
        raise UsageError("fp8 has no dynamic mode; expected static: leave the mode out")
    if asked.ranges is not None and asked.images is not None:
        raise UsageError("ranges and images both say what ranges are; give one of them")
    if asked.ranges is asked.images is None and not (dynamic or precision.weights_only):
        raise UsageError(
            "static ranges are taken on pictures; give a folder of images, or the ranges file of "
            "an earlier calibration"
        )
    for name, given in (("targets", asked.targets), ("threshold", asked.threshold)):
        if given is not None and asked.max_drop is None:
            raise UsageError(f"{name} is about a drop; give max_drop and eval too, or leave it out")
    if asked.max_drop is not None and asked.evaluate_on is None:
        raise UsageError(
            f"a drop of at most {asked.max_drop:g} is measured on pictures; give them with eval: a "
            "folder of class folders, or of pictures without labels"
        )
    if asked.class_order is not None and asked.evaluate_on is None:
        raise UsageError(
            "a class order is about pictures in class folders; give them with eval, or leave the "
            "class order out"
        )


def _check_base(asked: QuantizationRequest, target: Target, base: Precision) -> None:
    """Raise UsageError where no runtime computes a type on a base for a target."""
    precision = asked.precision
    if asked.mode is QuantizationMode.DYNAMIC and (
        target not in (Target.CPU, Target.PORTABLE) or base is not Precision.FP32
    ):
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
    if base is Precision.BF16 and target is not Target.OPENVINO:
        raise UsageError(
            f"a bf16 base for {target.value}: only OpenVINO computes the rest of an int8 graph in "
            "bf16; expected target openvino: quantise an export of that target"
        )
    if base is Precision.FP16 and target in (Target.CPU, Target.OPENVINO):
        raise UsageError(
            f"an fp16 base for {target.value}: its kernels have no fp16 products; expected base "
            "fp32, or target tensorrt"
        )


def _chooses_codes(asked: QuantizationRequest, target: Target) -> bool:
    return target is Target.CPU or asked.mode is QuantizationMode.DYNAMIC


def _codes(asked: QuantizationRequest, target: Target, progress: Progress) -> Codes:
    """How codes are stored: as asked for, or as suits the target and this processor."""
    if asked.codes is not None:
        return asked.codes
    if not _chooses_codes(asked, target):
        return Codes.SIGNED
    if target is not Target.CPU:
        return Codes.EXACT
    if read_processor().has_vnni:
        progress.note(
            "codes are stored as --codes vnni does, the fastest on this processor; without VNNI a "
            "session of your own must set session.x64quantprecision=1, or take --codes exact"
        )
        return Codes.VNNI
    progress.note(
        "codes are stored as --codes exact does, the fastest on this processor, which has no VNNI"
    )
    return Codes.EXACT


_OF_WEIGHTS = {one.name: one for one in (WEIGHTS_BALANCED, WEIGHTS_COMPACT)}
PLACEMENTS = {
    Precision.INT8: {one.name: one for one in (BALANCED, COMPACT, ACCURATE)},
    Precision.FP8: {one.name: one for one in (FP8_BALANCED, FP8_COMPACT)},
    Precision.INT8_WEIGHTS: _OF_WEIGHTS,
    Precision.FP8_WEIGHTS: _OF_WEIGHTS,
}
"""By type: those that can be asked for, the default first."""
AUTO = "auto"


def _placement(asked: QuantizationRequest, target: Target, base: Precision) -> Placement:
    """The forms that layers get, where the target has a choice."""
    name, precision = asked.placement, asked.precision
    static = asked.mode is QuantizationMode.STATIC
    if not (static and target is Target.TENSORRT and base is Precision.FP16):
        if name is not None:
            raise UsageError(
                f"placement {name} is for engines; expected target tensorrt and base fp16: leave "
                "the placement out"
            )
        return IN_OPERATOR
    known = PLACEMENTS[precision]
    names = [*known] if precision.weights_only else [AUTO, *known]
    if name is not None and name not in names:
        raise UsageError(
            f"{precision.value} has no placement {name!r}; expected one of {', '.join(names)}"
        )
    # a search starts from the default
    return known[name if name in known else BALANCED.name]
