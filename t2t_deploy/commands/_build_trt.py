"""ONNX file -> engine, with what is in it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256
from t2t_deploy._options import (
    TEXT,
    AnyPath,
    Kind,
    Opt,
    Role,
    choice,
    command,
    replaced,
    several,
    whole,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import (
    ArtifactFile,
    Force,
    artifact_values,
    named_or_newest,
    workspace_of,
)
from t2t_deploy.commands._calibrate import DEFAULT_COUNT, Count, calibration_advice
from t2t_deploy.commands._export import (
    OutputFile,
    draft_manifest,
    forms_asked,
    graph_of_weights,
    store_graph,
)
from t2t_deploy.commands._quantize import PlacementName, quantized
from t2t_deploy.commands._quantize_plan import QuantizationRequest, plan_quantization
from t2t_deploy.engine import (
    BACKEND_RTX,
    BUILDERS,
    Attestation,
    BuilderDiedError,
    BuildOptions,
    EngineFigures,
    attest,
    check_foreign,
    check_targets,
    choose_builder,
    device_capability,
    parse_sm,
    trtexec_line,
    why_not_loaded,
)
from t2t_deploy.engine import build_engine as engine_from_onnx
from t2t_deploy.errors import ArtifactError, CalibrationError, EngineError, UsageError
from t2t_deploy.graph import read_onnx
from t2t_deploy.types import QUANTIZED, Precision, ShapeProfile, Status, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace

DEFAULT_MAX_BATCH = 32


def chosen_profiles(
    profiles: Sequence[ShapeProfile] = (),
    min_batch: int | None = None,
    opt_batch: int | None = None,
    max_batch: int | None = None,
) -> tuple[ShapeProfile, ...]:
    """The profiles given, or one from its bounds; nothing given is no profile.

    Raises UsageError where both ways are used, or a profile makes no sense.
    """
    given = any(bound is not None for bound in (min_batch, opt_batch, max_batch))
    if profiles and given:
        raise UsageError(
            "a profile and the bounds of one (min, opt, max) both set the batch; use one way"
        )
    if not given:
        return tuple(profiles)
    low = 1 if min_batch is None else min_batch
    opt = low if opt_batch is None else opt_batch
    top = max(opt, DEFAULT_MAX_BATCH) if max_batch is None else max_batch
    return (ShapeProfile(low, opt, top),)


def _sm(value: Any) -> str:
    try:
        parse_sm(TEXT.read(value))
    except UsageError:
        raise ValueError from None
    return str(value)


SM = Kind("capabilities such as '86,89', or 'portable' or 'native'", _sm)


def _profile(value: Any) -> ShapeProfile:
    return value if isinstance(value, ShapeProfile) else ShapeProfile.parse(TEXT.read(value))


PROFILE = Kind("MIN:OPT:MAX", _profile)


def _flag_help(name: str) -> str:
    if name.endswith("-weights"):
        return f"Compute in fp16, weights stored as {name.removesuffix('-weights')}."
    return f"Compute in {name}."


@command
def build_engine(
    artifact: ArtifactFile = None,
    *,
    precision: Annotated[
        str | Precision | None,
        Opt(
            kind=choice(
                *("fp32", "fp16", "bf16", "int8", "fp8", "int8-weights", "fp8-weights"),
                of=Precision,
            ),
            each=_flag_help,
        ),
    ] = None,
    backend: Annotated[
        str,
        Opt(
            "Engine builder; auto takes TensorRT where it and a GPU are, else TensorRT-RTX.",
            choice(*BUILDERS),
            shown="auto",
        ),
    ] = "auto",
    sm: Annotated[
        str | None,
        Opt("Compute capabilities to build for.", SM, metavar="86,89|portable|native"),
    ] = None,
    min_batch: Annotated[
        int | None, Opt("Smallest batch of the profile.", recipe=False, recorded="")
    ] = None,
    opt_batch: Annotated[
        int | None, Opt("Batch the profile is tuned for.", recipe=False, recorded="")
    ] = None,
    max_batch: Annotated[
        int | None, Opt("Largest batch of the profile.", recipe=False, recorded="")
    ] = None,
    profile: Annotated[
        str | ShapeProfile | Sequence[str | ShapeProfile],
        Opt("Repeatable.", several(PROFILE), metavar="MIN:OPT:MAX", recorded="profiles"),
    ] = (),
    memory_limit: Annotated[
        int | None, Opt("Scratch memory.", metavar="MIB", recorded="memory_limit_mib")
    ] = None,
    images: Annotated[
        AnyPath | None,
        Opt(
            "Folder of pictures to calibrate --int8 or --fp8 on; else a quantised graph is taken.",
            role=Role.READS,
            recipe=False,
        ),
    ] = None,
    count: Annotated[int, replaced(Count, help="Take up to this many; default 512.")] = (
        DEFAULT_COUNT
    ),
    placement: Annotated[
        str | None,
        replaced(
            PlacementName,
            help="How --int8 or --fp8 is quantised on --images; see quantize.",
            recipe=False,
        ),
    ] = None,
    opt_level: Annotated[
        int | None,
        Opt(
            "TensorRT's effort, 3 if not given; TensorRT-RTX makes the same engine at each.",
            whole(0, 5),
            recorded="optimization_level",
        ),
    ] = None,
    force: Force = False,
    output: OutputFile = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Artifact:
    """Build a TensorRT engine and attest what is in it: ``t2t-deploy build-trt``.

    artifact: a graph; None is the newest export. precision: None is the graph's, which is exported
    anew from the stored weights where another precision or target is asked for. placement: as of
    `quantize_onnx`. memory_limit in MiB. The attestation's verdict is in the manifest. Raises
    ArtifactError, EngineError, BackendError, UsageError, MissingDependencyError where there is no
    builder.

    Examples
    --------
    >>> from t2t_deploy import build_engine
    >>> engine = build_engine(made.path, precision="fp16", sm="86", profile="1:4:8")
    >>> figures = engine.require_manifest().details
    >>> figures["attestation"]["status"], figures["engine"]["profiles"]
    ('passed', ['1:4:8'])
    """
    given = cast("Sequence[ShapeProfile]", profile)
    profiles = chosen_profiles(given, min_batch, opt_batch, max_batch)
    workspace = workspace_of(workspace)
    workspace.check_writable("logs", "engines" if output is None else "", say=progress.note)
    asked = None if precision is None else Precision(precision)
    suits = functools.partial(_buildable, asked=asked, calibrates=images is not None)
    taking = "building from the newest export"
    source = named_or_newest(workspace, artifact, "onnx", taking, progress, suits, force=force)
    if source.kind != "onnx":
        raise ArtifactError(
            f"{source.path} is an {source.kind}; an engine is built from an ONNX file: name one, "
            "or none to take the newest export"
        )
    if placement is not None and images is None and not (asked and asked.weights_only):
        raise UsageError(
            f"placement {placement} is how a graph is quantised, and no pictures are given to do "
            "it on: give int8 or fp8 with a folder of images, or leave the placement out"
        )
    if images is not None and asked not in QUANTIZED:
        raise UsageError(
            "images are calibrated on, which int8 and fp8 alone need; give int8 or fp8, or leave "
            "them out"
        )
    module = choose_builder(backend)
    targets = parse_sm(sm or ("native" if device_capability() is not None else "portable"))
    if asked is not None:
        check_targets(module, targets, asked)
    request = QuantizationRequest(
        target=Target.TENSORRT, images=images, count=count, placement=placement
    )
    graph = _graph_to_build(workspace, source, asked, request, sm, progress, force=force)
    known = graph.manifest
    progress.step(f"building {graph.path.name} for {','.join(targets)}")
    level = opt_level
    if level is not None and module.backend == BACKEND_RTX:
        progress.note(
            f"the effort {level} is left out: TensorRT-RTX makes the same engine at every level"
        )
        level = None
    options = BuildOptions(
        profiles=profiles,
        sm=targets,
        memory_limit_mib=memory_limit,
        optimization_level=level,
        timing_cache=workspace.root / "timing",
    )
    try:
        built = engine_from_onnx(graph.path, options, module=module, progress=progress.progress)
    except BuilderDiedError as err:
        raise EngineError(f"{err}. {_kept(workspace, graph, err.log)}") from err
    attestation = _attest(built.figures, asked or (known.precision if known else None))
    why_not = why_not_loaded(built.engine, module.trt)
    lineage: dict[str, Any]
    if known is None:
        stem, sha256 = graph.path.stem, file_sha256(graph.path)
        lineage = {"variant": stem, "config": {}, "batch": None, "weights": {}}
        of_graph = {}
    else:
        stem, sha256 = graph.path.stem.rsplit("-", 1)[0], known.sha256
        lineage = {name: getattr(known, name) for name in _LINEAGE}
        of_graph = known.graph_io.to_details() | known.handed_on
    draft = Manifest(
        kind="engine",
        file="",
        sha256="",
        size_bytes=0,
        precision=Precision(attestation.asked),
        target=Target.TENSORRT.value,
        parents=({"kind": "onnx", "file": graph.path.name, "sha256": sha256},),
        **lineage,
    )
    name = f"{stem}-sm{'_'.join(built.sm)}"

    def write(path: Path) -> dict[str, Any]:
        path.write_bytes(built.engine)
        log = workspace.write_log(f"{name}.log", built.log)
        sized = built.sized
        engine = {
            **built.figures.to_dict(),
            "moved_bytes": sized.moved_bytes,
            "total_bytes": sized.total_bytes,
            "moved_by_batch": None if sized is built.figures else built.profiles[0].opt,
            "moved_by_kernels": sized.kernels,
            "backend": built.backend,
            "backend_version": built.backend_version,
            "sm": list(built.sm),
            "memory_limit_mib": options.memory_limit_mib,
            "optimization_level": options.optimization_level,
            "profiles": [str(profile) for profile in built.profiles],
            "inputs": to_plain(built.inputs),
            "outputs": to_plain(built.outputs),
            "size_bytes": len(built.engine),
            "build_s": round(built.build_s, 3),
            "log": f"logs/{log.name}",
            # names without folders, as in all of a manifest
            "trtexec": trtexec_line(built, Path(graph.path.name), Path(f"{stem}.engine")),
        }
        details = {
            "engine": engine,
            "attestation": to_plain(attestation),
            "graph_verification": known.verification if known else None,
            **of_graph,
            "calibration": known.details.get("calibration") if known else None,
            "runnable_here": why_not is None,
            "why_not": why_not,
        }
        return {"details": details}

    return workspace.store(draft, write, stem=name, output=output)


# what an engine is made of, as its graph
_LINEAGE = ("variant", "config", "batch", "weights", "opset", "strategies")


def build_values(artifact: Artifact) -> dict[str, Any]:
    """What ``build-trt --json`` prints."""
    manifest = artifact.require_manifest()
    details = manifest.details
    return {
        "artifact": artifact_values(artifact),
        "engine": {"path": str(artifact.path), "sha256": manifest.sha256, **details["engine"]},
        "attestation": details["attestation"],
        "runnable_here": details["runnable_here"],
        "why_not": details["why_not"],
    }


def _kept(workspace: Workspace, graph: Artifact, log: str) -> str:
    """Keep what a builder said before it died; says where, or why not."""
    try:
        path = workspace.write_log(f"{graph.path.stem}-died.log", log)
    except ArtifactError as err:
        return f"What it said is lost: {err}"
    return f"What it said until then is in {path}"


def _attest(figures: EngineFigures, asked: Precision | None) -> Attestation:
    """Attest the asked precision; where none was, as of a foreign file, the one that prevails."""
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


def _graph_to_build(
    workspace: Workspace,
    source: Artifact,
    asked: Precision | None,
    request: QuantizationRequest,
    sm: str | None,
    progress: Progress,
    *,
    force: bool,
) -> Artifact:
    """The source itself, or its weights exported or quantised for TensorRT.

    asked, sm: as of `build_engine`. request: how it is quantised where that is asked for.
    """
    manifest, name = source.manifest, source.path.name
    if manifest is None:
        progress.note(f"{name} has no manifest: it is built as it is, never retyped")
        check_foreign(read_onnx(source.path), name, progress)
        return source
    precision = asked or manifest.precision

    def suits(other: Manifest) -> bool:
        return (
            _is_for_engines(other)
            and other.precision is precision
            and other.weights_sha256 == manifest.weights_sha256
            and (other.config, other.batch) == (manifest.config, manifest.batch)
            and (precision in QUANTIZED or other.opset == manifest.opset)
            and other.asked == manifest.asked
            and not other.failed
        )

    if precision not in QUANTIZED or request.images is request.placement is None:
        if suits(manifest) or (force and manifest.precision is precision):
            if _is_portable_int8(manifest):
                progress.note(
                    f"{name} is {precision.value} in an fp32 graph; t2t-deploy quantize --target "
                    "tensorrt makes one that is fp16 elsewhere"
                )
            return source
        ready = [a for a in workspace.artifacts("onnx") if suits(a.require_manifest())]
        if ready:
            return workspace.checked(ready[-1])
    if precision in QUANTIZED:
        if request.images is None and not precision.weights_only:
            raise CalibrationError(
                f"{name} is {manifest.precision.value}, and {precision.value} ranges are taken on "
                "pictures: give a folder of images, or make the graph first: t2t-deploy quantize "
                f"--type {precision.value} --target tensorrt --images DIR"
            )
        progress.note(f"quantising the weights of {name} to {precision.value} for tensorrt")
        request = dataclasses.replace(request, precision=precision)
        plan = plan_quantization(workspace, source.path, request, progress, force=force)
        made = quantized(workspace, plan, progress, sm=sm)
        advice = calibration_advice(made.require_manifest())
        if made.require_manifest().failed and advice is not None:
            progress.note(advice)
        return workspace.checked(made, force=force)
    progress.note(
        f"{name} is {manifest.precision.value} for {manifest.target}: exporting its weights again "
        f"in {precision.value} for tensorrt"
    )
    form = dataclasses.replace(
        forms_asked(manifest),
        batch=manifest.batch,
        precision=precision,
        target=Target.TENSORRT,
        opset=manifest.opset,
        graph_io=manifest.graph_io,
    )
    again = graph_of_weights(workspace, manifest, form, progress)
    draft = draft_manifest(again, form, manifest.weights, manifest.handed_on)
    graph = store_graph(workspace, again, form, draft, progress)
    return workspace.checked(graph, force=force)


def _buildable(manifest: Manifest, *, asked: Precision | None, calibrates: bool) -> bool:
    """Whether an export is one to start from: any float one, a quantised one if it fits."""
    if manifest.precision not in QUANTIZED or calibrates:
        return manifest.precision not in QUANTIZED
    return _is_for_engines(manifest) and asked in (None, manifest.precision)


def _is_for_engines(manifest: Manifest) -> bool:
    return manifest.target == Target.TENSORRT.value or _is_portable_int8(manifest)


def _is_portable_int8(manifest: Manifest) -> bool:
    """Whether a graph has the static ranges and signed codes that TensorRT takes."""
    portable = manifest.target == Target.PORTABLE.value
    return portable and manifest.quantization.mode == "static"
