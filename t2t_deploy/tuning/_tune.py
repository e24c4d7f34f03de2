"""``t2t-deploy tune``: what can run here is made, checked and timed, and the best file is named."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, cast

from t2t_deploy._files import file_sha256, write_text
from t2t_deploy._options import (
    DEVICE,
    NUMBER,
    AnyPath,
    Kind,
    Opt,
    Role,
    command,
    command_words,
    parameters,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy.bench import BenchCase, BenchReport
from t2t_deploy.commands import (
    SM,
    Bench,
    CheckpointFile,
    Classes,
    ConfigFile,
    CropFraction,
    IgnoreKeys,
    ImageSize,
    InterpolationName,
    Mean,
    OwnLabels,
    PreparationName,
    QkScale,
    ResizeRule,
    Std,
    Targets,
    Threshold,
    Variant,
    Weights,
    calibration_images,
    export_onnx,
    labelled_images,
    workspace_of,
)
from t2t_deploy.errors import UnavailableError, UsageError, counted
from t2t_deploy.model import weights_file
from t2t_deploy.pictures import ClassOrder, ClassOrderName, evaluation_images
from t2t_deploy.recipe import (
    RUNTIME_TOOLS,
    Evaluate,
    Job,
    Step,
    StepResult,
    StepStatus,
    Walk,
    machine,
    plan_steps,
    recipe_of,
    recipe_text,
    text_sha256,
    tools,
)
from t2t_deploy.report import VERIFIED, BenchDocument, TuneSummary, bench_page
from t2t_deploy.runtime import BACKENDS, REFERENCE_BACKEND, available_threads, backend_for
from t2t_deploy.tuning._plan import Plan, Tables, Way, plan_ways
from t2t_deploy.tuning._race import ROUND_SECONDS, Race
from t2t_deploy.tuning._results import (
    Goal,
    TunedFile,
    Tuning,
    Verdict,
    choose,
    judged,
    moved_bytes,
    nearest,
)
from t2t_deploy.workspace import TUNE, Best, Workspace, write_best

DEFAULT_WITHIN = 12.0
DEFAULT_IMAGES = 128
DEFAULT_EVALUATED = 256
_WITHIN = "-within"
"""Ends the name of a way whose costliest layers are back in float."""

# Of a released model on two cores, in units of an export, until the first step of a kind is done.
_USUAL = {"export": 1.0, "calibrate": 3.0, "quantize": 2.0, "build-trt": 3.0, "evaluate": 2.0}
_RACE_SECONDS = 10.0
"""Of each case of a race: opening, warming up, its turns."""


def _device(value: Any) -> int | None:
    return None if value == "cpu" else cast(int, DEVICE.read(value))


def _minutes(value: Any) -> float:
    found = float(NUMBER.read(value))
    if found <= 0:
        raise ValueError
    return found


def _no_less_than_zero(value: Any) -> float:
    found = float(NUMBER.read(value))
    if found < 0:
        raise ValueError
    return found


_MINUTES = Kind("a number of minutes above 0", _minutes, float, "MIN")
_POINTS = Kind("a number of at least 0", _no_less_than_zero, float, "PCT")
_ERROR = replace(_POINTS, metavar="X")
_WHERE = Kind("'cpu', 'cuda:0' and so on", _device, metavar="cpu|cuda:N", word=DEVICE.word)


@command
def tune(
    *,
    variant: Variant = None,
    config: ConfigFile = None,
    checkpoint: CheckpointFile = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    weights: Weights = None,
    ignore_keys: IgnoreKeys = None,
    qk_scale: QkScale = None,
    preparation: PreparationName = None,
    resize: ResizeRule = None,
    crop_fraction: CropFraction = None,
    interpolation: InterpolationName = None,
    mean: Mean = None,
    std: Std = None,
    labels: OwnLabels = None,
    images: Annotated[
        AnyPath | None,
        Opt("Folder of pictures to calibrate on; without it no static ranges.", role=Role.READS),
    ] = None,
    count: Annotated[
        int, Opt("Calibrate on up to this many; default 128.", none=DEFAULT_IMAGES)
    ] = DEFAULT_IMAGES,
    eval: Annotated[
        AnyPath | None,
        Opt("Pictures to judge on: class folders, or no labels (then agreement).", role=Role.READS),
    ] = None,
    eval_count: Annotated[
        int,
        Opt("Judge on up to this many, from all classes in turn; default 256.", none=256),
    ] = DEFAULT_EVALUATED,
    class_order: ClassOrderName = None,
    targets: Targets = None,
    threshold: Threshold = None,
    max_drop: Annotated[
        float | None, Opt("Points of accuracy that may be lost on --eval.", _POINTS)
    ] = None,
    max_error: Annotated[
        float | None, Opt("Relative L2 error of the logits that is allowed.", _ERROR)
    ] = None,
    goal: Annotated[
        str | Goal,
        Opt("What the file must be best in.", flags=("--for",), shown="latency"),
    ] = Goal.LATENCY,
    batch: Annotated[int, Opt("Pictures at a time; default 1.", none=1)] = 1,
    threads: Annotated[int | None, Opt("Default: the cores at hand.")] = None,
    device: Annotated[int | str | None, Opt("Where it will run; default cpu.", _WHERE)] = None,
    sm: Annotated[
        str | None,
        Opt(
            "Rank engines for these GPUs by their builder's figures; nothing is timed.",
            SM,
            metavar="89",
        ),
    ] = None,
    within: Annotated[
        float, Opt("Stop trying after so many minutes; default 12.", _MINUTES, none=DEFAULT_WITHIN)
    ] = DEFAULT_WITHIN,
    again: Annotated[bool, Opt("Time anew what was timed before.", role=Role.SWITCH)] = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Tuning:
    """The best file for this machine and a budget: ``t2t-deploy tune``.

    The first arguments are those of `export_onnx`. What this machine can run is made by the
    ordinary commands, a step that was done before is skipped; what keeps ``max_drop`` and
    ``max_error`` is timed in interleaved rounds, beside eager PyTorch, until it is clear what
    leads. images: to take static ranges on. eval: to judge on; must be others. goal: latency,
    throughput, size or memory. device: a GPU; None is the CPU. sm: instead, engines for such GPUs,
    which are not timed. The pick is ``@best`` of the workspace from then on; its recipe and a page
    lie in ``tune`` there. A budget that nothing keeps is no error: ``pick`` is None then. Raises
    UsageError, CheckpointError, ConfigError, ImageError, CalibrationError, UnavailableError where
    nothing can be tried here.

    Examples
    --------
    >>> from t2t_deploy import tune
    >>> found = tune(config="tiny.toml", within=0.01)  # minutes: time for the first file alone
    >>> found.pick.verdict.value, found.recipe.name, found.files[-1].verdict.value
    ('pick', 'best.toml', 'not_tried')
    """
    given = dict(locals())
    _check_request(given)
    workspace = workspace_of(workspace)
    workspace.check_writable("weights", "onnx", TUNE, say=progress.note)
    limit = None if targets is not None else eval_count
    evaluation, order = None, cast("ClassOrder | Path | None", class_order)
    if eval is not None:
        evaluation = {
            "images": Path(eval),
            "limit": limit,
            "class_order": order,
            "targets": targets,
            "threshold": threshold,
        }
        labelled = labelled_images(eval, targets, silent, limit=limit)
        if images is not None:
            digests = calibration_images(Path(images), count).digests()
            evaluation_images(labelled, digests, "the files to try")
    plan = plan_ways(
        _shared(given, images, count),
        sm=sm,
        device=cast("int | None", device),
        batch=batch,
        has_images=images is not None,
    )
    if not plan.ways:
        reasons = "; ".join(dict.fromkeys(plan.not_tried.values()))
        raise UnavailableError(f"nothing can be tried here: {reasons}")
    tuner = _Tuner(
        workspace,
        plan,
        evaluation,
        max_drop,
        max_error,
        Goal(goal),
        batch,
        threads or available_threads(),
        cast("int | None", device),
        timed=sm is None,
        again=again,
        within_s=60 * within,
        progress=progress,
    )
    with workspace.lock(TUNE):
        return tuner.tune(command_words(tune, given))


def _check_request(given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that contradict each other, or need another."""
    if all(given[name] is None for name in ("variant", "config", "checkpoint")):
        raise UsageError("nothing says which model to tune; give a variant, such as 14")
    if given["sm"] is not None and given["device"] is not None:
        raise UsageError("sm ranks engines without timing and device times them; give one of them")
    if given["sm"] is not None and given["goal"] in ("throughput", "memory"):
        raise UsageError(
            f"{given['goal']} is measured, and with sm nothing runs; give latency or size"
        )
    needing = ("max_drop", "class_order", "targets", "threshold")
    if given["eval"] is None:
        for name in needing:
            if given[name] is not None:
                option = name.replace("_", "-")
                raise UsageError(f"{option} is about the pictures of eval, and none are given")


