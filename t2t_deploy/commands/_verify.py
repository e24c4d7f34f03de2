"""Artifacts against the reference."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np

from t2t_deploy._files import temporary_folder
from t2t_deploy._options import FILE, AnyPath, Opt, Role, command
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import (
    ArtifactFiles,
    CpuBackend,
    are_named,
    check_engine,
    cpu_backend,
    open_engine,
    workspace_of,
)
from t2t_deploy.commands._locate import locate_file
from t2t_deploy.commands._nodewise import (
    bare_graph,
    check_plot_request,
    draw_nodewise,
    nodewise_file,
)
from t2t_deploy.errors import ArtifactError, EngineError, ImageError, UsageError
from t2t_deploy.graph import read_onnx
from t2t_deploy.images import pixels_of
from t2t_deploy.pictures import image_set_from_folder
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    Session,
    SessionRequest,
    open_session,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.types import OUTPUT_NAME, TOLERANCES, GraphIO, Precision, Status, Tail, Tolerance
from t2t_deploy.verify import (
    Located,
    NodewiseReport,
    NodewiseSession,
    PictureSet,
    PixelSession,
    Verification,
    compare_logits,
    logits_of,
    nodewise_not_run,
    not_located,
    not_verified,
    on_pixel_grid,
    outputs_of,
    standard_pictures,
    tail_fault,
    verify_session,
    why_non_finite,
)
from t2t_deploy.workspace import Artifact, Manifest, Workspace

MAX_PICTURES = 64
# Node by node takes seconds where a runtime takes tenths of one.
_MAX_NODEWISE_PICTURES = 3


@dataclass(frozen=True, slots=True)
class VerifiedArtifact:
    """An artifact and its verdicts. plot: the picture of the node by node one.

    located: what a comparison layer by layer found, where it was asked for.
    """

    artifact: Artifact
    verification: Verification
    nodewise: NodewiseReport | None = None
    plot: Path | None = None
    located: Located | None = None

    @property
    def failed(self) -> bool:
        """Whether one of the verdicts is that it fell short."""
        verdicts = (self.verification, self.nodewise, self.located)
        return any(v is not None and v.status is Status.FAILED for v in verdicts)


def verify_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    *,
    backend: str = DEFAULT_BACKEND,
) -> Verification:
    """Compare a file with the reference on the standard pictures, or on others.

    backend: of the ONNX files. What no runtime here can run is reported as not run, with the
    reason. bf16 has no runtime that every CPU has: for ONNX Runtime it is evaluated node by node,
    on three pictures, which the result says.
    """
    tolerance = TOLERANCES[manifest.precision]
    if manifest.kind == "engine":
        check_engine(Artifact(path, manifest))
        return _verify_engine(Artifact(path, manifest), weights, pictures, tolerance)
    nodewise = manifest.precision is Precision.BF16 and backend == DEFAULT_BACKEND
    reason = why_not_runnable(backend)
    if reason is None and not nodewise:
        reason = why_not_in(backend, manifest.precision)
    if reason is not None:
        return not_verified(tolerance, reason)
    chosen = standard_pictures(manifest.config["image_size"]) if pictures is None else pictures
    graph_io = GraphIO.of_details(manifest.details)
    if graph_io.embed_preprocess:
        chosen = on_pixel_grid(chosen)
    eager = SessionRequest(REFERENCE_BACKEND, weights, config=manifest.config)
    if nodewise:
        few = _first(chosen, _MAX_NODEWISE_PICTURES)
        with (
            open_session(eager) as reference,
            NodewiseSession(bare_graph(path, graph_io)) as rounding,
        ):
            result = verify_session(reference, rounding, few, tolerance)
        how = (
            f"evaluated node by node on {len(few.names)} pictures: ONNX Runtime's CPU kernels have "
            "no bf16 matrix product"
        )
        if not graph_io.bare:
            how += ", and of the graph inside its ends"
        result = _with_cause(result, path, manifest, graph_io, few)
        reason = how if result.reason is None else f"{result.reason}; {how}"
        return dataclasses.replace(result, reason=reason)
    request = SessionRequest(backend, path, precision=manifest.precision)
    if not graph_io.bare:
        result = _verify_with_graph_io(request, eager, graph_io, chosen, tolerance)
    else:
        with open_session(eager) as reference, open_session(request) as other:
            result = verify_session(reference, other, chosen, tolerance)
    return _with_cause(result, path, manifest, graph_io, chosen)


def _verify_engine(
    artifact: Artifact, weights: Path, pictures: PictureSet | None, tolerance: Tolerance
) -> Verification:
    """An engine against the reference on the CPU, or why it is not run."""
    manifest = artifact.require_manifest()
    graph_io = GraphIO.of_details(manifest.details)
    reason = why_not_runnable(manifest.engine_backend)
    if reason is None and graph_io.tail is not Tail.LOGITS:
        reason = (
            f"it gives {graph_io.tail.value}, and an engine's logits cannot be shown afterwards: "
            "verify its graph, or an engine without --tail"
        )
    if reason is not None:
        return not_verified(tolerance, reason)
    chosen = standard_pictures(manifest.config["image_size"]) if pictures is None else pictures
    if graph_io.embed_preprocess:
        chosen = on_pixel_grid(chosen)
    eager = SessionRequest(REFERENCE_BACKEND, weights, config=manifest.config)
    with open_session(eager) as reference, open_engine(artifact) as session:
        own = PixelSession(session) if graph_io.embed_preprocess else session
        return verify_session(reference, own, chosen, tolerance)


def _with_cause(
    result: Verification, path: Path, manifest: Manifest, graph_io: GraphIO, pictures: PictureSet
) -> Verification:
    """The same verdict; where logits are no numbers, the tensor that is the first without."""
    if result.status is not Status.FAILED or result.rel_l2 is not None:
        return result
    for picture in pictures.pictures:
        fed = np.repeat(picture[None], manifest.batch or 1, axis=0)
        cause = why_non_finite(path, pixels_of(fed) if graph_io.embed_preprocess else fed)
        if cause is not None:
            return dataclasses.replace(result, reason=f"{result.reason}; {cause}")
    return result


def _verify_with_graph_io(
    request: SessionRequest,
    eager: SessionRequest,
    graph_io: GraphIO,
    pictures: PictureSet,
    tolerance: Tolerance,
) -> Verification:
    """The verdict on the logits inside a file, and on the tail behind them.

    The file runs as it is, and once more as a copy that differs in one thing: its logits are an
    output too. The copy's logits are held against the reference's, and the file's own
    probabilities against the softmax of the copy's logits.
    """
    import onnx

    from t2t_deploy.graph import expose_logits

    with contextlib.ExitStack() as stack:

        def opened(asked: SessionRequest) -> Session:
            session = stack.enter_context(open_session(asked))
            return PixelSession(session) if graph_io.embed_preprocess else session

        # in the workspace, which the stored weights are of
        folder = stack.enter_context(temporary_folder(eager.path.parent))
        reference, own = stack.enter_context(open_session(eager)), opened(request)
        wanted = logits_of(reference, pictures.pictures)
        found = outputs_of(own, pictures.pictures)
        if graph_io.tail is Tail.LOGITS:
            return compare_logits(wanted, found[OUTPUT_NAME], pictures.names, tolerance)
        shown = folder / "logits.onnx"
        onnx.save(expose_logits(read_onnx(request.path, external_data=True)), shown)
        logits = logits_of(opened(dataclasses.replace(request, path=shown)), pictures.pictures)
    result = compare_logits(wanted, logits, pictures.names, tolerance)
    fault = None if result.rel_l2 is None else tail_fault(found, logits)
    if fault is None:
        return result
    reason = fault if result.reason is None else f"{result.reason}; {fault}"
    return dataclasses.replace(result, status=Status.FAILED, reason=reason)


@command
def verify_artifacts(
    artifacts: ArtifactFiles = (),
    *,
    images: Annotated[
        AnyPath | None,
        Opt("Folder of pictures to use.", role=Role.READS, recorded="verification pictures"),
    ] = None,
    nodewise: Annotated[
        bool,
        Opt("Evaluate each graph with true rounding and overflow after every node as well."),
    ] = False,
    locate: Annotated[
        bool,
        Opt(
            "Compare layer by layer as well, and name the first one that differs.",
            recipe=False,
            recorded="",
        ),
    ] = False,
    plot: Annotated[
        AnyPath | None,
        Opt(
            "PNG of --nodewise, instead of the one in the workspace's logs.",
            FILE,
            Role.WRITES,
            recipe=False,
        ),
    ] = None,
    backend: CpuBackend = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> list[VerifiedArtifact]:
    """Compare artifacts with the reference once more: ``t2t-deploy verify``.

    artifacts: none is all of the workspace. images: a folder to take instead of the standard
    pictures. backend: the runtime of ONNX files; None is ONNX Runtime on the CPU. Its verdict on
    the standard pictures replaces the one in the manifest; that of another runtime is not stored.
    nodewise: also evaluate each graph with rounding and overflow after every node, and draw it, in
    ``plot`` or the workspace's logs; that verdict stands in the manifest beside the other, since a
    runtime may hide what it finds. locate: layer by layer too; that verdict stands there as well,
    since logits may hide what a layer shows. Raises ArtifactError, BackendError, ImageError,
    UsageError.

    Examples
    --------
    >>> from t2t_deploy import verify_artifacts
    >>> [found.verification.status.value for found in verify_artifacts([made.path])]
    ['passed']
    """
    workspace = workspace_of(workspace)
    paths = cast("tuple[Path, ...]", artifacts)
    named = are_named(paths)
    drawn = None if plot is None else Path(plot)
    if plot is not None and not nodewise:
        raise UsageError("plot draws what nodewise finds; give nodewise too")
    runtime = cpu_backend(backend)
    if paths:
        chosen = [workspace.open(path, force=True) for path in paths]
    else:
        chosen = [workspace.checked(a, force=True) for a in workspace.artifacts()]
    if not chosen:
        raise ArtifactError(
            f"workspace {workspace.root} has no artifact; make one first: t2t-deploy export"
        )
    check_plot_request(drawn, len(chosen))
    results = []
    for artifact in chosen:
        manifest = artifact.require_manifest()
        name = artifact.path.name
        progress.step(f"verifying {name}")
        tolerance = TOLERANCES[manifest.precision]
        pictures = None
        if not manifest.weights:
            reason = "made from a file without manifest, so its reference is unknown"
            unknown = nodewise_not_run(tolerance, reason) if nodewise else None
            nowhere = not_located(reason) if locate else None
            verdict = not_verified(tolerance, reason)
            results.append(VerifiedArtifact(artifact, verdict, unknown, located=nowhere))
            continue
        if images is not None:
            pictures = _pictures_from_folder(
                Path(images), int(manifest.config["image_size"]), progress
            )
        weights = workspace.weights(manifest)
        try:
            result = verify_file(artifact.path, manifest, weights, pictures, backend=runtime)
        except EngineError as err:
            if named:
                raise
            result = not_verified(tolerance, str(err))
        kept = pictures is None and (runtime == DEFAULT_BACKEND or manifest.kind == "engine")
        if kept and result.status is not Status.NOT_RUN:
            artifact = _kept(workspace, artifact, progress, verification=result.to_dict())
        few = None if pictures is None else _first(pictures, _MAX_NODEWISE_PICTURES)
        found = picture = layers = None
        if locate:
            progress.step(f"comparing the layers of {name}")
            layers = locate_file(artifact.path, manifest, weights, few, progress)
            if pictures is None:
                artifact = _told(workspace, artifact, progress, "located", layers)
        if nodewise:
            progress.step(f"evaluating {name} node by node")
            try:
                found = nodewise_file(artifact.path, manifest, weights, few, progress)
            except ArtifactError as err:
                if named:
                    raise
                found = nodewise_not_run(tolerance, str(err))
            picture = draw_nodewise(workspace, name, found, drawn, progress)
            if pictures is None:
                artifact = _told(workspace, artifact, progress, "nodewise", found)
        results.append(VerifiedArtifact(artifact, result, found, picture, layers))
    return results


def verify_values(results: list[VerifiedArtifact]) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    return {"results": [_verified(result) for result in results]}


def _verified(result: VerifiedArtifact) -> dict[str, Any]:
    values = {"artifact": str(result.artifact.path), **result.verification.to_dict()}
    if result.nodewise is not None:
        plot = None if result.plot is None else str(result.plot)
        values["nodewise"] = {**result.nodewise.to_dict(), "plot": plot}
    if result.located is not None:
        values["located"] = result.located.to_dict()
    return values


def _told(
    workspace: Workspace,
    artifact: Artifact,
    progress: Progress,
    name: str,
    verdict: NodewiseReport | Located,
) -> Artifact:
    """Keep a verdict in the manifest; one of nothing leaves what stands there."""
    if verdict.status is Status.NOT_RUN:
        return artifact
    return _kept(workspace, artifact, progress, details={name: verdict.summary()})


def _kept(workspace: Workspace, artifact: Artifact, progress: Progress, **verdict: Any) -> Artifact:
    """The artifact with a verdict in its manifest; where that cannot be written, it is said."""
    if not os.access(artifact.path.parent, os.W_OK):
        progress.note(
            f"{artifact.path.parent} is read-only: the verdict on {artifact.path.name} is told "
            "here and not kept in its manifest"
        )
        return artifact
    return workspace.update(artifact, **verdict)


def _first(pictures: PictureSet, count: int) -> PictureSet:
    return PictureSet(pictures.names[:count], pictures.pictures[:count], pictures.absent)


def _pictures_from_folder(folder: Path, size: int, progress: Progress) -> PictureSet:
    images = image_set_from_folder(folder, count=MAX_PICTURES)
    if images.left_out:
        progress.note(f"took the first {MAX_PICTURES} pictures, left out {images.left_out}")
    (batch,) = images.readable_batches(size, len(images.paths))
    if batch.unreadable:
        raise ImageError(batch.unreadable[0][1])
    return PictureSet(tuple(path.name for path in images.paths), batch.pictures)
