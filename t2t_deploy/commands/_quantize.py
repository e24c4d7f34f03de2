"""exported model -> graph with 8-bit products, verified against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from t2t_deploy._files import file_sha256
from t2t_deploy._progress import Progress, silent
from t2t_deploy.bench import MIN_ROUNDS, BenchCase, BenchStatus, run_bench, speedup_between
from t2t_deploy.calibration import IN_OPERATOR, Calibration, QuantizedGraph
from t2t_deploy.commands._budget import within_budget, write_budget
from t2t_deploy.commands._export import artifact_stem, draft_manifest, graph_details, write_graph
from t2t_deploy.commands._placement_search import search_placement
from t2t_deploy.commands._quantize_inputs import QuantizationInputs, quantization_inputs
from t2t_deploy.commands._quantize_plan import (
    AUTO,
    QuantizationMode,
    QuantizeRequest,
    plan_quantization,
)
from t2t_deploy.runtime import SessionRequest, available_threads, why_not_runnable
from t2t_deploy.types import Precision, Status, Target
from t2t_deploy.workspace import Artifact, Workspace


def quantize_artifact(
    workspace: Workspace,
    request: QuantizeRequest,
    progress: Progress = silent,
    *,
    sm: str | None = None,
) -> Artifact:
    """Quantise an exported model's linear layers and verify the file.

    sm: the GPUs that a search of placements builds for, as in `BuildRequest`.
    A budget that cannot be met is in the manifest, as is a failed verification. Raises UsageError
    for options that contradict each other, CalibrationError, ArtifactError, ImageError,
    ExportError, MissingDependencyError.
    """
    plan = plan_quantization(workspace, request, progress)
    inputs = quantization_inputs(workspace, plan, request, progress)
    details: dict[str, Any] = {}
    if request.placement is None and plan.placement is not IN_OPERATOR:
        progress.note(f"layers are placed as --placement {plan.placement.name} does, the default")
    if request.placement == AUTO:
        search = search_placement(workspace, inputs, progress, sm)
        inputs = inputs.placed_by(search.placement, progress)
        details["placement_search"] = search.to_dict()
    decisions = inputs.decide()
    if request.max_drop is not None:
        assert plan.evaluation is not None  # plan_quantization refuses others
        outcome = within_budget(workspace, inputs, plan.evaluation, request.max_drop, progress)
        stem = artifact_stem(draft_manifest(inputs.typed, inputs.form, plan.source.weights))
        plot = write_budget(workspace, outcome, f"{stem}-{plan.precision.value}", progress)
        decisions = outcome.decisions
        details["budget"] = {**outcome.to_dict(), "plot": plot}
    placed = inputs.place(decisions)
    return store_quantized(workspace, inputs, placed, request, progress, details=details)


def store_quantized(
    workspace: Workspace,
    inputs: QuantizationInputs,
    placed: QuantizedGraph,
    request: QuantizeRequest,
    progress: Progress = silent,
    *,
    details: Mapping[str, Any] | None = None,
) -> Artifact:
    """Check, write and verify a quantised graph. Raises ExportError where a check refuses it."""
    from t2t_deploy.graph import check_graph, with_graph_io

    plan = inputs.plan
    checked = check_graph(
        with_graph_io(placed.model, inputs.form.graph_io),
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
            **inputs.form.graph_io.to_details(),
            "quantization": quantization_details(inputs, placed),
        },
    )

    def write(path: Path) -> dict[str, Any]:
        learned = write_graph(path, checked, draft, workspace.weights(source), progress)
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
                with_graph_io(inputs.typed.model, inputs.form.graph_io),
                target=plan.target,
                precisions=(plan.precision, plan.base),
                batch=plan.batch or 1,
                progress=progress,
            )
        return learned

    stem = artifact_stem(draft)
    if plan.mode is QuantizationMode.DYNAMIC:
        stem += f"-{plan.mode.value}"
    return workspace.store(draft, write, stem=stem, output=request.output)


def quantization_details(inputs: QuantizationInputs, placed: QuantizedGraph) -> dict[str, Any]:
    """What was quantised, layer by layer, JSON-ready.

    share: of the layers' multiply-adds. half_bound: see `QuantizationInputs.half_bounds`.
    """
    macs = sum(found.layer.macs for found in placed.decisions)
    bounds = inputs.half_bounds()
    eight_bit = sum(found.layer.macs for found in placed.decisions if found.quantised)
    return {
        "type": inputs.plan.precision.value,
        "mode": inputs.plan.mode.value,
        "base": inputs.plan.base.value,
        "quantized_nodes": placed.quantized_nodes,
        "float_nodes": placed.float_nodes,
        "share": eight_bit / macs if macs else 0.0,
        "placement": inputs.plan.placement.name,
        "layers": [
            {
                "name": d.layer.name,
                "quantized": d.quantised,
                "because": d.because,
                "form": d.form.value if d.quantised else None,
                "half_bound": bounds.get(d.layer.name),
            }
            for d in placed.decisions
        ],
        "equalised": [
            {
                "producer": pair.producer,
                "layers": list(pair.layers),
                "spread_before": pair.spread_before,
                "spread_after": pair.spread_after,
                "factor": pair.factor,
            }
            for pair in inputs.equalisation.applied
        ],
        "not_equalised": dict(inputs.equalisation.refused),
    }


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


_BACKENDS = {
    Target.CPU: "ort-cpu",
    Target.PORTABLE: "ort-cpu",
    Target.OPENVINO: "openvino",
    Target.TENSORRT: "tensorrt-rtx",
}
_ROUND_SECONDS = 0.3


def speed_against_float(
    workspace: Workspace,
    quantized: Path,
    base: onnx.ModelProto,
    *,
    target: Target,
    precisions: tuple[Precision, Precision],
    batch: int,
    progress: Progress,
) -> dict[str, Any]:
    """Latency of a quantised file against its float base in the target's runtime, JSON-ready.

    precisions: of the file and of the base. ratio: how many times as fast as the base, with its
    95 % interval; not run where the runtime is not here, with the reason.
    """
    backend = _BACKENDS[target]
    reason = why_not_runnable(backend)
    if target is Target.TENSORRT and reason is None:
        reason = "an engine is timed by t2t-deploy bench once it is built"
    if reason is not None:
        return {"status": Status.NOT_RUN.value, "backend": backend, "reason": reason}
    progress.step("timing it against its float base")
    threads = available_threads()
    with workspace.scratch() as folder:
        path = folder / "float.onnx"
        onnx.save(base, path)
        cases = [
            BenchCase(SessionRequest(backend, file, threads), file.name, precision.value, batch)
            for file, precision in zip((quantized, path), precisions, strict=True)
        ]
        results = run_bench(
            cases, rounds=MIN_ROUNDS, round_seconds=_ROUND_SECONDS, progress=progress.progress
        ).results
    failed = [found.reason for found in results if found.status is not BenchStatus.OK]
    if failed:
        return {"status": Status.FAILED.value, "backend": backend, "reason": str(failed[0])}
    speedup = speedup_between(results[1], results[0])
    name = precisions[1].value
    verdict = f"faster than {name} here"
    if speedup.high < 1:
        verdict = f"slower than {name} here"
    elif speedup.low <= 1:
        verdict = f"not distinguishable from {name} here"
    return {
        "status": Status.PASSED.value,
        "backend": backend,
        "batch": batch,
        "threads": threads,
        "ratio": speedup.ratio,
        "low": speedup.low,
        "high": speedup.high,
        "unstable": any(found.unstable for found in results),
        "verdict": verdict,
        "reason": None,
    }
