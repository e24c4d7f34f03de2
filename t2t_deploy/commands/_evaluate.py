"""Accuracy of artifacts on a folder of pictures, side by side with the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._files import atomic_write
from t2t_deploy._optional import require
from t2t_deploy._options import AnyPath, Opt, Role, command, ending
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._accuracy_run import run_pictures
from t2t_deploy.commands._artifacts import (
    ArtifactFiles,
    CpuBackend,
    Force,
    are_named,
    cpu_backend,
    usable_artifacts,
    workspace_of,
)
from t2t_deploy.commands._evaluate_across import run_pictures_across
from t2t_deploy.commands._evaluate_sessions import (
    DEFAULT_BATCH,
    EvaluateAcross,
    EvaluateRequest,
    RayAddress,
    RayWorkers,
    is_nodewise,
    open_reference,
    open_runner,
)
from t2t_deploy.errors import BackendError, CalibrationError, ImageError, UsageError, counted
from t2t_deploy.pictures import LabelledSet, labelled_set_from_folder, overlap
from t2t_deploy.runtime import REFERENCE_BACKEND, why_not_in, why_not_runnable
from t2t_deploy.types import Precision, Status
from t2t_deploy.verify import Accuracy, ConfusionPanel, plot_confusion
from t2t_deploy.workspace import Artifact, Workspace


@dataclass(frozen=True, slots=True)
class EvaluatedArtifact:
    """An artifact and its figures.

    status: passed where every picture was read and gave finite logits, of the reference too, failed
    where one did not.
    batch: pictures at a time. reference: the figures of the float32 model with the same weights.
    """

    artifact: Artifact
    status: Status
    accuracy: Accuracy | None = None
    reference: Accuracy | None = None
    batch: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results in the order of the artifacts; a line for each picture that could not be read.

    references: the float32 models by name, each once. plot: the confusion of classes.
    """

    images: LabelledSet
    results: tuple[EvaluatedArtifact, ...]
    references: Mapping[str, Accuracy]
    unreadable: tuple[str, ...]
    plot: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether a picture was not read, or an artifact gave logits that are no numbers."""
        return bool(self.unreadable) or any(r.status is Status.FAILED for r in self.results)


@command
def evaluate_artifacts(
    artifacts: ArtifactFiles = (),
    *,
    images: Annotated[
        AnyPath,
        Opt(
            "Folder of class folders, or of pictures without labels.",
            role=Role.READS,
            recorded="evaluation pictures",
        ),
    ],
    batch: Annotated[
        int,
        Opt(
            "Pictures at a time where the artifact's batch is free; default 8.", none=DEFAULT_BATCH
        ),
    ] = DEFAULT_BATCH,
    limit: Annotated[int | None, Opt("Take this many pictures, from all classes in turn.")] = None,
    confusion: Annotated[
        AnyPath | None,
        Opt(
            "Draw which classes are taken for which.",
            ending(".png"),
            Role.WRITES,
            metavar="FILE.png",
        ),
    ] = None,
    ray: RayAddress = None,
    workers: RayWorkers = None,
    backend: CpuBackend = None,
    force: Force = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Accuracy on a folder, side by side with the reference: ``t2t-deploy evaluate``.

    artifacts: none is all of the workspace. ray: address of a cluster, ``local``, ``auto`` or
    HOST:PORT. Pictures are read once for all artifacts of the same model, a batch at a time. What
    cannot run here is reported as not run, with the reason. Raises BackendError where that is all
    of them, ArtifactError, ImageError, UsageError, MissingDependencyError.

    Examples
    --------
    >>> from t2t_deploy import evaluate_artifacts
    >>> found = evaluate_artifacts([made.path], images="val")
    >>> [(one.accuracy.images, one.accuracy.agreement) for one in found.results]
    [(4, 1.0)]
    """
    if ray is None and workers is not None:
        raise UsageError("workers are about a cluster; give ray too, or leave them out")
    workspace = workspace_of(workspace)
    request = EvaluateRequest(
        images=Path(images),
        artifacts=cast("tuple[Path, ...]", artifacts),
        batch=batch,
        limit=limit,
        confusion=None if confusion is None else Path(confusion),
        backend=backend,
        force=force,
        ray=None if ray is None else EvaluateAcross(ray, workers),
    )
    if confusion is not None:
        require("matplotlib")
    cpu_backend(request.backend)
    if request.ray is not None:
        request.ray.check()
    labelled = labelled_set_from_folder(request.images, limit=request.limit)
    if labelled.left_out:
        progress.note(
            f"took {counted(len(labelled.paths), 'picture')}, left out {labelled.left_out}"
        )
    chosen = usable_artifacts(
        workspace,
        request.artifacts,
        force=request.force,
        purpose="evaluate",
        progress=progress,
    )
    models: dict[str, list[Artifact]] = {}
    for artifact in chosen:
        models.setdefault(_model_key(artifact), []).append(artifact)
    results: list[EvaluatedArtifact] = []
    references: dict[str, Accuracy] = {}
    unreadable: dict[Path, str] = {}
    for members in models.values():
        found = _evaluate_model(workspace, members, labelled, request, unreadable, progress)
        results += found
        reference = next((r.reference for r in found if r.reference is not None), None)
        if reference is not None:
            references[_reference_name(members[0], references)] = reference
    results.sort(key=lambda result: chosen.index(result.artifact))
    if all(result.status is Status.NOT_RUN for result in results):
        reasons = "; ".join(dict.fromkeys(str(result.reason) for result in results))
        raise BackendError(f"nothing here can be evaluated: {reasons}")
    evaluation = Evaluation(
        labelled, tuple(results), references, tuple(unreadable.values()), request.confusion
    )
    if request.confusion is not None:
        _draw(evaluation, request.confusion)
    return evaluation


