"""Accuracy of artifacts on a folder of pictures, side by side with the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._optional import require
from t2t_deploy._options import AnyPath, Opt, Role, command, ending
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import (
    ArtifactFiles,
    Cause,
    CpuBackend,
    Force,
    NotRun,
    are_named,
    cpu_backend,
    nothing_judged,
    usable_artifacts,
    why_not_run,
    workspace_of,
)
from t2t_deploy.commands._class_names import class_names_of
from t2t_deploy.commands._decisions import (
    Targets,
    Threshold,
    decides,
    labelled_images,
    note_decisions,
)
from t2t_deploy.commands._evaluate_sessions import (
    ModelSessions,
    RayAddress,
    RayWorkers,
    check_ray,
    is_nodewise,
    preparation_of,
    run_pictures_across,
)
from t2t_deploy.commands._predict import num_classes_of
from t2t_deploy.errors import CalibrationError, ImageError, UsageError, counted
from t2t_deploy.pictures import ClassOrder, ClassOrderName, LabelledSet, overlap
from t2t_deploy.runtime import REFERENCE_BACKEND, why_not_in, why_not_runnable
from t2t_deploy.types import DEFAULT_THRESHOLD, Precision, Status, Tail
from t2t_deploy.verify import Accuracy, labels_in_doubt, plot_confusion, run_pictures
from t2t_deploy.workspace import Artifact, Workspace

DEFAULT_BATCH = 8


@dataclass(frozen=True, slots=True)
class EvaluatedArtifact:
    """An artifact and its figures.

    status: passed where every picture was read and gave finite logits, of the reference too, failed
    where one did not.
    batch: pictures at a time. reference: the figures of the float32 model with the same weights.
    cause: of one that was not run. doubt: why the float model's own accuracy says nothing.
    """

    artifact: Artifact
    status: Status
    accuracy: Accuracy | None = None
    reference: Accuracy | None = None
    batch: int | None = None
    reason: str | None = None
    cause: Cause | None = None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results in the order of the artifacts; a line for each picture that could not be read.

    references: the float32 models by name, each once. plot: the confusion of classes. targets: the
    table of labels.
    """

    images: LabelledSet
    results: tuple[EvaluatedArtifact, ...]
    references: Mapping[str, Accuracy]
    unreadable: tuple[str, ...]
    plot: Path | None = None
    targets: Path | None = None

    @property
    def failure(self) -> str | None:
        """What fell short: pictures not read, artifacts with logits that are no numbers."""
        failed = [r.artifact.path.name for r in self.results if r.status is Status.FAILED]
        short = []
        if self.unreadable:
            short.append(f"{counted(len(self.unreadable), 'picture')} cannot be read")
        if failed:
            short.append(f"failed: {', '.join(failed)}")
        return "; ".join(short) or None

    @property
    def misfits(self) -> str | None:
        """The artifacts that were not judged because the pictures do not fit them, and why."""
        found = [r for r in self.results if r.cause is Cause.MISFIT]
        return "; ".join(f"{r.artifact.path.name}: {r.reason}" for r in found) or None


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
    class_order: ClassOrderName = None,
    limit: Annotated[int | None, Opt("Take this many pictures, from all classes in turn.")] = None,
    targets: Targets = None,
    threshold: Threshold = None,
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

    artifacts: none is all of the workspace. class_order: text, natural, number or a file of class
    names says which class a folder is; None takes the artifact's own class names where the folders
    have these, else what all orders agree on. targets: a table of several labels for each picture.
    threshold: the least probability that is a yes, of one output or several labels; None is 0.5.
    ray: address of a cluster, ``local``, ``auto`` or HOST:PORT. Pictures are read once for all
    artifacts of the same model, a batch at a time. What cannot run here is reported as not run,
    with the reason. Where that is all of them it raises BackendError for lack of a tool, else
    MisfitError. Raises ArtifactError, ImageError, UsageError, MissingDependencyError.

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
    paths = cast("tuple[Path, ...]", artifacts)
    if confusion is not None:
        require("matplotlib")
    runtime = cpu_backend(backend, workspace, paths, progress)
    if ray is not None:
        check_ray(ray)
    labelled = labelled_images(images, targets, progress, limit=limit)
    if confusion is not None and labelled.targets and len(labelled.targets[0]) > 1:
        raise UsageError(
            "confusion draws one class of a picture, and targets name several; leave it out"
        )
    if labelled.left_out:
        progress.note(
            f"took {counted(len(labelled.paths), 'picture')}, left out {labelled.left_out}"
        )
    chosen = usable_artifacts(workspace, paths, force=force, purpose="evaluate", progress=progress)
    models: dict[str, list[Artifact]] = {}
    for artifact in chosen:
        models.setdefault(_model_key(artifact), []).append(artifact)
    order = cast("ClassOrder | Path | None", class_order)
    named = are_named(paths)
    evaluator = _Evaluator(
        *(workspace, labelled, order, runtime, batch, named, ray, workers, progress, threshold)
    )
    results: list[EvaluatedArtifact] = []
    references: dict[str, Accuracy] = {}
    for members in models.values():
        found = evaluator.evaluate(members)
        results += found
        reference = next((r.reference for r in found if r.reference is not None), None)
        if reference is not None:
            references[_reference_name(members[0], references)] = reference
    results.sort(key=lambda result: chosen.index(result.artifact))
    if all(result.status is Status.NOT_RUN for result in results):
        why = (NotRun(r.cause or Cause.NO_TOOL, str(r.reason)) for r in results)
        raise nothing_judged("evaluated", why)
    unreadable = tuple(evaluator.unreadable.values())
    plot = None if confusion is None else Path(confusion)
    table = None if targets is None else Path(targets)
    evaluation = Evaluation(labelled, tuple(results), references, unreadable, plot, table)
    if plot is not None:
        _draw(evaluation, plot)
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
            **({} if found.targets is None else {"targets": str(found.targets)}),
        },
        "results": [_evaluated(result) for result in found.results],
        "confusion": None if found.plot is None else str(found.plot),
    }