def _shared(given: Mapping[str, Any], images: AnyPath | None, count: int) -> Tables:
    """The tables of the model and of the calibration."""
    model = {}
    for name, parameter in parameters(export_onnx).items():
        value = given.get(name)
        if parameter.opt.recipe != "model" or value is None:
            continue
        sized = name == "image_size" and isinstance(value, tuple)
        word = parameter.kind.word(value) if sized else value
        model[parameter.option] = str(value.absolute()) if isinstance(value, Path) else word
    shared: Tables = {"model": model}
    if images is not None:
        shared["calibrate"] = {"images": str(Path(images).absolute()), "count": count}
    return shared


@dataclass(slots=True)
class _Tuner:
    """One tuning under way. timed: whether files can run here."""

    workspace: Workspace
    plan: Plan
    evaluation: Mapping[str, Any] | None
    max_drop: float | None
    max_error: float | None
    goal: Goal
    batch: int
    threads: int
    device: int | None
    timed: bool
    again: bool
    within_s: float
    progress: Progress
    _began: float = field(default_factory=monotonic)
    _took: dict[str, list[float]] = field(default_factory=dict)
    _walk: Walk = field(init=False)
    _late: dict[str, str] = field(default_factory=dict)
    _noted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._walk = Walk(self.workspace, recipe_of(self._tables(), self._recipe_file))

    @property
    def _recipe_file(self) -> Path:
        return self.workspace.root.absolute() / TUNE / "best.toml"

    def _tables(self) -> Tables:
        return self.plan.tables(way.name for way in self.plan.ways)

    # -- time -------------------------------------------------------------------------------------

    def _left(self) -> float:
        return self.within_s - (monotonic() - self._began)

    def _usual(self, kind: str) -> float:
        """Seconds that a step of a kind takes here, by those that were done."""
        if self._took.get(kind):
            return max(self._took[kind])
        exports = max(self._took.get("export", [0.0]))
        return _USUAL[kind] * exports

    def _afterwards(self) -> float:
        """Seconds that judging and timing what there is will take."""
        made = 1 + sum(way.name in self._walk.context.artifacts for way in self.plan.ways)
        judging = self._usual("evaluate") if self.evaluation is not None else 0.0
        return judging + (_RACE_SECONDS * (made + 1) if self.timed else 0.0)

    def _follow(self, step: Step, to_go: Sequence[Step]) -> StepResult:
        """Do a step and say how long is left."""
        left = sum(self._usual(one.job.command) for one in to_go) + self._afterwards()
        minutes = max(min(left, self._left()) / 60, 0.0)
        said = f"{step.label}, {minutes:.0f} min to go" if minutes >= 1 else step.label
        began = monotonic()
        result = self._walk.follow(step, _Told(self.progress, step.label, said, self._noted))
        if result.status is StepStatus.DONE:
            self._took.setdefault(step.job.command, []).append(monotonic() - began)
        return result

    # -- making -----------------------------------------------------------------------------------

    def _make(self, ways: Sequence[Way]) -> None:
        """Follow the ways one after another, as long as there is time."""
        recipe = recipe_of(self._tables(), self._recipe_file)
        steps = {step.label: step for step in plan_steps(recipe)}
        for position, way in enumerate(ways):
            rest = [steps[f"{one.command} {one.name}"] for one in ways[position:]]
            for step in _with_needs(steps[f"{way.command} {way.name}"], steps):
                if self._state(step) is not None:
                    continue
                need = self._usual(step.job.command) + self._afterwards()
                if self._took and need > self._left():
                    minutes = self.within_s / 60
                    self._late[way.name] = f"no time left of {minutes:g} minutes; --within gives it"
                    break
                self._follow(step, [one for one in rest if self._state(one) is None])

    def _state(self, step: Step) -> StepResult | None:
        return next((one for one in self._walk.results if one.step == step.label), None)

    def _file_of(self, way: Way) -> TunedFile:
        """What there is of a way, before it is judged."""
        artifact = self._walk.context.artifacts.get(way.name)
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

    # -- judging ----------------------------------------------------------------------------------

    def _judge(self, files: Sequence[TunedFile]) -> list[TunedFile]:
        """Errors and losses on the pictures of ``eval``, where there are any; then the budget."""
        found = list(files)
        made = [one for one in files if one.artifact is not None]
        if self.evaluation is not None:
            for backend in dict.fromkeys(one.backend for one in made):
                judged_as = {one.name: self._subject(one) for one in made if one.backend == backend}
                runs = backend if backend is not None and BACKENDS[backend].on_cpu else None
                given = {**self.evaluation, "backend": runs}
                given = {name: value for name, value in given.items() if value is not None}
                step = Evaluate(Job("evaluate", given, str(backend)), (), tuple(judged_as.values()))
                result = self._follow(step, ())
                rows = {} if result.result is None else _by_file(result.result)
                known = self._walk.context.artifacts
                found = [
                    self._with_figures(one, rows.get(known[judged_as[one.name]].path.name), result)
                    if one.name in judged_as
                    else one
                    for one in found
                ]
        return [self._within_budget(one) for one in found]

    def _subject(self, one: TunedFile) -> str:
        """What is judged in place of a file: of an engine that cannot run here its graph."""
        assert one.artifact is not None
        source = self.plan.every[one.name].source
        if self.timed or one.artifact.kind != "engine" or source is None:
            return one.name
        return source

    def _with_figures(
        self, one: TunedFile, row: Mapping[str, Any] | None, result: StepResult
    ) -> TunedFile:
        if row is None or row["status"] == "not_run":
            if not self.timed and row is not None:  # of a graph that no runtime here computes
                return replace(one, reason=f"its loss is not known: {row['reason']}")
            reason = result.reason if row is None else row["reason"]
            return replace(one, verdict=Verdict.FAILED, reason=f"not judged: {reason}")
        if row["non_finite"]:
            return replace(one, verdict=Verdict.FAILED, reason=row["reason"])
        doubt = row["doubt"]
        drop = None if doubt is not None else row["drop"]
        return replace(
            one,
            error=row["rel_l2_mean"],
            drop=drop,
            measure=row["measure"],
            reason=None if doubt is None else f"no loss of accuracy can be measured: {doubt}",
        )

    def _within_budget(self, one: TunedFile) -> TunedFile:
        """The file, with why it is beyond the budget if it is."""
        if one.artifact is None or one.verdict is Verdict.FAILED:
            return one
        short = []
        if self.max_drop is not None and one.drop is None:
            short.append(one.reason or "its loss is not known")
        elif self.max_drop is not None and one.drop is not None and one.drop > self.max_drop:
            short.append(
                f"{one.drop:.2f} points of {one.measure} are lost, {self.max_drop:g} may be"
            )
        if self.max_error is not None and (one.error is None or one.error > self.max_error):
            shown = "not known" if one.error is None else f"{one.error:.2e}"
            short.append(f"its error is {shown}, {self.max_error:g} may be")
        if not short:
            return one
        return replace(one, verdict=Verdict.OVER_BUDGET, reason="; ".join(short))

    def _returned(self, files: Sequence[TunedFile]) -> list[Way]:
        """Ways that lose too much in 8 bits, with layers back in float until they do not."""
        if self.max_drop is None or self.evaluation is None:
            return []
        evaluated = {
            "max-drop": self.max_drop,
            "eval": str(self.evaluation["images"].absolute()),
            "class-order": self.evaluation["class_order"],
            "targets": self.evaluation["targets"],
            "threshold": self.evaluation["threshold"],
        }
        keys = {
            name: str(value.absolute())
            if isinstance(value, Path)
            else getattr(value, "value", value)
            for name, value in evaluated.items()
            if value is not None
        }
        known = self.plan.every
        return [
            replace(
                known[one.name], name=f"{one.name}{_WITHIN}", keys={**known[one.name].keys, **keys}
            )
            for one in files
            if one.verdict is Verdict.OVER_BUDGET
            and one.drop is not None
            and one.drop > self.max_drop
            and known[one.name].command == "quantize"
        ]

    # -- timing -----------------------------------------------------------------------------------

    def _time(self, files: Sequence[TunedFile]) -> tuple[list[TunedFile], BenchReport | None]:
        """The files that keep the budget, timed; in several streams each is a file of its own."""
        kept = [one for one in files if one.verdict is Verdict.FRONTIER]
        if not kept or not self.timed:
            return list(files), None
        cases: list[BenchCase] = []
        entrants: list[TunedFile] = []
        others = [one for one in files if one not in kept]
        for one in kept:
            for streams in self._streams():
                case = self._case(one, streams)
                if isinstance(case, BenchCase):
                    cases.append(case)
                    entrants.append(replace(one, streams=streams))
                else:
                    others.append(replace(one, verdict=Verdict.FAILED, reason=case))
        base = self._case(kept[0], 1, REFERENCE_BACKEND)
        race = Race(
            cases,
            base if isinstance(base, BenchCase) else None,
            throughput=self.goal is Goal.THROUGHPUT,
            narrowing=self.goal in (Goal.LATENCY, Goal.THROUGHPUT),
            file=self.workspace.root / TUNE / f"{self._key(cases, kept)}.json",
            time_left=self._left,
        )
        if not self.again:
            race.resume()
        if race.report is not None:
            self.progress.note(
                f"timed before, on {race.report.environment.date_utc[:16]} UTC: --again times anew"
            )
        elif race.rows:
            done = max(len(row.rounds) for row in race.rows)
            self.progress.note(f"going on after {counted(done, 'round')} of an earlier tune")
        report = race.run(_Told(self.progress, "timing", "timing", self._noted))
        rows = {row.key: row for row in report.results}
        timed = [rows[case.key] for case in cases]
        times = race.times_leader(timed)
        most = max(len(row.rounds) for row in timed)
        entered = []
        for index, (one, row) in enumerate(zip(entrants, timed, strict=True)):
            if index not in times:
                entered.append(replace(one, verdict=Verdict.FAILED, reason=row.reason))
                continue
            early = len(row.rounds) < most
            left = f"surely slower after {counted(len(row.rounds), 'round')}" if early else None
            entered.append(replace(one, row=row, times=times[index], reason=left))
        return [*entered, *others], report

    def _streams(self) -> tuple[int, ...]:
        several = self.goal is Goal.THROUGHPUT and self.device is None and self.threads > 1
        return (1, self.threads) if several else (1,)

    def _case(self, one: TunedFile, streams: int, backend: str | None = None) -> BenchCase | str:
        """A file on its runtime, or why not."""
        assert one.artifact is not None and one.backend is not None
        bench = Bench(
            self.workspace, self.threads, batches=(self.batch,), device=self.device, named=True
        )
        found = bench.case(one.artifact, backend or one.backend, self.batch)
        if not isinstance(found, BenchCase):
            return "it does not run here" if found is None else found.reason
        return replace(found, request=replace(found.request, streams=streams))

    def _key(self, cases: Sequence[BenchCase], files: Sequence[TunedFile]) -> str:
        """What the figures of a race depend on."""
        parts = [
            sorted(map(str, (case.key for case in cases))),
            [one.artifact.require_manifest().sha256 for one in files if one.artifact is not None],
            [self.threads, self.device, self.goal.value, ROUND_SECONDS],
            machine(processor=True) | tools(*RUNTIME_TOOLS),
        ]
        return f"race-{text_sha256(json.dumps(parts, sort_keys=True))[:16]}"

    # -- the whole --------------------------------------------------------------------------------

    def tune(self, words: Sequence[str]) -> Tuning:
        """Make, judge, time, choose, write."""
        names = ", ".join(way.name for way in self.plan.ways)
        self.progress.note(f"trying {names}, within {self.within_s / 60:g} minutes (--within)")
        self._make(self.plan.ways)
        files = self._judge([self._file_of(way) for way in self.plan.ways])
        returned = self._returned(files)
        if returned:
            for way in returned:
                self.plan = self.plan.with_way(way)
            self._make(returned)
            files += self._judge([self._file_of(way) for way in returned])
        files, report = self._time(files)
        untried = [
            TunedFile(name, Verdict.NOT_TRIED, reason)
            for name, reason in self.plan.not_tried.items()
        ]
        pick = choose([one for one in files if one.verdict is Verdict.FRONTIER], self.goal)
        ranked = sorted(judged(files, pick), key=_order)
        files = [*ranked, *untried]
        pick = next((one for one in files if one.verdict is Verdict.PICK), None)
        close = None if pick is not None else nearest(files, self.max_drop)
        tuning = Tuning(
            self.goal,
            self.batch,
            self.threads,
            {"max_drop": self.max_drop, "max_error": self.max_error},
            tuple(files),
            pick,
            close,
            self._why(pick, close, files),
            round(monotonic() - self._began, 1),
            report,
        )
        return self._written(tuning, words)

    def _why(
        self, pick: TunedFile | None, close: TunedFile | None, files: Sequence[TunedFile]
    ) -> str:
        if pick is None and close is None:
            return "no file could be made and timed: see the reasons"
        if pick is None:
            assert close is not None
            return f"no file keeps the budget; the nearest is {close.name}: {close.reason}"
        if not self.timed:
            moved = moved_bytes(pick)
            by = "" if moved is None else f", {moved / 1e6:.1f} MB moved a call"
            return (
                f"its kernels move the fewest bytes by the builder's own figures{by}; nothing was "
                "timed: no such GPU is here"
            )
        best = {
            Goal.LATENCY: "the fastest",
            Goal.THROUGHPUT: "the most pictures a second",
            Goal.SIZE: "the smallest file",
            Goal.MEMORY: "the least memory",
        }[self.goal]
        parts = [f"{best} of {counted(sum(one.times is not None for one in files), 'file')} timed"]
        if pick.row is not None and pick.row.speedup_vs_eager is not None:
            parts.append(f"{pick.row.speedup_vs_eager} times as fast as eager PyTorch")
        others = [one for one in files if one.times is not None and one is not pick]
        if others and pick.times is not None:
            second = min(others, key=lambda one: one.times.ratio if one.times else 0.0)
            assert second.times is not None
            ratio = second.times.ratio / pick.times.ratio
            if ratio < 1:
                parts.append(f"{second.name} takes {ratio:.3f} times its time and is further off")
            else:
                parts.append(f"next {second.name}, {ratio:.2f} times its time")
        return "; ".join(parts)

    def _written(self, tuning: Tuning, words: Sequence[str]) -> Tuning:
        """The tuning, once its recipe, its page and its pick are written."""
        pick = tuning.pick
        page = self.workspace.root / TUNE / "tune.html"
        again = shlex.join(["t2t-deploy", "tune", "--workspace", str(self.workspace.root), *words])
        if tuning.report is not None:
            document = BenchDocument(
                tuning.report,
                again,
                {
                    one.artifact.path.name: one.artifact.require_manifest()
                    for one in tuning.files
                    if one.artifact is not None
                },
                tuning=_summary(tuning, judged_on=self.evaluation is not None),
            )
            write_text(page, bench_page(document), kept=True)
            tuning = replace(tuning, page=page)
        if pick is None or pick.artifact is None or pick.backend is None:
            return tuning
        manifest = pick.artifact.require_manifest()
        about = (
            f"{again}\npicked {pick.name}, SHA-256 {manifest.sha256},\n"
            f"in {pick.backend}: {tuning.why}."
        )
        write_text(self._recipe_file, recipe_text(self._best_tables(pick.name), about=about))
        path, root = pick.artifact.path.absolute(), self.workspace.root.absolute()
        inside = path.relative_to(root) if path.is_relative_to(root) else path
        write_best(
            self.workspace.root,
            Best(
                inside.as_posix(),
                manifest.sha256,
                pick.backend,
                tuning.goal.value,
                tuning.batch,
                tuning.threads,
                pick.streams,
                self.device,
            ),
        )
        return replace(tuning, recipe=self._recipe_file)

    def _best_tables(self, name: str) -> Tables:
        """The recipe of one file alone, for these weights alone."""
        tables = self.plan.tables([name])
        checkpoint = tables["model"].get("checkpoint")
        if checkpoint is None:
            return tables
        expected = {"sha256": file_sha256(weights_file(Path(checkpoint)))}
        return {"model": tables.pop("model"), "expected": expected, **tables}


