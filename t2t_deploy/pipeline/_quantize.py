"""exported model -> graph with 8-bit products, verified against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import onnx

from t2t_deploy.calibration import (
    SIGNED,
    TYPED_QDQ_OPSET,
    UNSIGNED,
    Calibration,
    Decision,
    Equalisation,
    ImageSet,
    LabelledSet,
    QuantizedGraph,
    RangeMethod,
    RoundedWeight,
    decide,
    equalised_weights,
    load_calibration,
    norm_channel_max,
    place_dynamic,
    place_static,
    plan_equalisation,
    replace_weights,
    round_weight,
    stored_arrays,
)
from t2t_deploy.errors import CalibrationError, UsageError
from t2t_deploy.pipeline._budget import evaluation_images, within_budget, write_budget
from t2t_deploy.pipeline._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    CalibratedRanges,
    CalibrateRequest,
    CalibrationGraph,
    calibrated,
    calibration_graph,
    calibration_images,
    quantizable_export,
)
from t2t_deploy.pipeline._export import (
    ExportedGraph,
    ExportRequest,
    artifact_stem,
    draft_manifest,
    graph_details,
    graph_from_weights,
    write_graph,
)
from t2t_deploy.pipeline._progress import Report, silent
from t2t_deploy.pipeline._speed import speed_against_float
from t2t_deploy.types import Ends, Precision, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace, file_sha256


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


@dataclass(frozen=True, slots=True)
class QuantizationInputs:
    """All that a quantised graph is made of, whichever layers it quantises.

    typed: the graph in the base's type, equalised, to be changed. calibration: None where dynamic
    ranges are made without pictures.
    """

    plan: QuantizationPlan
    typed: ExportedGraph
    form: ExportRequest
    graph: CalibrationGraph
    equalisation: Equalisation
    weights: Mapping[str, RoundedWeight]
    calibration: CalibratedRanges | None

    def decide(self, returned: Mapping[str, str] | None = None) -> tuple[Decision, ...]:
        """What the policy makes of each layer; see `calibration.decide`."""
        return decide(self.graph.layers, returned, precision=self.plan.precision)

    def place(self, decisions: Sequence[Decision]) -> QuantizedGraph:
        """The graph with these layers quantised. Raises CalibrationError."""
        if self.plan.mode is QuantizationMode.DYNAMIC:
            return place_dynamic(self.typed.model, decisions, self.weights)
        assert self.calibration is not None
        found = self.calibration.calibration
        ranges = found.largest if self.plan.precision is Precision.FP8 else found.ranges
        storage = UNSIGNED if self.plan.target is Target.CPU else SIGNED
        return place_static(
            self.typed.model, decisions, self.weights, ranges, self.plan.precision, storage
        )


def quantization_target(
    precision: Precision, mode: QuantizationMode, asked: Target | None, source: Target
) -> Target:
    """What a quantised graph is made for where nothing was asked: see `QuantizeRequest`."""
    if asked is not None:
        return asked
    if mode is QuantizationMode.DYNAMIC:
        return Target.CPU
    return Target.TENSORRT if precision is Precision.FP8 else source


def quantize_artifact(
    workspace: Workspace, request: QuantizeRequest, report: Report = silent
) -> Artifact:
    """Quantise an exported model's linear layers and verify the file.

    A budget that cannot be met is in the manifest, as is a failed verification. Raises UsageError
    for options that contradict each other, CalibrationError, ArtifactError, ImageError,
    ExportError, MissingDependencyError.
    """
    plan = plan_quantization(workspace, request, report)
    inputs = quantization_inputs(workspace, plan, request, report)
    decisions, details = inputs.decide(), {}
    if request.max_drop is not None:
        assert plan.evaluation is not None  # plan_quantization refuses others
        outcome = within_budget(workspace, inputs, plan.evaluation, request.max_drop, report)
        stem = artifact_stem(draft_manifest(inputs.typed, inputs.form, plan.source.weights))
        plot = write_budget(workspace, outcome, f"{stem}-{plan.precision.value}", report)
        decisions = outcome.decisions
        details["budget"] = {**outcome.to_dict(), "plot": plot}
    placed = inputs.place(decisions)
    return store_quantized(workspace, inputs, placed, request, report, details=details)


def plan_quantization(
    workspace: Workspace, request: QuantizeRequest, report: Report = silent
) -> QuantizationPlan:
    """Fill in the defaults and find the files, before anything takes time.

    Raises UsageError where options do not go together, ArtifactError, ImageError, CalibrationError.
    """
    dynamic = request.mode is QuantizationMode.DYNAMIC
    fp8 = request.precision is Precision.FP8
    if request.precision not in (Precision.INT8, Precision.FP8):
        raise UsageError(
            f"{request.precision.value} is no type to quantise to; expected int8 or fp8: export "
            f"with --precision {request.precision.value} instead"
        )
    if fp8 and dynamic:
        raise UsageError("fp8 has no dynamic mode; expected --mode static: leave --mode out")
    if request.ranges is not None and request.images is not None:
        raise UsageError("--ranges and --images both say what ranges are; give one of them")
    if not dynamic and request.ranges is None and request.images is None:
        raise UsageError(
            "static ranges are taken on pictures; give --images DIR, or the --ranges FILE of an "
            "earlier calibration"
        )
    if request.max_drop is not None and request.eval_images is None:
        raise UsageError(
            f"--max-drop {request.max_drop:g} is measured on pictures; give --eval DIR, a folder "
            "of class folders, or of pictures without labels"
        )
    source = quantizable_export(workspace, request.artifact, report, force=request.force)
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
    if fp8 and (target is not Target.TENSORRT or base is not Precision.FP16):
        raise UsageError(
            f"fp8 for {target.value} on an {base.value} base; expected --target tensorrt, --base "
            "fp16: no other runtime here multiplies in it"
        )
    if base is Precision.FP16 and target in (Target.CPU, Target.OPENVINO):
        raise UsageError(
            f"an fp16 base for {target.value}: its kernels have no fp16 products; expected --base "
            "fp32, or --target tensorrt"
        )
    images = ranges = evaluation = None
    if request.images is not None:
        images = calibration_images(request.images, request.count, report)
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
    )


def quantization_inputs(
    workspace: Workspace,
    plan: QuantizationPlan,
    request: QuantizeRequest,
    report: Report = silent,
) -> QuantizationInputs:
    """Calibrate, equalise and round, as far as the plan asks for it."""
    graph = calibration_graph(workspace, plan.source, plan.target, report)
    calibration = _calibration(workspace, plan, graph, request, report)
    if calibration is not None:
        equalisation = calibration.calibration.equalisation
    elif request.equalise:
        guess = norm_channel_max(graph.model)
        equalisation = plan_equalisation(graph.model, graph.layers, guess)
        report.note(
            "no pictures were given: channels are equalised by their norms' own weights and "
            "weights are rounded to the nearest; --images DIR does both better"
        )
    else:
        equalisation = Equalisation()
    form = base_form(plan)
    typed = _typed(workspace, plan, form, graph, report)
    changed = equalised_weights(graph.model, graph.layers, equalisation.applied)
    replace_weights(typed.model, changed)
    report.step("rounding the weights")
    weights = _rounded(graph, changed, calibration, plan, typed, report)
    return QuantizationInputs(plan, typed, form, graph, equalisation, weights, calibration)


def _typed(
    workspace: Workspace,
    plan: QuantizationPlan,
    form: ExportRequest,
    graph: CalibrationGraph,
    report: Report,
) -> ExportedGraph:
    """The base's graph: a copy of the calibrated one where that has its type, batch and opset."""
    same = plan.base is Precision.FP32 and form.batch is None
    if same and form.opset == graph.exported.opset:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        return dataclasses.replace(graph.exported, model=model)
    return graph_from_weights(
        workspace.weights(plan.source), plan.source.config, form, report, merge_bias=False
    )


