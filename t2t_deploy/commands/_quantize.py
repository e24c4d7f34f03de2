"""exported model -> graph with 8-bit products, verified against the reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, cast

import onnx

from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256
from t2t_deploy._options import AnyPath, Opt, Role, choice, command
from t2t_deploy._progress import Progress, silent
from t2t_deploy.bench import MIN_ROUNDS, BenchCase, BenchStatus, run_bench, speedup_between
from t2t_deploy.calibration import Codes, QuantizedGraph
from t2t_deploy.commands._artifacts import ArtifactFile, Force, artifact_values, workspace_of
from t2t_deploy.commands._budget import within_budget, write_budget
from t2t_deploy.commands._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    Count,
    Equalise,
    Method,
    calibration_values,
    equalised_values,
)
from t2t_deploy.commands._decisions import Targets, Threshold
from t2t_deploy.commands._export import (
    OutputFile,
    artifact_stem,
    draft_manifest,
    store_graph,
)
from t2t_deploy.commands._placement_search import search_placement
from t2t_deploy.commands._quantize_inputs import QuantizationInputs, quantization_inputs
from t2t_deploy.commands._quantize_plan import (
    AUTO,
    QuantizationMode,
    QuantizationPlan,
    QuantizationRequest,
    plan_quantization,
)
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.pictures import ClassOrderName
from t2t_deploy.runtime import (
    BACKENDS,
    SessionRequest,
    available_threads,
    backend_for,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.types import Precision, Status, Target
from t2t_deploy.workspace import Artifact, Workspace

PlacementName = Annotated[
    str | None,
    Opt(
        "For engines: compact moves least at batch 1, accurate (int8) rounds least, auto asks the "
        "builder. Default balanced.",
        choice("auto", "balanced", "compact", "accurate"),
    ),
]

CodeNames = Annotated[
    str | Codes | None,
    Opt(
        "For ONNX Runtime on the CPU: vnni is the fastest where a processor has VNNI, exact where "
        "it has none; auto, the default, is what suits this one, and exact for target portable.",
        choice("auto", Codes.EXACT, Codes.VNNI, of=Codes, absent="auto"),
        later=True,
    ),
]


@command
def quantize_onnx(
    artifact: ArtifactFile = None,
    *,
    type: Annotated[
        str | Precision,
        Opt(
            "fp8 is for TensorRT on SM89 and newer; -weights stores weights so and computes in "
            "fp16.",
            choice("int8", "fp8", "int8-weights", "fp8-weights", of=Precision),
            shown="int8",
            recorded="precision",
        ),
    ] = Precision.INT8,
    mode: Annotated[
        str | QuantizationMode,
        Opt(
            "Ranges from pictures, or taken at run time (ONNX Runtime on the CPU).", shown="static"
        ),
    ] = QuantizationMode.STATIC,
    target: Annotated[
        str | Target | None,
        Opt("Default the artifact's; cpu for dynamic ranges, tensorrt for fp8."),
    ] = None,
    base: Annotated[
        str | Precision | None,
        Opt(
            "Type of all that is not quantised; default fp16 for tensorrt, else fp32. bf16 is for "
            "openvino, on CPUs that have it.",
            choice("fp32", "fp16", "bf16", of=Precision),
        ),
    ] = None,
    images: Annotated[
        AnyPath | None,
        Opt("Folder of pictures to calibrate on.", role=Role.READS, recipe=False),
    ] = None,
    count: Count = DEFAULT_COUNT,
    method: Method = DEFAULT_METHOD,
    equalise: Equalise = True,
    ranges: Annotated[
        AnyPath | None,
        Opt("Ranges file of t2t-deploy calibrate.", role=Role.READS, recipe=False),
    ] = None,
    placement: PlacementName = None,
    codes: CodeNames = None,
    max_drop: Annotated[
        float | None,
        Opt(
            "Return layers to float until at most this many points are lost on --eval.",
            metavar="PCT",
        ),
    ] = None,
    eval: Annotated[
        AnyPath | None,
        Opt(
            "Pictures to measure the drop on: class folders, or no labels (then agreement).",
            role=Role.READS,
            recorded="evaluation pictures",
        ),
    ] = None,
    class_order: ClassOrderName = None,
    targets: Targets = None,
    threshold: Threshold = None,
    speed: Annotated[
        bool,
        Opt("Do not time the graph against its float base afterwards.", recorded="measure_speed"),
    ] = True,
    force: Force = False,
    output: OutputFile = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Quantise the linear layers of an export, and verify the file: ``t2t-deploy quantize``.

    artifact: an export; None is the newest. placement: auto, balanced, compact or accurate, for
    engines; None is balanced. max_drop: points of accuracy on the folder ``eval``; of the area
    under the curve for one output, of average precision for the several labels of ``targets``.
    class_order: of its class folders, as of `evaluate_artifacts`. A budget that cannot be met, and
    a failed verification, are in the manifest. Raises UsageError, CalibrationError, ArtifactError,
    ImageError, ExportError, MissingDependencyError.

    Examples
    --------
    >>> from t2t_deploy import quantize_onnx
    >>> small = quantize_onnx(images="train", speed=False)
    >>> manifest = small.require_manifest()
    >>> manifest.details["quantization"]["quantized_nodes"], manifest.failed
    (16, False)
    """
    asked = QuantizationRequest.of(locals())
    workspace = workspace_of(workspace)
    workspace.check_writable("onnx" if output is None else "", say=progress.note)
    plan = plan_quantization(workspace, artifact, asked, progress, force=force)
    return quantized(workspace, plan, progress, speed=speed, output=output)


