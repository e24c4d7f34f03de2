"""Following a recipe: each step is done, skipped because nothing changed, or not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy._codec import to_plain
from t2t_deploy._options import AnyPath, path_of
from t2t_deploy._progress import Named, Progress, silent
from t2t_deploy.commands import workspace_of
from t2t_deploy.errors import ArtifactError, CheckFailed, DeployError
from t2t_deploy.recipe._load import Job, Recipe, load_recipe
from t2t_deploy.recipe._records import Fingerprint, Record, Records, changes
from t2t_deploy.recipe._steps import (
    Bench,
    Build,
    Calibrate,
    CheckModel,
    Context,
    Evaluate,
    MakeArtifact,
    NoArtifactError,
    PackageStep,
    ReportPages,
    Step,
    Verify,
)
from t2t_deploy.workspace import Workspace

_UNCHANGED = "nothing it depends on changed"


class StepStatus(str, Enum):
    """What became of a step; the values are part of the command-line contract."""

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True)
class StepResult:
    """A step of a run.

    reason: why it was done, skipped, not run, or how it failed. result: what its command prints
    with --json; None where it gave none. exit_status: of that command.
    """

    step: str
    status: StepStatus
    reason: str
    exit_status: int = 0
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class RecipeRun:
    """A recipe that was followed, step by step."""

    recipe: Path
    workspace: Path
    steps: tuple[StepResult, ...]

    @property
    def exit_status(self) -> int:
        """1 where a step could not be done, else 3 where a check fell short, else 0."""
        found = {step.exit_status for step in self.steps}
        if found <= {0}:
            return 0
        return CheckFailed.exit_status if found <= {0, CheckFailed.exit_status} else 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        values: dict[str, Any] = to_plain(self)
        return {"exit_status": self.exit_status, **values}


def run_recipe(
    recipe: AnyPath,
    *,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> RecipeRun:
    """Follow a recipe, going on where an earlier run of it stopped: ``t2t-deploy run``.

    workspace: None is the recipe's own, else as elsewhere. What cannot be done is in the result.
    Raises RecipeError for a file that is no recipe.

    Examples
    --------
    >>> from t2t_deploy import run_recipe
    >>> for step in run_recipe("recipe.toml").steps:
    ...     print(step.step, step.status.value)
    export float done
    quantize int8 done
    >>> {step.status.value for step in run_recipe("recipe.toml").steps}
    {'skipped'}
    """
    chosen = None if workspace is None else workspace_of(workspace)
    loaded = load_recipe(path_of(recipe, "recipe"))
    return follow_recipe(chosen or workspace_of(loaded.workspace), loaded, progress)


def follow_recipe(workspace: Workspace, recipe: Recipe, progress: Progress = silent) -> RecipeRun:
    """Do all that a recipe says, going on where an earlier run of it stopped.

    A step is skipped where the workspace holds a record of the same work on the same contents, and
    what was made then is there unchanged. One that fails stops what needs it; the others go on.
    Nothing is raised for a step that cannot be done: it is in the result.
    """
    walk = Walk(workspace, recipe)
    steps = plan_steps(recipe)
    for number, step in enumerate(steps, start=1):
        walk.follow(step, Named(progress, f"[{number}/{len(steps)}] {step.label}"))
    return RecipeRun(recipe.file, workspace.root, tuple(walk.results))


class Walk:
    """Follows steps one after another. context: what they made; results: what became of them."""

    def __init__(self, workspace: Workspace, recipe: Recipe) -> None:
        self.context = Context(workspace, recipe)
        self.results: list[StepResult] = []
        self._records = Records(workspace.root)

    def follow(self, step: Step, progress: Progress) -> StepResult:
        """Do a step, or skip it; what cannot be done is in the result."""
        result = self._follow(step, progress)
        if result.status in (StepStatus.FAILED, StepStatus.NOT_RUN):
            name = step.label.partition(" ")[2]
            self.context.missing[name] = f"{step.label} {result.status.value.replace('_', ' ')}"
        if result.status is not StepStatus.DONE:
            progress.note(f"{result.status.value.replace('_', ' ')}: {result.reason}")
        self.results.append(result)
        return result

    def _follow(self, step: Step, progress: Progress) -> StepResult:
        """Skip a step, or do it and keep a record of it."""
        context, records = self.context, self._records
        states = {result.step: result.status for result in self.results}
        for need in step.needs:
            if states[need] in (StepStatus.FAILED, StepStatus.NOT_RUN):
                state = "failed" if states[need] is StepStatus.FAILED else "was not run"
                return StepResult(step.label, StepStatus.NOT_RUN, f"it needs {need}, which {state}")
        name = context.recipe.file.name
        try:
            fingerprint = step.fingerprint(context)
            known = records.find(step.label, fingerprint)
            reason = None
            if known is not None:
                try:
                    outcome = step.reuse(context, known)
                    reason = outcome.failed_check
                except ArtifactError as err:
                    reason = str(err)
                if reason is None:
                    why = _with_note(_UNCHANGED, step, context)
                    return StepResult(step.label, StepStatus.SKIPPED, why, result=outcome.result)
            context.last = records.latest(step.label, name)
            reason = reason or _why_now(context.last, records, fingerprint)
            progress.step(reason)
            outcome = step.run(context, progress)
        except DeployError as err:
            # of what failed before, that step's own status tells
            told = isinstance(err, NoArtifactError) and StepStatus.FAILED in states.values()
            expectation = step.expectation()
            if told or (step.lacks_tools and err.lacks_tool and expectation is None):
                return StepResult(step.label, StepStatus.NOT_RUN, str(err))
            status = err.exit_status if err.exit_status == CheckFailed.exit_status else 1
            uncompared = (
                "" if expectation is None else f"{expectation} is expected and not compared: "
            )
            return StepResult(step.label, StepStatus.FAILED, f"{uncompared}{err}", status)
        failed = outcome.failed_check
        if failed is not None:
            return StepResult(
                step.label, StepStatus.FAILED, failed, outcome.exit_status, outcome.result
            )
        records.keep(Record(step.label, name, dict(fingerprint), outcome.outputs, outcome.result))
        why = _with_note(reason, step, context)
        return StepResult(step.label, StepStatus.DONE, why, result=outcome.result)


def plan_steps(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a recipe in the order of the work."""
    steps: list[Step] = []
    makers: dict[str, str] = {}
    first: tuple[str, ...] = ()
    if recipe.expected is not None:
        steps.append(CheckModel(recipe.exports[0], (), recipe.expected))
        first = (steps[0].label,)
    for job in recipe.exports:
        steps.append(MakeArtifact(job, first))
        makers[job.name] = steps[-1].label
    ranges: dict[tuple[str, Any], str] = {}
    for job in recipe.quantizations:
        source, target = str(job.source), job.given["target"]
        if recipe.calibration is not None and (source, target) not in ranges:
            given = {**recipe.calibration.given, "target": target}
            steps.append(Calibrate(Job("calibrate", given, job.name, source), (makers[source],)))
            ranges[source, target] = steps[-1].label
        taken = ranges.get((source, target))
        steps.append(MakeArtifact(job, (makers[source], *([] if taken is None else [taken]))))
        makers[job.name] = steps[-1].label
    for job in recipe.builds:
        steps.append(Build(job, (makers[str(job.source)],)))
        makers[job.name] = steps[-1].label
    names = tuple(job.name for job in recipe.artifacts)
    if recipe.verify is not None:
        steps.append(Verify(recipe.verify, (), names))
    if recipe.evaluate is not None:
        expected = recipe.expected
        top1 = expected if expected is not None and expected.top1 is not None else None
        steps.append(Evaluate(recipe.evaluate, (), names, top1))
    if recipe.bench is not None:
        steps.append(Bench(recipe.bench, (), names))
        if recipe.bench.given.keys() & {"report", "csv"}:
            steps.append(ReportPages(recipe.bench, ("bench",), names))
    for job in recipe.packages:
        steps.append(PackageStep(job, (makers[str(job.source)],)))
    return tuple(steps)


def _with_note(reason: str, step: Step, context: Context) -> str:
    note = step.note(context)
    return reason if note is None else f"{reason}; {note}"


def _why_now(last: Record | None, records: Records, fingerprint: Fingerprint) -> str:
    if last is None:
        return "not done before, or its record is damaged" if records.damaged else "not done before"
    return changes(last.parts, fingerprint) or "what it made is not there as it was"