def evaluate_values(found: Evaluation) -> dict[str, Any]:
    """What ``evaluate --json`` prints."""
    return {
        "images": {
            "folder": str(found.images.folder),
            "count": len(found.images.paths),
            "left_out": found.images.left_out,
            "labelled": found.images.has_labels,
            "unreadable": list(found.unreadable),
        },
        "results": [_evaluated(result) for result in found.results],
        "confusion": None if found.plot is None else str(found.plot),
    }


def _evaluated(result: EvaluatedArtifact) -> dict[str, Any]:
    manifest, figures, reference = result.artifact.manifest, result.accuracy, result.reference
    return {
        "artifact": str(result.artifact.path),
        "precision": None if manifest is None else manifest.precision.value,
        "status": result.status.value,
        "reason": result.reason,
        "batch": result.batch,
        "images": 0 if figures is None else figures.images,
        "top1": None if figures is None else figures.top1,
        "top5": None if figures is None else figures.top5,
        "agreement": None if figures is None else figures.agreement,
        "rel_l2_mean": None if figures is None else figures.rel_l2_mean,
        "rel_l2_max": None if figures is None else figures.rel_l2_max,
        "non_finite": None if figures is None else figures.non_finite,
        "reference": None
        if reference is None
        else {"top1": reference.top1, "top5": reference.top5},
    }


def _evaluate_model(
    workspace: Workspace,
    artifacts: Sequence[Artifact],
    images: LabelledSet,
    request: EvaluateRequest,
    unreadable: dict[Path, str],
    progress: Progress,
) -> list[EvaluatedArtifact]:
    """Evaluate artifacts of one model side by side; files not read are added to ``unreadable``."""
    reasons = [
        _why_not_evaluated(artifact, images, request) or _calibrated_on(artifact, images, request)
        for artifact in artifacts
    ]
    no_reference = _why_no_reference(artifacts[0])
    if no_reference is not None and not images.has_labels:
        reasons = [reason or f"no labels, and no reference: {no_reference}" for reason in reasons]
    with contextlib.ExitStack() as stack:
        runners = {
            place: open_runner(artifact, request, stack)
            for place, artifact in enumerate(artifacts)
            if reasons[place] is None
        }
        reference = weights = None
        if runners and no_reference is None:
            weights = workspace.weights(artifacts[0].require_manifest())
            reference = open_reference(weights, artifacts[0], request, stack)
        if runners:
            names = ", ".join(artifacts[place].path.name for place in runners)
            progress.step(f"evaluating {names} on {counted(len(images.paths), 'picture')}")
            running = list(runners.values())
            size = running[0].session.inputs[0].shape[-1]
            assert size is not None  # open_runner refuses others
            if request.ray is None:
                run_pictures(running, reference, images, size, unreadable, progress)
            else:
                chosen = [artifacts[place] for place in runners]
                run_pictures_across(
                    request, chosen, weights, running, reference, images, size, unreadable, progress
                )
    base = None if reference is None else reference.total.result()
    results = []
    for place, (artifact, reason) in enumerate(zip(artifacts, reasons, strict=True)):
        if reason is not None:
            results.append(EvaluatedArtifact(artifact, Status.NOT_RUN, reason=reason))
            continue
        runner = runners[place]
        accuracy = runner.total.result()
        short = _what_fell_short(accuracy, base, len(images.paths))
        remarks = [runner.remark, no_reference and f"no reference: {no_reference}", short]
        results.append(
            EvaluatedArtifact(
                artifact,
                Status.PASSED if short is None else Status.FAILED,
                accuracy,
                base,
                runner.batch,
                "; ".join(remark for remark in remarks if remark) or None,
            )
        )
    return results