def quantize_values(artifact: Artifact) -> dict[str, Any]:
    """What ``quantize --json`` prints; the hashes of the pictures stay in the manifest."""
    manifest = artifact.require_manifest()
    details = manifest.details
    calibration, quantization = details["calibration"], details["quantization"]
    if calibration is not None:
        calibration = {key: value for key, value in calibration.items() if key != "pictures"}
    return {
        "artifact": artifact_values(artifact),
        "verification": manifest.verification,
        "calibration": calibration,
        "quantized_nodes": quantization["quantized_nodes"],
        "float_nodes": quantization["float_nodes"],
        "quantization": quantization,
        "speed": details.get("speed"),
        "budget": details.get("budget"),
    }


def quantized(
    workspace: Workspace,
    plan: QuantizationPlan,
    progress: Progress = silent,
    *,
    speed: bool = False,
    output: AnyPath | None = None,
    sm: str | None = None,
) -> Artifact:
    """Follow a plan: round, search placements or a budget where asked, write and verify.

    speed: also time the graph against its float base. sm: the GPUs that a search of placements
    builds for, as in `build_engine`. Raises as `quantize_onnx`.
    """
    from t2t_deploy.graph import with_graph_io

    inputs = quantization_inputs(workspace, plan, progress)
    found: dict[str, Any] = {}
    if plan.asked.placement == AUTO:
        search = search_placement(workspace, inputs, progress, sm)
        inputs = inputs.placed_by(search.placement, progress)
        found["placement_search"] = search.to_dict()
    decisions = inputs.decide()
    draft = draft_manifest(inputs.typed, inputs.form, plan.source.weights, plan.source.handed_on)
    if plan.asked.max_drop is not None:
        assert plan.evaluation is not None  # plan_quantization refuses others
        outcome = within_budget(workspace, inputs, plan.evaluation, plan.asked.max_drop, progress)
        stem = f"{artifact_stem(draft)}-{plan.precision.value}"
        decisions = outcome.decisions
        plot = write_budget(workspace, outcome, stem, progress)
        found["budget"] = {**outcome.to_dict(), "plot": plot}
    placed = inputs.place(decisions)
    parents, calibration = [*draft.parents], None
    if inputs.calibration is not None:
        file = inputs.calibration.path
        parents.append({"kind": "ranges", "file": file.name, "sha256": file_sha256(file)})
        calibration = calibration_values(inputs.calibration.calibration) | {
            "pictures": list(inputs.calibration.calibration.pictures),
            # an evaluation set was found disjoint
            "disjoint_from_eval": None if plan.evaluation is None else True,
        }
    draft = dataclasses.replace(
        draft,
        precision=plan.precision,
        parents=tuple(parents),
        details={**draft.details, "quantization": quantization_details(inputs, placed)},
    )

    def details(path: Path) -> dict[str, Any]:
        found["quantization"] = {
            **draft.details["quantization"],
            "computed": computed_products(path, plan, progress),
        }
        if speed:
            base = with_graph_io(inputs.typed.model, inputs.form.graph_io, plan.source.preparation)
            found["speed"] = speed_against_float(workspace, path, base, plan, progress)
        return {"calibration": calibration, **found}

    stem = artifact_stem(draft)
    if plan.asked.mode is QuantizationMode.DYNAMIC:
        stem += f"-{plan.asked.mode.value}"
    if plan.lowered is not None:  # the same file as without, for another session
        stem += f"-{plan.lowered.value}_base"
    graph = dataclasses.replace(inputs.typed, model=placed.model)
    return store_graph(
        workspace, graph, inputs.form, draft, progress, output=output, stem=stem, details=details
    )