def _with_needs(step: Step, steps: Mapping[str, Step]) -> list[Step]:
    """A step behind all that it needs."""
    found: dict[str, Step] = {}
    for label in step.needs:
        found |= {one.label: one for one in _with_needs(steps[label], steps)}
    return [*found.values(), step]


def _by_file(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Its rows by the artifact's name: the workspace may have been moved since."""
    return {Path(row["artifact"]).name: row for row in result["results"]}


def _order(one: TunedFile) -> tuple[int, float, float]:
    """The pick, then what was timed by its time, then the others."""
    verdicts = list(Verdict)
    timed = one.times is not None or moved_bytes(one) is not None
    rank = 0 if one.verdict is Verdict.PICK else 1 if timed else 2 + verdicts.index(one.verdict)
    time = one.times.ratio if one.times is not None else 0.0
    return rank, time, moved_bytes(one) or 0.0


def _summary(tuning: Tuning, *, judged_on: bool) -> TuneSummary:
    """What the page says of it beside what was timed. judged_on: whether there was an ``eval``."""
    error = (
        "The error is the mean relative L2 distance of the logits from the float32 reference, over "
        "the pictures that the files were judged on."
    )
    return TuneSummary(
        pick=None if tuning.pick is None else tuning.pick.name,
        why=tuning.why,
        errors={
            (one.artifact.path.name): one.error
            for one in tuning.files
            if one.artifact is not None and one.error is not None
        },
        error=error if judged_on else VERIFIED,
        rows=tuple(
            {
                "name": one.name,
                "streams": one.streams,
                "verdict": one.verdict.value.replace("_", " "),
                "ms": one.ms_per_image,
                "times": one.times,
                "error": one.error,
                "drop": one.drop,
                "size": one.size_bytes,
                "memory": one.memory_bytes,
                "reason": one.reason or "",
            }
            for one in tuning.files
        ),
        limit=tuning.budget["max_error"],
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """Progress of a step: steps say how long is left, notes are told once for all files."""

    inner: Progress
    label: str
    with_time: str
    told: set[str]

    def step(self, text: str) -> None:
        self.inner.step(f"{self.with_time}: {text}")

    def note(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.inner.note(f"{self.label}: {text}")

    def progress(self, text: str, done: int, total: int) -> None:
        self.inner.progress(f"{self.with_time}: {text}", done, total)