def _why_not_evaluated(
    artifact: Artifact, images: LabelledSet, request: EvaluateRequest
) -> str | None:
    """None where a runtime here can run the artifact and, unless it was named, classes fit it."""
    manifest = artifact.manifest
    if manifest is not None and manifest.kind == "engine":
        reason = why_not_runnable(manifest.engine_backend)
        if reason is None and request.ray is not None:
            reason = "engines are evaluated on this machine's device, not across a cluster"
    else:
        backend = cpu_backend(request.backend)
        reason = why_not_runnable(backend)
        if reason is None and manifest is not None and not is_nodewise(artifact, request):
            reason = why_not_in(backend, manifest.precision)
    if reason is not None or are_named(request.artifacts) or manifest is None:
        return reason
    if images.has_labels:
        try:
            images.class_indices(int(manifest.config["num_classes"]))
        except ImageError as err:
            return str(err)
    if is_nodewise(artifact, request):
        lacks = why_not_in(cpu_backend(request.backend), Precision.BF16)
        return (
            f"{lacks}; name it to evaluate it node by node, which is slow, or --backend openvino "
            "where the CPU has bf16"
        )
    return None


def _calibrated_on(artifact: Artifact, images: LabelledSet, request: EvaluateRequest) -> str | None:
    """Why an artifact cannot be judged on pictures it was calibrated on.

    Raises CalibrationError for one that was named.
    """
    reason = overlap(artifact, images.paths)
    if reason is not None and are_named(request.artifacts):
        raise CalibrationError(reason)
    return reason


def _why_no_reference(artifact: Artifact) -> str | None:
    if artifact.manifest is None or not artifact.manifest.weights:
        return "made from a file without manifest"
    return why_not_runnable(REFERENCE_BACKEND)


def _what_fell_short(accuracy: Accuracy, reference: Accuracy | None, asked: int) -> str | None:
    found = []
    if accuracy.images < asked:
        found.append(f"{asked - accuracy.images} of {asked} pictures cannot be read")
    for whose, figures in (("", accuracy), ("the reference's ", reference)):
        if figures is not None and figures.non_finite:
            found.append(
                f"{whose}logits of {figures.non_finite} of {figures.images} pictures are NaN or "
                "infinite"
            )
    return "; ".join(found) or None


def _model_key(artifact: Artifact) -> str:
    """What is computed; a file without known weights is a model of its own."""
    manifest = artifact.manifest
    if manifest is None or not manifest.weights:
        return str(artifact.path)
    return manifest.model_key


def _reference_name(artifact: Artifact, taken: Container[str]) -> str:
    manifest = artifact.require_manifest()
    name = manifest.reference_name
    # the same dimensions with other weights
    return f"{name} {manifest.weights['sha256'][:8]}" if name in taken else name


def _draw(evaluation: Evaluation, path: Path) -> None:
    """Write the confusion of classes whole or not at all."""
    labelled = evaluation.images.has_labels
    figures = list(evaluation.references.items()) if labelled else []
    figures += [(r.artifact.path.name, r.accuracy) for r in evaluation.results if r.accuracy]
    panels = []
    for name, found in figures:
        share = found.top1 if labelled else found.agreement
        title = f"{name}\n{'top-1' if labelled else 'agreement'} {share or 0:.2%}"
        panels.append(ConfusionPanel(title, found.confusion))
    truth = "class of the picture" if labelled else "class the reference finds"
    with atomic_write(path) as temporary:
        plot_confusion(panels, temporary, truth=truth)
