"""Artifacts against the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._optional import is_installed, require
from t2t_deploy._options import AnyPath, Opt, Role, command, ending
from t2t_deploy._preparation import Preparation
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
from t2t_deploy.errors import ArtifactError, EngineError, ImageError, UsageError
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import image_set_from_folder
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    SessionRequest,
    open_session,
    why_not_runnable,
)
from t2t_deploy.types import TOLERANCES, Status
from t2t_deploy.verify import (
    NODEWISE_PICTURES,
    Located,
    NodewiseReport,
    PictureSet,
    PixelSession,
    Verification,
    locate_file,
    nodewise_file,
    nodewise_not_run,
    not_located,
    not_verified,
    pictures_for,
    plot_nodewise,
    verify_file,
    verify_session,
)
from t2t_deploy.workspace import Artifact, Workspace

MAX_IMAGES = 64


@dataclass(frozen=True, slots=True)
class VerifiedArtifact:
    """An artifact and its verdicts. plot: the picture of the node by node one.

    located: what a comparison layer by layer found, where it was asked for. misfits: why verdicts
    are not there although this machine has the tools, by their field.
    """

    artifact: Artifact
    verification: Verification
    nodewise: NodewiseReport | None = None
    plot: Path | None = None
    located: Located | None = None
    misfits: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether one of the verdicts is that it fell short."""
        verdicts = (self.verification, self.nodewise, self.located)
        return any(v is not None and v.status is Status.FAILED for v in verdicts)


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
            ending(".png"),
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
    if plot is not None and not nodewise:
        raise UsageError("plot draws what nodewise finds; give nodewise too")
    runtime = cpu_backend(backend, workspace, paths, progress)
    if paths:
        chosen = [workspace.open(path, force=True) for path in paths]
    else:
        chosen = [workspace.checked(a, force=True) for a in workspace.artifacts()]
    if not chosen:
        raise ArtifactError(
            f"workspace {workspace.root} has no artifact; make one first: t2t-deploy export"
        )
    if plot is not None:
        if len(chosen) != 1:
            raise UsageError(
                f"--plot names one picture and {len(chosen)} artifacts are verified; name one "
                "artifact, or leave --plot out: each gets its picture in the workspace's logs"
            )
        require("matplotlib")
    if images is None and os.access(workspace.root, os.W_OK):
        workspace.check_writable(say=progress.note)
    results = []
    for artifact in chosen:
        manifest = artifact.require_manifest()
        name = artifact.path.name
        progress.step(f"verifying {name}")
        tolerance = TOLERANCES[manifest.precision]
        if not manifest.weights:
            reason = "made from a file without manifest, so its reference is unknown"
            unknown = nodewise_not_run(tolerance, reason) if nodewise else None
            nowhere = not_located(reason) if locate else None
            verdict = not_verified(tolerance, reason)
            every = dict.fromkeys(_VERDICTS, reason)
            results.append(VerifiedArtifact(artifact, verdict, unknown, None, nowhere, every))
            continue
        misfits: dict[str, str] = {}
        pictures = few = None
        if images is not None:
            pictures = _pictures_from_folder(Path(images), manifest.preparation, progress)
            few = pictures.first(NODEWISE_PICTURES)
        weights = workspace.weights(manifest)
        is_engine = manifest.kind == "engine"
        try:
            if is_engine:
                result = _verify_engine(artifact, weights, pictures, misfits)
            else:
                result = verify_file(artifact.path, manifest, weights, pictures, backend=runtime)
        except EngineError as err:
            if named:
                raise
            result = not_verified(tolerance, str(err))
        standard = pictures is None
        if standard and (is_engine or runtime == DEFAULT_BACKEND):
            artifact = _kept(
                workspace, artifact, result.status, progress, verification=result.to_dict()
            )
        found = drawn = layers = None
        if locate:
            progress.step(f"comparing the layers of {name}")
            layers = locate_file(artifact.path, manifest, weights, few, progress)
            if is_engine:
                misfits["located"] = str(layers.reason)
            if standard:
                details = {"located": layers.summary()}
                artifact = _kept(workspace, artifact, layers.status, progress, details=details)
        if nodewise:
            progress.step(f"evaluating {name} node by node")
            try:
                found = nodewise_file(artifact.path, manifest, weights, few, progress)
                if is_engine:
                    misfits["nodewise"] = str(found.reason)
            except ArtifactError as err:
                if named:
                    raise
                found = nodewise_not_run(tolerance, str(err))
                misfits["nodewise"] = str(err)
            drawn = _draw_nodewise(
                workspace, name, found, None if plot is None else Path(plot), progress
            )
            if standard:
                details = {"nodewise": found.summary()}
                artifact = _kept(workspace, artifact, found.status, progress, details=details)
        results.append(VerifiedArtifact(artifact, result, found, drawn, layers, misfits))
    return results