def _evaluated(result: EvaluatedArtifact) -> dict[str, Any]:
    manifest, figures, reference = result.artifact.manifest, result.accuracy, result.reference
    names = ("top1", "top5", "agreement", "rel_l2_mean", "rel_l2_max", "non_finite")
    return {
        "artifact": str(result.artifact.path),
        "precision": None if manifest is None else manifest.precision.value,
        "status": result.status.value,
        "reason": result.reason,
        "batch": result.batch,
        "images": 0 if figures is None else figures.images,
        **{name: getattr(figures, name, None) for name in names},
        **_decided(figures),
        "measure": None if figures is None else figures.measure,
        "drop": None if figures is None else figures.drop(reference),
        "doubt": result.doubt,
        "reference": None
        if reference is None
        else {"top1": reference.top1, "top5": reference.top5, **_decided(reference)},
    }


def _decided(figures: Accuracy | None) -> dict[str, Any]:
    """The figures of one output or several labels, where they are such."""
    decisions = None if figures is None else figures.decisions
    return {} if decisions is None else {"decisions": decisions.to_dict()}


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """Takes artifacts of one model after another over the same pictures.

    order: of class folders. backend: the runtime of ONNX files. batch: pictures at a time where the
    artifact's is free. named: whether the artifacts were named one by one. threshold: that was
    asked for. unreadable: a line for each file.
    """

    workspace: Workspace
    images: LabelledSet
    order: ClassOrder | Path | None
    backend: str
    batch: int
    named: bool
    ray: str | None
    workers: int | None
    progress: Progress
    threshold: float | None = None
    unreadable: dict[Path, str] = field(default_factory=dict)

    def evaluate(self, artifacts: Sequence[Artifact]) -> list[EvaluatedArtifact]:
        """Artifacts of one model side by side. Raises CalibrationError."""
        results, running = [], []
        no_reference = _why_no_reference(artifacts[0])
        asked, known = self.threshold, [a.manifest for a in artifacts if a.manifest is not None]
        sigmoid = any(manifest.graph_io.tail is Tail.SIGMOID for manifest in known)
        if sigmoid and not self.images.has_labels:
            asked = asked or DEFAULT_THRESHOLD
        deciding = decides(self.images, asked, num_classes_of(artifacts[0]))
        for artifact in artifacts:
            why = self._why_not(artifact) or self._calibrated_on(artifact)
            if why is None and deciding:
                why = _why_not_decided(artifact)
            if why is None and no_reference is not None and not self.images.has_labels:
                no_labels = f"no labels, and no reference: {no_reference.reason}"
                why = NotRun(no_reference.cause, no_labels)
            if why is None:
                running.append(artifact)
            else:
                results.append(
                    EvaluatedArtifact(artifact, Status.NOT_RUN, reason=why.reason, cause=why.cause)
                )
        if not running:
            return results
        weights = None
        if no_reference is None:
            weights = self.workspace.weights(artifacts[0].require_manifest())
        threshold = self.threshold or DEFAULT_THRESHOLD
        sessions = ModelSessions(
            tuple(running), weights, self.backend, self.batch, threshold, deciding
        )
        count = len(self.images.paths)
        with contextlib.ExitStack() as stack:
            runners, reference = sessions.open(stack)
            images = self._labelled(running[0], runners[0].total.num_classes)
            if images.known is not None and images.known.note is not None:
                self.progress.note(images.known.note)
            if runners[0].total.decisions is not None:
                decides(images, self.threshold, runners[0].total.num_classes)  # known now
                note_decisions(images, self.threshold, self.progress)
            names = ", ".join(artifact.path.name for artifact in running)
            self.progress.step(f"evaluating {names} on {counted(count, 'picture')}")
            preparation = preparation_of(running[0], runners[0].session)
            rest = runners, reference, images, preparation, self.unreadable, self.progress
            if self.ray is None:
                assumed = run_pictures(*rest)
            else:
                assumed = run_pictures_across(self.ray, self.workers, sessions, *rest)
            for line in assumed.lines():
                self.progress.note(line)
        base = None if reference is None else reference.total.result()
        doubt, manifest = None, running[0].manifest
        if manifest is None or not manifest.random_weights:  # those never knew classes
            doubt = labels_in_doubt(base or runners[0].total.result(), images.known)
        if doubt is not None:
            self.progress.note(doubt)
        for artifact, runner in zip(running, runners, strict=True):
            accuracy = runner.total.result()
            short = _what_fell_short(accuracy, base, count)
            remarks = [
                runner.remark,
                no_reference and f"no reference: {no_reference.reason}",
                short,
            ]
            if base is not None:
                remarks.append(doubt and "labels may be in another order")
            results.append(
                EvaluatedArtifact(
                    artifact,
                    Status.PASSED if short is None else Status.FAILED,
                    accuracy,
                    base,
                    runner.batch,
                    "; ".join(remark for remark in remarks if remark) or None,
                    doubt=doubt,
                )
            )
        return results

    def _why_not(self, artifact: Artifact) -> NotRun | None:
        """None where a runtime here can run it and, unless it was named, classes fit it."""
        manifest = artifact.manifest
        nodewise = is_nodewise(artifact, self.backend)
        if manifest is not None and manifest.kind == "engine":
            reason = why_not_run(artifact, manifest.engine.backend)
            if reason is None and self.ray is not None:
                reason = "engines are evaluated on this machine's device, not across a cluster"
        elif nodewise:
            reason = why_not_runnable(self.backend)
        else:
            reason = why_not_run(artifact, self.backend)
        if manifest is not None and not manifest.graph_io.tail.classifies:
            gives = f"{artifact.path.name} gives {manifest.graph_io.tail.value} and no classes"
            if self.named:
                raise UsageError(f"{gives}; evaluate a classifier")
            return NotRun(Cause.OF_ITS_KIND, gives)
        if reason is not None:
            return NotRun(Cause.NO_TOOL, reason)
        if self.named or manifest is None:
            return None
        if self.images.has_labels:
            try:
                self._labelled(artifact, int(manifest.config["num_classes"]))
            except ImageError as err:
                return NotRun(Cause.MISFIT, str(err))
        if nodewise:
            lacks = why_not_in(self.backend, Precision.BF16)
            return NotRun(
                Cause.NO_TOOL,
                f"{lacks}; name it to evaluate it node by node, which is slow, or --backend "
                "openvino where the CPU has bf16",
            )
        return None

    def _labelled(self, artifact: Artifact, num_classes: int) -> LabelledSet:
        """The pictures with the model's classes. Raises ImageError."""
        return self.images.for_model(num_classes, self.order, class_names_of(artifact))

    def _calibrated_on(self, artifact: Artifact) -> NotRun | None:
        """Why an artifact cannot be judged on pictures it was calibrated on.

        Raises CalibrationError for one that was named.
        """
        reason = overlap(artifact, self.images.paths)
        if reason is not None and self.named:
            raise CalibrationError(reason)
        return None if reason is None else NotRun(Cause.MISFIT, reason)


