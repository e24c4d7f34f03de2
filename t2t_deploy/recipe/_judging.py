"""The steps of a recipe that look at what was made: verify, evaluate, bench, report, package."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from t2t_deploy._progress import Progress
from t2t_deploy.bench import BenchStatus
from t2t_deploy.commands import (
    BenchOutputs,
    BenchRequest,
    EvaluateRequest,
    Evaluation,
    PackageRequest,
    document_bench,
    document_measured,
    evaluate_artifacts,
    evaluate_values,
    package_artifact,
    package_values,
    verify_artifacts,
    verify_values,
)
from t2t_deploy.errors import BackendError, counted
from t2t_deploy.recipe._context import Context
from t2t_deploy.recipe._parts import (
    BENCH_TOOLS,
    CHECK_TOOLS,
    PICTURE_TOOLS,
    artifact_part,
    content,
    judged_on,
    machine,
    options,
    place,
    text_sha256,
    tools,
    verified_on,
)
from t2t_deploy.recipe._recipe import Expected, VerifyPlan
from t2t_deploy.recipe._records import Parts, Record
from t2t_deploy.recipe._steps import NamedStep, Outcome
from t2t_deploy.types import Status
from t2t_deploy.workspace import Artifact

PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class _Judging:
    """What steps that look at all artifacts share; names: the artifacts of the recipe."""

    names: tuple[str, ...]
    request: Any

    needs: ClassVar[tuple[str, ...]] = ()
    lacks_tools: ClassVar[bool] = True

    def usable(self, context: Context) -> dict[str, Artifact]:
        """The artifacts there are. Raises BackendError where there is none."""
        found = context.usable(self.names)
        if not found:
            raise BackendError(f"there is no artifact to look at: {context.left_out(self.names)}")
        return found

    def artifact_parts(self, context: Context) -> dict[str, str]:
        """The artifacts there are, as parts."""
        parts: dict[str, str] = {}
        for name, artifact in self.usable(context).items():
            parts |= artifact_part(name, artifact)
        return parts

    def paths(self, context: Context) -> list[Path]:
        """Their files."""
        return [artifact.path for artifact in self.usable(context).values()]

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The result as it was kept, where what it wrote is still there."""
        context.unchanged(record.made)
        return Outcome(record.result, record.made, note=context.left_out(self.names))