def quantization_details(inputs: QuantizationInputs, placed: QuantizedGraph) -> dict[str, Any]:
    """What was quantised, layer by layer, JSON-ready.

    share: of the layers' multiply-adds. half_bound: see `QuantizationInputs.half_bounds`.
    """
    macs = sum(found.layer.macs for found in placed.decisions)
    bounds = inputs.half_bounds()
    eight_bit = sum(found.layer.macs for found in placed.decisions if found.quantised)
    return {
        "type": inputs.plan.precision.value,
        "mode": inputs.plan.asked.mode.value,
        "base": inputs.plan.base.value,
        "codes": inputs.plan.codes.value,
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
        "equalised": equalised_values(inputs.equalisation, "factor"),
        "not_equalised": dict(inputs.equalisation.refused),
    }


def computed_products(
    quantized: Path, plan: QuantizationPlan, progress: Progress = silent
) -> dict[str, Any] | None:
    """What the target's runtime makes of the products on this processor, JSON-ready.

    None where it is not here, does not tell, or refuses the file, which a note says.
    """
    backend = backend_for(plan.target)
    if why_not_runnable(backend) is not None or why_not_in(backend, plan.lowered or plan.precision):
        return None
    request = SessionRequest(backend, quantized, precision=plan.precision, base=plan.lowered)
    try:
        counts = BACKENDS[backend].count_products(request)
    except (ArtifactError, BackendError) as err:
        progress.note(str(err))
        return None
    return None if counts is None else {"backend": backend, **to_plain(counts)}


_ROUND_SECONDS = 0.3


def speed_against_float(
    workspace: Workspace,
    quantized: Path,
    base: onnx.ModelProto,
    plan: QuantizationPlan,
    progress: Progress,
) -> dict[str, Any]:
    """Latency of a quantised file against its float base in the target's runtime, JSON-ready.

    ratio: how many times as fast as the base, with its 95 % interval; not run where the runtime is
    not here, with the reason.
    """
    backend, batch = backend_for(plan.target), plan.batch or 1
    reason = why_not_runnable(backend)
    if plan.target is Target.TENSORRT and reason is None:
        reason = "an engine is timed by t2t-deploy bench once it is built"
    if reason is not None:
        return {"status": Status.NOT_RUN.value, "backend": backend, "reason": reason}
    progress.step("timing it against its float base")
    threads = available_threads()
    with workspace.scratch() as folder:
        path = folder / "float.onnx"
        onnx.save(base, path)
        requests = (
            SessionRequest(
                backend, quantized, threads, precision=plan.precision, base=plan.lowered
            ),
            SessionRequest(backend, path, threads, precision=plan.base),
        )
        cases = [
            BenchCase(one, one.path.name, cast(Precision, one.precision).value, batch)
            for one in requests
        ]
        results = run_bench(
            cases, rounds=MIN_ROUNDS, round_seconds=_ROUND_SECONDS, progress=progress.progress
        ).results
    failed = [found.reason for found in results if found.status is not BenchStatus.OK]
    if failed:
        return {"status": Status.FAILED.value, "backend": backend, "reason": str(failed[0])}
    speedup = speedup_between(results[1], results[0])
    than = "faster than"
    if speedup.high < 1:
        than = "slower than"
    elif speedup.low <= 1:
        than = "not distinguishable from"
    return {
        "status": Status.PASSED.value,
        "backend": backend,
        "batch": batch,
        "threads": threads,
        **to_plain(speedup),
        "unstable": any(found.unstable for found in results),
        "verdict": f"{than} {plan.base.value} here",
        "reason": None,
    }