def base_form(plan: QuantizationPlan) -> ExportRequest:
    """How the graph that is quantised is exported."""
    from t2t_deploy.export import DEFAULT_OPSET

    asked = plan.source.details.get("asked", {})
    opset = plan.source.opset or DEFAULT_OPSET
    if plan.base is not Precision.FP32:
        opset = max(opset, TYPED_QDQ_OPSET)
    return ExportRequest(
        batch=plan.batch,
        precision=plan.base,
        target=plan.target,
        soft_split=asked.get("soft_split"),
        performer=asked.get("performer"),
        opset=opset,
        ends=Ends.of_details(plan.source.details),
    )


def store_quantized(
    workspace: Workspace,
    inputs: QuantizationInputs,
    placed: QuantizedGraph,
    request: QuantizeRequest,
    report: Report = silent,
    *,
    details: Mapping[str, Any] | None = None,
) -> Artifact:
    """Check, write and verify a quantised graph. Raises ExportError where a check refuses it."""
    from t2t_deploy.export import check_graph, with_ends

    plan = inputs.plan
    checked = check_graph(
        with_ends(placed.model, inputs.form.ends),
        batch=plan.batch,
        contrib=inputs.typed.strategies.fuse_attention,
    )
    source, calibration = plan.source, inputs.calibration
    parents: list[Mapping[str, Any]] = [{"kind": "weights", "sha256": source.weights["sha256"]}]
    if calibration is not None:
        file = calibration.path
        parents.append({"kind": "ranges", "file": file.name, "sha256": file_sha256(file)})
    draft = dataclasses.replace(
        draft_manifest(inputs.typed, inputs.form, source.weights),
        precision=plan.precision,
        parents=tuple(parents),
        details={
            **inputs.form.ends.to_details(),
            "quantization": quantization_details(inputs, placed),
        },
    )

    def write(path: Path) -> dict[str, Any]:
        learned = write_graph(path, checked, draft, workspace.weights(source), report)
        learned["details"] = {
            **graph_details(inputs.typed, inputs.form),
            "nodes": len(checked.graph.node),
            **draft.details,
            "calibration": None if calibration is None else _told(calibration.calibration, request),
            **(details or {}),
        }
        if request.measure_speed:
            learned["details"]["speed"] = speed_against_float(
                workspace,
                path,
                with_ends(inputs.typed.model, inputs.form.ends),
                target=plan.target,
                precisions=(plan.precision, plan.base),
                batch=plan.batch or 1,
                report=report,
            )
        return learned

    stem = artifact_stem(draft)
    if plan.mode is QuantizationMode.DYNAMIC:
        stem += f"-{plan.mode.value}"
    return workspace.store(draft, write, stem=stem, output=request.output)


