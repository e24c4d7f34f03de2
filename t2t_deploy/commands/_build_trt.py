"""ONNX file -> engine, with what is in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._calibrate import DEFAULT_COUNT
from t2t_deploy.commands._export import export_weights, forms_asked
from t2t_deploy.commands._quantize import quantize_artifact
from t2t_deploy.commands._quantize_plan import QuantizeRequest
from t2t_deploy.engine import check_foreign
from t2t_deploy.errors import ArtifactError, CalibrationError, EngineError, UsageError
from t2t_deploy.graph import read_onnx
from t2t_deploy.types import QUANTIZED, GraphIO, Precision, ShapeProfile, Status, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace

if TYPE_CHECKING:
    from t2t_deploy.engine import Attestation, EngineFigures

DEFAULT_MAX_BATCH = 32


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build; None means the default named in the field's comment."""

    artifact: Path | None = None  # the newest export
    precision: Precision | None = None  # the artifact's
    profiles: Sequence[ShapeProfile] = ()  # 1:1:32 for a dynamic batch
    sm: str | None = None  # native where a device is, else portable
    memory_limit_mib: int | None = None  # the builder's
    backend: str = "auto"  # TensorRT where it is installed and a device is, else TensorRT-RTX
    optimization_level: int | None = None  # the builder's
    images: Path | None = None  # a quantised graph that is there
    placement: str | None = None  # as in QuantizeRequest
    count: int = DEFAULT_COUNT
    output: Path | None = None  # the workspace
    force: bool = False


def chosen_profiles(
    profiles: Sequence[str] = (),
    min_batch: int | None = None,
    opt_batch: int | None = None,
    max_batch: int | None = None,
) -> tuple[ShapeProfile, ...]:
    """Profiles from MIN:OPT:MAX texts, or from the bounds of one; nothing given is no profile.

    Raises UsageError where both ways are used, or a profile makes no sense.
    """
    given = any(bound is not None for bound in (min_batch, opt_batch, max_batch))
    if profiles and given:
        raise UsageError("--profile and --min/--opt/--max-batch both set the batch; use one way")
    if profiles:
        return tuple(ShapeProfile.parse(text) for text in profiles)
    if not given:
        return ()
    low = 1 if min_batch is None else min_batch
    opt = low if opt_batch is None else opt_batch
    top = max(opt, DEFAULT_MAX_BATCH) if max_batch is None else max_batch
    return (ShapeProfile(low, opt, top),)