_VERDICTS = {
    "verification": "verified",
    "nodewise": "evaluated node by node",
    "located": "compared by layers",
}


def why_not_judged(results: Sequence[VerifiedArtifact]) -> str | None:
    """Why a verdict that was asked for was given on no artifact; None where one was.

    None too where it is only that this machine has no tool for it, as the results say.
    """
    for name, done in _VERDICTS.items():
        verdicts = [verdict for one in results if (verdict := getattr(one, name)) is not None]
        reasons = dict.fromkeys(one.misfits[name] for one in results if name in one.misfits)
        if verdicts and reasons and all(one.status is Status.NOT_RUN for one in verdicts):
            return f"nothing here can be {done}: {'; '.join(reasons)}"
    return None


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


def _verify_engine(
    artifact: Artifact, weights: Path, pictures: PictureSet | None, misfits: dict[str, str]
) -> Verification:
    """An engine against the reference on the CPU, or why it is not run.

    misfits: gets the reason where it is not that a tool lacks.
    """
    check_engine(artifact)
    manifest = artifact.require_manifest()
    tolerance = TOLERANCES[manifest.precision]
    graph_io = manifest.graph_io
    reason = why_not_runnable(manifest.engine.backend)
    if reason is None and graph_io.tail.appended:
        reason = (
            f"it gives {graph_io.tail.value}, and an engine's logits cannot be shown afterwards: "
            "verify its graph, or an engine without --tail"
        )
        misfits["verification"] = reason
    if reason is not None:
        return not_verified(tolerance, reason)
    chosen = pictures_for(manifest, pictures)
    eager = SessionRequest(REFERENCE_BACKEND, weights, config=manifest.config)
    with open_session(eager) as reference, open_engine(artifact) as session:
        own = PixelSession(session, manifest.preparation) if graph_io.embed_preprocess else session
        return verify_session(reference, own, chosen, tolerance)


def _draw_nodewise(
    workspace: Workspace, name: str, found: NodewiseReport, plot: Path | None, progress: Progress
) -> Path | None:
    """The picture's file: ``plot``, else one in the workspace's logs.

    None where nothing was evaluated, or matplotlib is absent and no picture was asked for.
    """
    if found.status is Status.NOT_RUN:
        return None
    if plot is None and not is_installed("matplotlib"):
        progress.note("no picture of it: pip install 't2t-deploy[plot]' brings matplotlib")
        return None
    target = plot or workspace.root / "logs" / f"{Path(name).stem}.nodewise.png"
    plot_nodewise(found, target, title=f"{name}, node by node: {found.status.value}")
    return target


def _kept(
    workspace: Workspace, artifact: Artifact, status: Status, progress: Progress, **verdict: Any
) -> Artifact:
    """The artifact with a verdict in its manifest; one of nothing leaves what stands there.

    Where the manifest cannot be written, it is said.
    """
    if status is Status.NOT_RUN:
        return artifact
    for folder in (artifact.path.parent, workspace.root):
        if os.access(folder, os.W_OK):
            continue
        progress.note(
            f"{folder} is read-only: the verdict on {artifact.path.name} is shown "
            "here and not kept in its manifest"
        )
        return artifact
    return workspace.update(artifact, **verdict)


def _pictures_from_folder(folder: Path, preparation: Preparation, progress: Progress) -> PictureSet:
    images = image_set_from_folder(folder, count=MAX_IMAGES)
    if images.left_out:
        progress.note(f"took the first {MAX_IMAGES} pictures, left out {images.left_out}")
    assumed = Assumed()
    (batch,) = images.readable_batches(preparation, len(images.paths), assumed=assumed)
    for line in assumed.lines():
        progress.note(line)
    if batch.unreadable:
        raise ImageError(batch.unreadable[0][1])
    return PictureSet(tuple(path.name for path in images.paths), batch.pictures)