class Verify(_Judging):
    """All artifacts against the reference once more: other pictures, or node by node."""

    __slots__ = ()
    label = "verify"

    def parts(self, context: Context) -> Parts:
        """The artifacts, the pictures, the options, what compares."""
        plan: VerifyPlan = self.request
        seen = PICTURE_TOOLS if plan.images is not None else ()
        runtime = ("openvino",) if plan.backend == "openvino" else ()
        return {
            **self.artifact_parts(context),
            **verified_on(plan.images),
            **options(plan),
            **tools(*CHECK_TOOLS, *seen, *runtime),
            **machine(processor=False),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Verify."""
        plan: VerifyPlan = self.request
        among = self.paths(context)
        results = verify_artifacts(
            context.workspace,
            (),
            plan.images,
            progress,
            nodewise=plan.nodewise,
            backend=plan.backend,
            among=among,
        )
        failed = [result.artifact.path.name for result in results if result.failed]
        return Outcome(
            verify_values(results),
            fell_short=f"failed verification: {', '.join(failed)}" if failed else None,
            note=context.left_out(self.names),
        )


@dataclass(frozen=True, slots=True)
class _EvaluateFields(_Judging):
    expected: Expected | None = None


class Evaluate(_EvaluateFields):
    """Accuracy of all artifacts on a folder, and of the reference against what was published."""

    __slots__ = ()
    label = "evaluate"

    def parts(self, context: Context) -> Parts:
        """The artifacts, the pictures, the options, what is expected, what runs them."""
        request: EvaluateRequest = self.request
        runtime = ("openvino",) if request.backend == "openvino" else ()
        wanted = self.expected
        top1 = {} if wanted is None else {"expected top1": f"{wanted.top1} ± {wanted.within}"}
        return {
            **self.artifact_parts(context),
            **judged_on(request.images, request.limit),
            **options(request),
            **top1,
            **place("confusion", request.confusion, context.recipe.folder),
            **tools(*CHECK_TOOLS, *PICTURE_TOOLS, *runtime),
            **machine(processor=False),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Evaluate."""
        request: EvaluateRequest = dataclasses.replace(self.request, among=self.paths(context))
        found = evaluate_artifacts(context.workspace, request, progress)
        short = [_short(found)] if found.failed else []
        top1 = self._top1(found)
        short += [] if top1 is None else [top1]
        made = () if found.plot is None else (context.made(found.plot),)
        return Outcome(
            evaluate_values(found),
            made,
            "; ".join(short) or None,
            note=context.left_out(self.names),
        )

    def _top1(self, found: Evaluation) -> str | None:
        """Why the float32 model is not as accurate as it should be; None where it is."""
        wanted = self.expected
        if wanted is None or wanted.top1 is None:
            return None
        if not found.images.has_labels:
            return f"top1 {wanted.top1:g} is expected, and the pictures have no class folders"
        if not found.references:
            return f"top1 {wanted.top1:g} is expected, and the reference was not run"
        for name, accuracy in found.references.items():
            top1 = PERCENT * (accuracy.top1 or 0.0)
            if abs(top1 - wanted.top1) > wanted.within:
                return (
                    f"top1 of the {name} is {top1:.2f} % on {counted(accuracy.images, 'picture')}; "
                    f"expected {wanted.top1:g} within {wanted.within:g}"
                )
        return None


class Bench(_Judging):
    """Latency, throughput and memory of all artifacts, on this machine."""

    __slots__ = ()
    label = "bench"

    def parts(self, context: Context) -> Parts:
        """The artifacts, the options, the runtimes, the machine."""
        return {
            **self.artifact_parts(context),
            **options(self.request),
            **tools(*BENCH_TOOLS),
            **machine(processor=True),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Measure."""
        request: BenchRequest = dataclasses.replace(self.request, among=self.paths(context))
        done = document_bench(context.workspace, request, BenchOutputs(), progress)
        rows = [row for row in done.report.results if row.status is BenchStatus.FAILED]
        told = "; ".join(f"{row.backend} {row.artifact}: {row.reason}" for row in rows)
        outcome = Outcome(
            done.to_dict(),
            fell_short=f"failed: {told}" if rows else None,
            exit_status=1,
            note=context.left_out(self.names),
        )
        context.bench = dict(outcome.result)
        return outcome

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The figures as they were measured."""
        context.bench = dict(record.result)
        return _Judging.reuse(self, context, record)


@dataclass(frozen=True, slots=True)
class _ReportFields(_Judging):
    outputs: BenchOutputs = field(default_factory=BenchOutputs)


class ReportPages(_ReportFields):
    """The page and the table about the bench, without measuring again."""

    __slots__ = ()
    label = "report"
    needs: ClassVar[tuple[str, ...]] = ("bench",)

    def parts(self, context: Context) -> Parts:
        """The figures, the manifests told beside them, the older bench, the places."""
        outputs, folder = self.outputs, context.recipe.folder
        told: dict[str, str] = {}
        for name, artifact in self.usable(context).items():
            told |= artifact_part(name, artifact, verified=True)
        return {
            **told,
            "measured figures": text_sha256(json.dumps(context.bench, sort_keys=True)),
            **content("older bench", outputs.compare),
            **place("report", outputs.page, folder),
            **place("csv", outputs.table, folder),
            **tools(),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Write the files."""
        request: BenchRequest = dataclasses.replace(self.request, among=self.paths(context))
        done = document_measured(context.workspace, context.bench, request, self.outputs, progress)
        values = done.to_dict()
        result = {name: values[name] for name in ("command", "comparison", "written")}
        return Outcome(result, tuple(context.made(path) for path in done.written))


class PackageStep(NamedStep):
    """A model repository of one artifact."""

    __slots__ = ()
    command = "package"

    def parts(self, context: Context) -> Parts:
        """The artifact, the labels, the options, the place."""
        request: PackageRequest = self.request
        return {
            **self.source_part(context),
            **content("labels", request.labels),
            **options(request),
            **place("triton", request.repository, context.recipe.folder),
            **tools("onnx"),
        }

    def run(self, context: Context, progress: Progress) -> Outcome:
        """Write the folders."""
        artifact = context.workspace.open(self.given(context).path)
        request: PackageRequest = dataclasses.replace(self.request, artifact=artifact.path)
        package = package_artifact(context.workspace, request, progress)
        made = tuple(context.made(folder) for folder in package.folders)
        return Outcome(package_values(package, request.repository), made)

    def reuse(self, context: Context, record: Record) -> Outcome:
        """The folders as they were written."""
        context.unchanged(record.made)
        return Outcome(record.result, record.made)


def _short(found: Evaluation) -> str:
    failed = [r.artifact.path.name for r in found.results if r.status is Status.FAILED]
    what: list[str] = []
    if found.unreadable:
        what.append(f"{counted(len(found.unreadable), 'picture')} cannot be read")
    if failed:
        what.append(f"failed: {', '.join(failed)}")
    return "; ".join(what)