def build_trt(workspace: Workspace, request: BuildRequest, progress: Progress = silent) -> Artifact:
    """Build an engine from an exported graph and attest what is in it.

    A graph of another precision or target than the engine's is exported anew from the stored
    weights. The attestation's verdict is in the manifest. Raises ArtifactError, EngineError,
    BackendError, MissingDependencyError.
    """
    from t2t_deploy.engine import (
        BACKEND_RTX,
        BuilderDiedError,
        BuildOptions,
        build_engine,
        check_targets,
        choose_builder,
        device_capability,
        parse_sm,
        runnable_here,
        trtexec_line,
    )

    if request.artifact is None:
        source = workspace.newest("onnx", lambda m: _buildable(m, request), force=request.force)
        source = workspace.checked(source, force=request.force)
        progress.note(f"building from the newest export, {source.path.name}")
    else:
        source = workspace.open(request.artifact, force=request.force)
        if source.kind != "onnx":
            raise ArtifactError(
                f"{source.path} is an {source.kind}; an engine is built from an ONNX "
                "file: name one, or none to take the newest export"
            )
    weights_only = request.precision is not None and request.precision.weights_only
    if request.placement is not None and request.images is None and not weights_only:
        raise UsageError(
            f"--placement {request.placement} is how a graph is quantised, and no pictures are "
            "given to do it on: give --int8 or --fp8 with --images DIR, or leave --placement out"
        )
    if request.images is not None and request.precision not in QUANTIZED:
        raise UsageError(
            "--images are calibrated on, which int8 and fp8 alone need; give --int8 or --fp8, or "
            "leave them out"
        )
    module = choose_builder(request.backend)
    sm = request.sm or ("native" if device_capability() is not None else "portable")
    if request.precision is not None:
        check_targets(module, parse_sm(sm), request.precision)
    graph = _typed_graph(workspace, source, request, progress)
    progress.step(f"building {graph.path.name} for {sm}")
    level = request.optimization_level
    if level is not None and module.backend == BACKEND_RTX:
        progress.note(
            f"--opt-level {level} is left out: TensorRT-RTX makes the same engine at every level"
        )
        level = None
    options = BuildOptions(
        profiles=tuple(request.profiles),
        sm=parse_sm(sm),
        memory_limit_mib=request.memory_limit_mib,
        optimization_level=level,
        timing_cache=workspace.root / "timing",
    )
    try:
        built = build_engine(graph.path, options, module=module, progress=progress.progress)
    except BuilderDiedError as err:
        raise EngineError(f"{err}. {_kept(workspace, graph, err.log)}") from err
    known = graph.manifest
    attestation = _attest(built.figures, request.precision or (known.precision if known else None))
    precision = Precision(attestation.asked)
    runnable = runnable_here(built.engine, module.trt)
    stem = graph.path.stem.rsplit("-", 1)[0] if known else graph.path.stem
    targets = "_".join(built.sm)
    sized = built.sized
    figures = built.figures.to_dict() | {
        "moved_bytes": sized.moved_bytes,
        "total_bytes": sized.total_bytes,
        "moved_by_batch": None if sized is built.figures else built.profiles[0].opt,
        "moved_by_kernels": sized.kernels,
    }
    draft = Manifest(
        kind="engine",
        file="",
        sha256="",
        size_bytes=0,
        variant=known.variant if known else graph.path.stem,
        precision=precision,
        config=known.config if known else {},
        batch=known.batch if known else None,
        target=Target.TENSORRT.value,
        weights=known.weights if known else {},
        opset=known.opset if known else None,
        strategies=known.strategies if known else None,
        parents=({"kind": "onnx", "file": graph.path.name, "sha256": _sha256(graph)},),
    )

    def write(path: Path) -> dict[str, Any]:
        path.write_bytes(built.engine)
        log = workspace.write_log(f"{stem}-sm{targets}.log", built.log)
        details = {
            "engine": {
                **figures,
                "backend": built.backend,
                "backend_version": built.backend_version,
                "sm": list(built.sm),
                "memory_limit_mib": options.memory_limit_mib,
                "optimization_level": options.optimization_level,
                "profiles": [str(profile) for profile in built.profiles],
                "inputs": [dataclasses.asdict(spec) for spec in built.inputs],
                "outputs": [dataclasses.asdict(spec) for spec in built.outputs],
                "size_bytes": len(built.engine),
                "build_s": round(built.build_s, 3),
                "log": f"logs/{log.name}",
                # names without folders, as in all of a manifest
                "trtexec": trtexec_line(built, Path(graph.path.name), Path(f"{stem}.engine")),
            },
            "attestation": attestation.to_dict(),
            "graph_verification": known.verification if known else None,
            **(GraphIO.of_details(known.details).to_details() if known else {}),
            "calibration": known.details.get("calibration") if known else None,
            "runnable_here": runnable.runs,
            "why_not": runnable.why_not,
        }
        return {"details": details}

    return workspace.store(draft, write, stem=f"{stem}-sm{targets}", output=request.output)


def _kept(workspace: Workspace, graph: Artifact, log: str) -> str:
    """Keep what a builder said before it died; says where, or why not."""
    try:
        path = workspace.write_log(f"{graph.path.stem}-died.log", log)
    except ArtifactError as err:
        return f"What it said is lost: {err}"
    return f"What it said until then is in {path}"


def _attest(figures: EngineFigures, asked: Precision | None) -> Attestation:
    """Attest the asked precision; where none was, as of a foreign file, the one that prevails."""
    from t2t_deploy.engine import attest

    if asked is None and figures.bare_sums:
        asked = Precision.FP8 if "FP8" in figures.gemms_by_dtype else Precision.INT8
    if asked is not None:
        return attest(figures, asked)
    attestations = [attest(figures, precision) for precision in Precision]
    for attestation in attestations:
        if attestation.status is Status.PASSED:
            return attestation
    reason = "no precision was asked of a file without manifest, and none prevails"
    return dataclasses.replace(attestations[0], status=Status.NOT_RUN, reason=reason)