def _why_not_decided(artifact: Artifact) -> NotRun | None:
    tail = Tail.LOGITS if artifact.manifest is None else artifact.manifest.graph_io.tail
    if tail in (Tail.LOGITS, Tail.SIGMOID):
        return None
    return NotRun(
        Cause.OF_ITS_KIND,
        f"its tail {tail.value} gives probabilities of one class among all, which decide no class "
        "by itself: evaluate an export without a tail, or with --tail sigmoid",
    )


def _why_no_reference(artifact: Artifact) -> NotRun | None:
    if artifact.manifest is None or not artifact.manifest.weights:
        return NotRun(Cause.OF_ITS_KIND, "made from a file without manifest")
    reason = why_not_runnable(REFERENCE_BACKEND)
    return None if reason is None else NotRun(Cause.NO_TOOL, reason)


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
    """What is computed, and what its classes are called; foreign files are models of their own."""
    manifest = artifact.manifest
    if manifest is None or not manifest.weights:
        return str(artifact.path)
    return f"{manifest.model_key} {manifest.class_names}"


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
        word, share = ("top-1", found.top1) if labelled else ("agreement", found.agreement)
        if found.decisions is not None:
            word, share = "accuracy", found.decisions.accuracy
        if not found.confusion.size:
            raise UsageError(
                "confusion draws one class of a picture, and each class was decided by itself; "
                "leave it out"
            )
        panels.append((f"{name}\n{word} {share or 0:.2%}", found.confusion))
    truth = "class of the picture" if labelled else "class the reference finds"
    plot_confusion(panels, path, truth=truth)
