"""Making the files to try, step after step, as long as there is time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from t2t_deploy._progress import Named, Progress
from t2t_deploy.recipe import (
    Recipe,
    Step,
    StepResult,
    StepStatus,
    Walk,
    plan_steps,
    recipe_of,
)
from t2t_deploy.runtime import backend_for
from t2t_deploy.tuning._plan import Asked, Plan, Way
from t2t_deploy.tuning._results import TunedFile, Verdict
from t2t_deploy.workspace import Artifact

# Of a released model on two cores, in units of an export, until the first step of a kind is done.
_USUAL = {"export": 1.0, "calibrate": 5.0, "quantize": 2.0, "build-trt": 3.0, "evaluate": 2.0}
_BUDGET = "quantize within a budget"
_USUAL[_BUDGET] = 25.0  # every layer is tried by itself
_RACE_SECONDS = 10.0
"""Of each case of a race: opening, warming up, its turns."""


@dataclass(slots=True)
class Workshop:
    """Follows the ways of a plan and keeps what came of them."""

    asked: Asked
    plan: Plan
    out: Progress
    _began: float = field(default_factory=monotonic)
    _took: dict[str, list[float]] = field(default_factory=dict)
    _walk: Walk = field(init=False)
    _late: dict[str, str] = field(default_factory=dict)
    _noted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._walk = Walk(self.asked.workspace, self._recipe())

    def _recipe(self) -> Recipe:
        return recipe_of(self.plan.tables(way.name for way in self.plan.ways), self.asked.recipe)

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """What there is, by the names of ways."""
        return self._walk.context.artifacts

    @property
    def seconds(self) -> float:
        """Since it began."""
        return monotonic() - self._began

    def progress(self, label: str) -> Progress:
        """Progress of other work, whose notes are told once as well."""
        return Told(self.out, label, label, self._noted)

    def time_left(self) -> float:
        """Seconds."""
        return self.asked.within_s - self.seconds

    def _usual(self, kind: str) -> float:
        """Seconds that a step of a kind takes here, by those that were done."""
        if self._took.get(kind):
            return max(self._took[kind])
        exports = max(self._took.get("export", [0.0]))
        return _USUAL[kind] * exports

    def _afterwards(self) -> float:
        """Seconds that judging and timing what there is will take."""
        made = 1 + sum(way.name in self.artifacts for way in self.plan.ways)
        judging = self._usual("evaluate") if self.asked.evaluation is not None else 0.0
        return judging + (_RACE_SECONDS * (made + 1) if self.asked.timed else 0.0)

    def follow(self, step: Step, to_go: Sequence[Step] = ()) -> StepResult:
        """Do a step and say how long is left."""
        left = sum(self._usual(_kind(one)) for one in to_go) + self._afterwards()
        minutes = max(min(left, self.time_left()) / 60, 0.0)
        said = f"{step.label}, {minutes:.0f} min to go" if minutes >= 1 else step.label
        began = monotonic()
        result = self._walk.follow(step, Told(self.out, said, step.label, self._noted))
        if result.status is StepStatus.DONE:
            self._took.setdefault(_kind(step), []).append(monotonic() - began)
        return result

    def make(self, ways: Sequence[Way]) -> None:
        """Follow the ways one after another, as long as there is time."""
        steps = {step.label: step for step in plan_steps(self._recipe())}
        for position, way in enumerate(ways):
            rest = [steps[f"{one.command} {one.name}"] for one in ways[position:]]
            for step in _with_needs(steps[f"{way.command} {way.name}"], steps):
                if self._state(step) is not None:
                    continue
                need = self._usual(_kind(step)) + self._afterwards()
                if self._took and need > self.time_left():
                    minutes = self.asked.within_s / 60
                    self._late[way.name] = f"no time left of {minutes:g} minutes; --within gives it"
                    break
                self.follow(step, [one for one in rest if self._state(one) is None])

    def _state(self, step: Step) -> StepResult | None:
        return next((one for one in self._walk.results if one.step == step.label), None)

    def file_of(self, way: Way) -> TunedFile:
        """What there is of a way, before it is judged."""
        artifact = self.artifacts.get(way.name)
        if artifact is not None:
            manifest = artifact.require_manifest()
            backend = backend_for(way.target)
            if artifact.kind == "engine":
                backend = manifest.engine.backend
            checked = manifest.verification or manifest.details.get("graph_verification") or {}
            return TunedFile(
                way.name,
                Verdict.FRONTIER,
                backend=backend,
                artifact=artifact,
                error=checked.get("rel_l2"),
            )
        results = {one.step: one for one in self._walk.results}
        result = results.get(f"{way.command} {way.name}")
        if way.name in self._late or result is None:
            reason = self._late.get(way.name, "what it is made from is not there")
            return TunedFile(way.name, Verdict.NOT_TRIED, reason)
        failed = result.status is StepStatus.FAILED
        return TunedFile(way.name, Verdict.FAILED if failed else Verdict.NOT_TRIED, result.reason)


def _kind(step: Step) -> str:
    """What its time is like: that of a command, or of a budget, which takes much longer."""
    return _BUDGET if "max_drop" in step.job.given else str(step.job.command)


def _with_needs(step: Step, steps: Mapping[str, Step]) -> list[Step]:
    """A step behind all that it needs."""
    found: dict[str, Step] = {}
    for label in step.needs:
        found |= {one.label: one for one in _with_needs(steps[label], steps)}
    return [*found.values(), step]


@dataclass(frozen=True, slots=True)
class Told(Named):
    """Progress of a step, whose name says how long is left; notes are told once for all files."""

    label: str
    told: set[str]

    def note(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.inner.note(f"{self.label}: {text}")