def _typed_graph(
    workspace: Workspace, source: Artifact, request: BuildRequest, progress: Progress
) -> Artifact:
    """The graph to build: the source itself, or its weights exported for TensorRT."""
    manifest = source.manifest
    if manifest is None:
        progress.note(f"{source.path.name} has no manifest: it is built as it is, never retyped")
        check_foreign(read_onnx(source.path), source.path.name, progress)
        return source
    precision = request.precision or manifest.precision
    asked = manifest.details.get("asked", {})

    def suits(other: Manifest) -> bool:
        return (
            (other.target == Target.TENSORRT.value or _is_portable_int8(other))
            and other.precision is precision
            and other.weights["sha256"] == manifest.weights["sha256"]
            and (other.config, other.batch) == (manifest.config, manifest.batch)
            and (precision in QUANTIZED or other.opset == manifest.opset)
            and other.details.get("asked", {}) == asked
            and not other.failed
        )

    quantizes = precision in QUANTIZED and (
        request.images is not None or request.placement is not None
    )
    if not quantizes and (suits(manifest) or (request.force and manifest.precision is precision)):
        if _is_portable_int8(manifest):
            progress.note(
                f"{source.path.name} is {precision.value} in an fp32 graph; t2t-deploy quantize "
                "--target tensorrt makes one that is fp16 elsewhere"
            )
        return source
    if not quantizes:
        ready = [a for a in workspace.artifacts("onnx") if suits(a.require_manifest())]
        if ready:
            return workspace.checked(ready[-1])
    if precision in QUANTIZED:
        return _quantized_graph(workspace, source, precision, request, progress)
    progress.note(
        f"{source.path.name} is {manifest.precision.value} for {manifest.target}: exporting its "
        f"weights again in {precision.value} for tensorrt"
    )
    form = dataclasses.replace(
        forms_asked(manifest),
        batch=manifest.batch,
        precision=precision,
        target=Target.TENSORRT,
        opset=manifest.opset,
        graph_io=GraphIO.of_details(manifest.details),
    )
    graph = export_weights(workspace, manifest.config, manifest.weights, form, progress)
    return workspace.checked(graph, force=request.force)


def _buildable(manifest: Manifest, request: BuildRequest) -> bool:
    """Whether an export is one to start from: any float one, a quantised one if it fits."""
    if manifest.precision not in QUANTIZED or request.images is not None:
        return manifest.precision not in QUANTIZED
    fits = manifest.target == Target.TENSORRT.value or _is_portable_int8(manifest)
    return fits and request.precision in (None, manifest.precision)


def _is_portable_int8(manifest: Manifest) -> bool:
    """Whether a graph has the static ranges and signed codes that TensorRT takes."""
    quantization = manifest.details.get("quantization", {})
    portable = manifest.target == Target.PORTABLE.value
    return portable and quantization.get("mode") == "static"


def _quantized_graph(
    workspace: Workspace,
    source: Artifact,
    precision: Precision,
    request: BuildRequest,
    progress: Progress,
) -> Artifact:
    """The source's weights quantised for TensorRT on the request's pictures."""
    if request.images is None and not precision.weights_only:
        raise CalibrationError(
            f"{source.path.name} is {source.require_manifest().precision.value}, and "
            f"{precision.value} ranges are taken on pictures: give --images DIR, or make the graph "
            f"first: t2t-deploy quantize --type {precision.value} --target tensorrt --images DIR"
        )
    progress.note(f"quantising the weights of {source.path.name} to {precision.value} for tensorrt")
    graph = quantize_artifact(
        workspace,
        QuantizeRequest(
            artifact=source.path,
            precision=precision,
            target=Target.TENSORRT,
            images=request.images,
            count=request.count,
            placement=request.placement,
            measure_speed=False,
            force=request.force,
        ),
        progress,
        sm=request.sm,
    )
    return workspace.checked(graph, force=request.force)


def _sha256(artifact: Artifact) -> str:
    from t2t_deploy._files import file_sha256

    return artifact.manifest.sha256 if artifact.manifest else file_sha256(artifact.path)
