"""Accuracy of artifacts on a folder of pictures, side by side with the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._files import atomic_write
from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._accuracy_run import run_pictures
from t2t_deploy.commands._artifacts import cpu_backend, usable_artifacts
from t2t_deploy.commands._evaluate_across import run_pictures_across
from t2t_deploy.commands._evaluate_sessions import (
    EvaluateRequest,
    is_nodewise,
    open_reference,
    open_runner,
)
from t2t_deploy.errors import BackendError, CalibrationError, ImageError, UsageError, counted
from t2t_deploy.pictures import LabelledSet, labelled_set_from_folder, overlap
from t2t_deploy.runtime import why_not_in, why_not_runnable
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


def evaluate_artifacts(
    workspace: Workspace, request: EvaluateRequest, progress: Progress = silent
) -> Evaluation:
    """Run artifacts, and the references of their weights, over the same pictures.

    Pictures are read once for all artifacts of the same model, a batch at a time. What cannot run
    here is reported as not run, with the reason.
    Raises BackendError where that is all of them, ArtifactError, ImageError, UsageError,
    MissingDependencyError.
    """
    _check_confusion(request.confusion)
    cpu_backend(request.backend)
    if request.ray is not None:
        request.ray.check()
    images = labelled_set_from_folder(request.images, limit=request.limit)
    if images.left_out:
        progress.note(f"took {counted(len(images.paths), 'picture')}, left out {images.left_out}")
    artifacts = usable_artifacts(
        workspace,
        request.artifacts,
        force=request.force,
        purpose="evaluate",
        progress=progress,
        among=request.among,
    )
    models: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        models.setdefault(_model_key(artifact), []).append(artifact)
    results: list[EvaluatedArtifact] = []
    references: dict[str, Accuracy] = {}
    unreadable: dict[Path, str] = {}
    for members in models.values():
        found = _evaluate_model(workspace, members, images, request, unreadable, progress)
        results += found
        reference = next((r.reference for r in found if r.reference is not None), None)
        if reference is not None:
            references[_reference_name(members[0], references)] = reference
    results.sort(key=lambda result: artifacts.index(result.artifact))
    if all(result.status is Status.NOT_RUN for result in results):
        reasons = "; ".join(dict.fromkeys(str(result.reason) for result in results))
        raise BackendError(f"nothing here can be evaluated: {reasons}")
    evaluation = Evaluation(
        images, tuple(results), references, tuple(unreadable.values()), request.confusion
    )
    if request.confusion is not None:
        _draw(evaluation, request.confusion)
    return evaluation


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
    if reason is not None or request.artifacts or manifest is None:
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
    if reason is not None and request.artifacts:
        raise CalibrationError(reason)
    return reason


def _why_no_reference(artifact: Artifact) -> str | None:
    if artifact.manifest is None or not artifact.manifest.weights:
        return "made from a file without manifest"
    return why_not_runnable("eager")


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


def _check_confusion(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise UsageError(f"--confusion is {path}; expected a file that ends in .png")
    require("matplotlib")


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