def quantization_details(inputs: QuantizationInputs, placed: QuantizedGraph) -> dict[str, Any]:
    """What was quantised, layer by layer, JSON-ready. share: of the layers' multiply-adds."""
    macs = sum(found.layer.macs for found in placed.decisions)
    eight_bit = sum(found.layer.macs for found in placed.decisions if found.quantised)
    return {
        "type": inputs.plan.precision.value,
        "mode": inputs.plan.mode.value,
        "base": inputs.plan.base.value,
        "quantized_nodes": placed.quantized_nodes,
        "float_nodes": placed.float_nodes,
        "share": eight_bit / macs if macs else 0.0,
        "layers": [
            {"name": d.layer.name, "quantized": d.quantised, "because": d.because}
            for d in placed.decisions
        ],
        "equalised": [
            {
                "producer": pair.producer,
                "layers": list(pair.layers),
                "spread_before": pair.spread_before,
                "spread_after": pair.spread_after,
            }
            for pair in inputs.equalisation.applied
        ],
        "not_equalised": dict(inputs.equalisation.refused),
    }


def _calibration(
    workspace: Workspace,
    plan: QuantizationPlan,
    graph: CalibrationGraph,
    request: QuantizeRequest,
    report: Report,
) -> CalibratedRanges | None:
    found = plan.ranges
    if found is not None:
        assert request.ranges is not None
        if found.key.graph_sha256 != graph.sha256:
            raise CalibrationError(
                f"{request.ranges} was taken on another graph ({found.key.graph_sha256[:12]}, "
                f"this one is {graph.sha256[:12]}): ranges fit the weights, the dimensions and the "
                f"target they were taken for; take them again: t2t-deploy calibrate --target "
                f"{plan.target.value} --images DIR"
            )
        if found.key.equalised is not request.equalise:
            raise CalibrationError(
                f"{request.ranges} was taken {'with' if found.key.equalised else 'without'} "
                "equalisation; quantise with the same, or take the ranges again"
            )
        return CalibratedRanges(request.ranges, found, reused=True)
    if plan.images is None or request.images is None:
        return None
    asked = CalibrateRequest(
        request.images, method=request.method, equalise=request.equalise, count=request.count
    )
    return calibrated(workspace, plan.source, plan.target, graph, plan.images, asked, report)


def _rounded(
    graph: CalibrationGraph,
    changed: Mapping[str, Any],
    calibration: CalibratedRanges | None,
    plan: QuantizationPlan,
    typed: ExportedGraph,
    report: Report,
) -> dict[str, RoundedWeight]:
    """The weight of every layer that the policy quantises, on its grid."""
    moments = {} if calibration is None else calibration.calibration.moments
    stored = stored_arrays(graph.model)
    decisions = decide(graph.layers, precision=plan.precision)
    layers = [found.layer for found in decisions if found.quantised]
    dtypes = {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in typed.model.graph.initializer
    }
    weights = {}
    for done, layer in enumerate(layers, start=1):
        weights[layer.name] = round_weight(
            changed.get(layer.weight, stored[layer.weight]),
            plan.precision,
            moments.get(layer.source),
            scale_dtype=dtypes[layer.weight],
        )
        report.progress("rounding the weights", done, len(layers))
    return weights


def _told(calibration: Calibration, request: QuantizeRequest) -> dict[str, Any]:
    """The ``calibration`` object of the JSON contract; an evaluation set was found disjoint."""
    key = calibration.key
    return {
        "images": key.images - len(calibration.unreadable),
        "sha256": key.images_sha256,
        "method": key.method.value,
        "unreadable": list(calibration.unreadable),
        "pictures": list(calibration.pictures),
        "disjoint_from_eval": None if request.eval_images is None else True,
    }
