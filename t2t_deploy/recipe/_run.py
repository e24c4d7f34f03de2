"""Following a recipe: each step is done, skipped because nothing changed, or not run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy._progress import Progress, silent
from t2t_deploy.errors import ArtifactError, BackendError, CheckFailed, DeployError
from t2t_deploy.recipe._context import Context
from t2t_deploy.recipe._judging import Bench, Evaluate, PackageStep, ReportPages, Verify
from t2t_deploy.recipe._making import Build, Calibrate, CheckModel, Export, Quantize
from t2t_deploy.recipe._recipe import Recipe
from t2t_deploy.recipe._records import Record, Records, changes
from t2t_deploy.recipe._steps import Outcome, Step
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
    result: Mapping[str, Any] | None = None
    exit_status: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "step": self.step,
            "status": self.status.value,
            "reason": self.reason,
            "exit_status": self.exit_status,
            "result": None if self.result is None else dict(self.result),
        }


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
        return {
            "recipe": str(self.recipe),
            "workspace": str(self.workspace),
            "exit_status": self.exit_status,
            "steps": [step.to_dict() for step in self.steps],
        }


def run_recipe(workspace: Workspace, recipe: Recipe, progress: Progress = silent) -> RecipeRun:
    """Do all that a recipe says, going on where an earlier run of it stopped.

    A step is skipped where the workspace holds a record of the same work on the same contents, and
    what was made then is there unchanged. One that fails stops what needs it; the others go on.
    Nothing is raised for a step that cannot be done: it is in the result.
    """
    context = Context(workspace, recipe)
    records = Records(workspace.root)
    steps = plan_steps(recipe)
    results: list[StepResult] = []
    for number, step in enumerate(steps, start=1):
        told = _StepProgress(progress, f"[{number}/{len(steps)}] {step.label}")
        result = _follow(step, context, records, results, told)
        if result.status in (StepStatus.FAILED, StepStatus.NOT_RUN):
            name = step.label.partition(" ")[2]
            context.missing[name] = f"{step.label} {result.status.value.replace('_', ' ')}"
        if result.status is not StepStatus.DONE:
            told.note(f"{result.status.value.replace('_', ' ')}: {result.reason}")
        results.append(result)
    return RecipeRun(recipe.file, workspace.root, tuple(results))


def plan_steps(recipe: Recipe) -> tuple[Step, ...]:
    """The steps of a recipe in the order of the work."""
    steps: list[Step] = []
    makers: dict[str, str] = {}
    first = None
    if recipe.expected is not None:
        evaluated = recipe.evaluate is not None
        steps.append(CheckModel(recipe.exports[0].request, recipe.expected, evaluated))
        first = steps[0].label
    for one in recipe.exports:
        steps.append(Export(one.name, one.request, None, first))
        makers[one.name] = steps[-1].label
    ranges: dict[tuple[str, Any], str] = {}
    for one in recipe.quantizations:
        source = str(one.source)
        key = (source, one.request.target)
        if recipe.calibration is not None and key not in ranges:
            step = Calibrate(one.name, _for(recipe, one.request.target), source, makers[source])
            ranges[key] = step.label
            steps.append(step)
        steps.append(Quantize(one.name, one.request, source, makers[source], ranges.get(key)))
        makers[one.name] = steps[-1].label
    for one in recipe.builds:
        source = str(one.source)
        steps.append(Build(one.name, one.request, source, makers[source]))
        makers[one.name] = steps[-1].label
    names = tuple(one.name for one in recipe.artifacts)
    if recipe.verify is not None:
        steps.append(Verify(names, recipe.verify))
    if recipe.evaluate is not None:
        expected = recipe.expected
        wanted = expected if expected is not None and expected.top1 is not None else None
        steps.append(Evaluate(names, recipe.evaluate, wanted))
    if recipe.bench is not None:
        steps.append(Bench(names, recipe.bench))
        if recipe.outputs.page is not None or recipe.outputs.table is not None:
            steps.append(ReportPages(names, recipe.bench, recipe.outputs))
    for one in recipe.packages:
        source = str(one.source)
        steps.append(PackageStep(one.name, one.request, source, makers[source]))
    return tuple(steps)


def _for(recipe: Recipe, target: Any) -> Any:
    assert recipe.calibration is not None
    return dataclasses.replace(recipe.calibration, target=target)


def _follow(
    step: Step,
    context: Context,
    records: Records,
    before: list[StepResult],
    progress: _StepProgress,
) -> StepResult:
    """Skip a step, or do it and keep a record of it."""
    states = {result.step: result.status for result in before}
    for need in step.needs:
        if states[need] in (StepStatus.FAILED, StepStatus.NOT_RUN):
            state = "failed" if states[need] is StepStatus.FAILED else "was not run"
            return StepResult(step.label, StepStatus.NOT_RUN, f"it needs {need}, which {state}")
    try:
        parts = step.parts(context)
        known = records.find(step.label, parts)
        reason = None
        if known is not None:
            try:
                outcome = step.reuse(context, known)
            except ArtifactError as err:
                reason = str(err)
            else:
                if outcome.fell_short is None:
                    why = f"{_UNCHANGED}; {outcome.note}" if outcome.note else _UNCHANGED
                    return StepResult(step.label, StepStatus.SKIPPED, why, outcome.result)
                reason = outcome.fell_short
        reason = reason or _why_now(step, context, records, parts)
        progress.step(reason)
        context.last = records.latest(step.label, context.recipe.file.name)
        outcome = step.run(context, progress)
    except BackendError as err:
        if not step.lacks_tools:
            return _failed(step, err)
        return StepResult(step.label, StepStatus.NOT_RUN, str(err))
    except DeployError as err:
        return _failed(step, err)
    if outcome.fell_short is not None:
        return StepResult(
            step.label, StepStatus.FAILED, outcome.fell_short, outcome.result, outcome.exit_status
        )
    records.keep(_record(step, context, parts, outcome))
    told = reason if outcome.note is None else f"{reason}; {outcome.note}"
    return StepResult(step.label, StepStatus.DONE, told, outcome.result)


def _failed(step: Step, err: DeployError) -> StepResult:
    status = err.exit_status if err.exit_status == CheckFailed.exit_status else 1
    return StepResult(step.label, StepStatus.FAILED, str(err), exit_status=status)


def _why_now(step: Step, context: Context, records: Records, parts: Mapping[str, str]) -> str:
    last = records.latest(step.label, context.recipe.file.name)
    if last is None:
        return "not done before, or its record is damaged" if records.damaged else "not done before"
    return changes(last.parts, parts) or "what it made is not there as it was"


def _record(step: Step, context: Context, parts: Mapping[str, str], outcome: Outcome) -> Record:
    return Record(
        step=step.label,
        recipe=context.recipe.file.name,
        parts=dict(parts),
        made=outcome.made,
        result=outcome.result,
    )


@dataclass(frozen=True, slots=True)
class _StepProgress:
    """A report that says which step speaks."""

    inner: Progress
    step_name: str

    def step(self, text: str) -> None:
        """A new piece of work begins."""
        self.inner.step(f"{self.step_name}: {text}")

    def note(self, text: str) -> None:
        """Something the user should know."""
        self.inner.note(f"{self.step_name}: {text}")

    def progress(self, text: str, done: int, total: int) -> None:
        """How far the present piece of work is."""
        self.inner.progress(f"{self.step_name}: {text}", done, total)
