"""``t2t-deploy tune``: what can run here is made, checked and timed, and the best file is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._optional import require
from t2t_deploy._options import (
    DEVICE,
    AnyPath,
    Opt,
    Role,
    command,
    command_words,
    number,
    parameters,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands import (
    SM,
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
from t2t_deploy.errors import UnavailableError, UsageError
from t2t_deploy.pictures import ClassOrder, ClassOrderName, evaluation_images
from t2t_deploy.runtime import available_threads
from t2t_deploy.tuning._judge import judge, ways_back
from t2t_deploy.tuning._plan import Asked, Tables, plan_ways
from t2t_deploy.tuning._race import timed_files
from t2t_deploy.tuning._results import (
    Goal,
    TunedFile,
    Tuning,
    Verdict,
    choose,
    judged,
    nearest,
    order_of,
)
from t2t_deploy.tuning._workshop import Workshop
from t2t_deploy.tuning._write import why, written
from t2t_deploy.workspace import TUNE, Workspace

DEFAULT_WITHIN = 12.0
DEFAULT_IMAGES = 128
DEFAULT_EVALUATED = 256


_MINUTES = number("a number of minutes above 0", lambda minutes: minutes > 0, "MIN")
_POINTS = number("a number of at least 0", lambda points: points >= 0, "PCT")
_ERROR = replace(_POINTS, metavar="X")
_WHERE = replace(
    DEVICE,
    expected="'cpu', 'cuda:0' and so on",
    read=lambda value: None if value == "cpu" else DEVICE.read(value),
    metavar="cpu|cuda:N",
)


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
    UsageError, CheckpointError, ConfigError, ImageError, CalibrationError, MissingDependencyError
    without torch, UnavailableError where nothing can be tried here.

    Examples
    --------
    >>> from t2t_deploy import tune
    >>> found = tune(config="tiny.toml", within=0.01)  # minutes: time for the first file alone
    >>> found.pick.verdict.value, found.recipe.name, found.files[-1].verdict.value
    ('pick', 'best.toml', 'not_tried')
    """
    given = dict(locals())
    workspace = workspace_of(workspace)
    _check_request(given)
    require("torch")
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
    shared, where = _shared(given, images, count), cast("int | None", device)
    plan = plan_ways(shared, sm=sm, device=where, batch=batch, has_images=images is not None)
    if not plan.ways:
        reasons = "; ".join(dict.fromkeys(plan.not_tried.values()))
        raise UnavailableError(f"nothing can be tried here: {reasons}")
    asked = Asked(
        workspace,
        Goal(goal),
        batch,
        threads or available_threads(),
        where,
        evaluation,
        max_drop,
        max_error,
        timed=sm is None,
        again=again,
        within_s=60 * within,
    )
    with workspace.lock(TUNE):
        return _tuned(Workshop(asked, plan, progress), command_words(tune, given))


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
    for name in ("max_drop", "class_order", "targets", "threshold"):
        if given["eval"] is None and given[name] is not None:
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


def _tuned(workshop: Workshop, words: Sequence[str]) -> Tuning:
    """Make, judge, time, choose, write."""
    asked = workshop.asked
    names = ", ".join(way.name for way in workshop.plan.ways)
    workshop.out.note(f"trying {names}, within {asked.within_s / 60:g} minutes (--within)")
    workshop.make(workshop.plan.ways)
    files = judge(workshop, [workshop.file_of(way) for way in workshop.plan.ways])
    back = ways_back(workshop, files)
    if back:
        workshop.plan = replace(workshop.plan, ways=(*workshop.plan.ways, *back))
        workshop.make(back)
        files += judge(workshop, [workshop.file_of(way) for way in back])
    files, report = timed_files(workshop, files)
    pick = choose([one for one in files if one.verdict is Verdict.FRONTIER], asked.goal)
    files = sorted(judged(files, pick), key=order_of)
    files += [
        TunedFile(name, Verdict.NOT_TRIED, why) for name, why in workshop.plan.not_tried.items()
    ]
    pick = next((one for one in files if one.verdict is Verdict.PICK), None)
    close = None if pick is not None else nearest(files, asked.max_drop)
    tuning = Tuning(
        asked.goal,
        asked.batch,
        asked.threads,
        {"max_drop": asked.max_drop, "max_error": asked.max_error},
        tuple(files),
        pick,
        close,
        why(asked, pick, close, files),
        round(workshop.seconds, 1),
        report,
    )
    return written(asked, workshop.plan, tuning, words)
