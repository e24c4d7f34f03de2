"""What does not fit in a recipe, of one step's options or between steps: said before any work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy._options import parameters
from t2t_deploy.commands import (
    GraphForm,
    QuantizationMode,
    QuantizationRequest,
    check_of_file,
    check_package_options,
    check_page,
    check_streams,
    check_tail,
    settle_quantization,
)
from t2t_deploy.engine import resolve_profiles
from t2t_deploy.errors import DeployError, RecipeError, shown_path
from t2t_deploy.model import config_for_variant
from t2t_deploy.recipe._tables import COMMANDS
from t2t_deploy.runtime import BACKENDS, available_threads
from t2t_deploy.serving import choose_activation
from t2t_deploy.serving.triton import choose_accelerator, choose_batching, choose_format
from t2t_deploy.types import INPUT_NAME, GraphIO, Precision, ShapeProfile, Tail, Target, TensorSpec

if TYPE_CHECKING:
    from t2t_deploy.recipe._load import Job, Recipe


@dataclass(frozen=True, slots=True)
class Planned:
    """What is known of an artifact before it is made.

    batch: None is free. profiles: of an engine, one of a fixed batch too.
    """

    kind: str
    precision: Precision
    target: Target
    batch: int | None
    tail: Tail
    profiles: tuple[ShapeProfile, ...] = ()
    dynamic_ranges: bool = False

    def takes(self, batch: int) -> bool:
        """Whether it runs so many pictures at a time."""
        if self.kind == "engine":
            return any(one.min <= batch <= one.max for one in self.profiles)
        return self.batch in (None, batch)

    @property
    def batches(self) -> str:
        """What it takes, in words."""
        if self.batch is not None:
            return f"has its batch fixed at {self.batch}"
        return f"takes {', '.join(map(str, self.profiles))}"


def check_fits(recipe: Recipe) -> None:
    """Raise RecipeError for the first thing that cannot be done as it is written."""
    model = recipe.exports[0].given
    with _about("[model]"):
        _check_model(model)
    with _about("[expected]"):
        _check_expected(recipe)
    planned: dict[str, Planned] = {}
    plans = {"export": _export, "quantize": _quantization, "build-trt": _build}
    for job in recipe.artifacts:
        with _about(f"[[{job.command}]] {job.name!r}"):
            planned[job.name] = plans[job.command](job, planned, recipe)
    if recipe.evaluate is not None:
        with _about("[evaluate]"):
            _check_evaluation(recipe, planned)
    if recipe.bench is not None:
        with _about("[bench]"):
            _check_bench(recipe.bench, planned)
    names: set[tuple[Path, str]] = set()
    for job in recipe.packages:
        with _about(f"[[package]] of {job.source!r}"):
            _check_package(job, planned[str(job.source)], model.get("num_classes"), names)


@contextlib.contextmanager
def _about(table: str) -> Iterator[None]:
    """Names the table in what a command would refuse."""
    try:
        yield
    except DeployError as err:
        raise RecipeError(f"{table}: {err}") from err


def _check_model(given: Mapping[str, Any]) -> None:
    check_of_file(given)
    if "variant" in given:
        sizes = {name: given.get(name) for name in ("image_size", "num_classes")}
        config_for_variant(given["variant"]).with_(**sizes)
    mean, std = given.get("mean"), given.get("std")
    if mean is not None and std is not None and len(mean) != len(std):
        raise RecipeError(
            f"mean has {len(mean)} numbers and std {len(std)}; expected one of each for each "
            "channel of the model"
        )


def _check_expected(recipe: Recipe) -> None:
    """An expectation that no step would compare is refused."""
    expected, model = recipe.expected, recipe.exports[0].given
    if expected is None:
        return
    if expected.sha256 is not None and "checkpoint" not in model:
        raise RecipeError(
            "it has a sha256 and [model] no checkpoint; name the file, or leave sha256 out"
        )
    asked = model.get("num_classes")
    if None not in (asked, expected.classes) and asked != expected.classes:
        raise RecipeError(
            f"classes is {expected.classes} and num-classes of [model] {asked}; expected the same"
        )
    if expected.top1 is None:
        return
    what = f"top1 {expected.top1:g} would not be compared"
    if recipe.evaluate is None:
        raise RecipeError(
            f"{what}, for the recipe has no [evaluate]; add it with images, the folder of class "
            "folders that top1 is of, or leave top1 out"
        )
    for name in ("targets", "threshold"):
        if name in recipe.evaluate.given:
            raise RecipeError(
                f"{what}, for {name} of [evaluate] decides each class by itself; leave one of them "
                "out"
            )
    if 1 in (asked, expected.classes):
        raise RecipeError(f"{what}, for the model has one output; leave top1 out")


def _export(job: Job, planned: Mapping[str, Planned], recipe: Recipe) -> Planned:
    given = _options(job)
    precision, target, tail = given["precision"], given["target"], given["tail"]
    GraphForm.of(given, GraphIO(given["embed_preprocess"], tail)).check()
    check_tail(tail, given["num_classes"])
    return Planned("onnx", precision, target, given["batch"], tail)


def _quantization(job: Job, planned: Mapping[str, Planned], recipe: Recipe) -> Planned:
    given, source = _options(job), planned[str(job.source)]
    precision, mode, evaluated = given["type"], given["mode"], given["eval"]
    pictures = None if recipe.calibration is None else recipe.calibration.given["images"]
    ranged = _takes_ranges(job)
    asked = QuantizationRequest.of({**given, "images": pictures if ranged else None})
    target, _, _ = settle_quantization(asked, source.target)
    if evaluated is not None and not source.tail.classifies:
        raise RecipeError(
            f"max-drop is of classes, and {job.source!r} gives {source.tail.value}; leave max-drop "
            "and eval out"
        )
    if ranged and _same(evaluated, pictures):
        raise RecipeError(
            "eval names the pictures of [calibrate], on which no drop is measured; give others"
        )
    dynamic = mode is QuantizationMode.DYNAMIC
    return Planned("onnx", precision, target, source.batch, source.tail, dynamic_ranges=dynamic)


def _build(job: Job, planned: Mapping[str, Planned], recipe: Recipe) -> Planned:
    source, given = planned[str(job.source)], _options(job)
    image = TensorSpec(INPUT_NAME, "float32", (source.batch,))
    profiles = resolve_profiles([image], given["profile"])
    return Planned(
        "engine", given["precision"], Target.TENSORRT, source.batch, source.tail, profiles
    )


def _check_evaluation(recipe: Recipe, planned: Mapping[str, Planned]) -> None:
    if not any(one.tail.classifies for one in planned.values()):
        tails = ", ".join(f"{name!r} gives {one.tail.value}" for name, one in planned.items())
        raise RecipeError(
            f"it looks at classes, and no artifact has any ({tails}); leave it out, or add an "
            "[[export]] without a tail"
        )
    assert recipe.evaluate is not None
    images = recipe.evaluate.given["images"]
    ranged = [job.name for job in recipe.quantizations if _takes_ranges(job)]
    if ranged and recipe.calibration and _same(images, recipe.calibration.given["images"]):
        raise RecipeError(
            f"images are those of [calibrate], on which {ranged[0]!r} cannot be judged; give others"
        )


def _check_bench(job: Job, planned: Mapping[str, Planned]) -> None:
    """Each batch must be one that an artifact takes, in a runtime that takes the artifact."""
    given = _options(job)
    check_streams(given["streams"], given["threads"] or available_threads())
    backends = given["backend"] or tuple(BACKENDS)
    kinds = {BACKENDS[name].takes for name in backends} - {"weights"}
    if not kinds:
        return  # the reference alone
    benched = {name: one for name, one in planned.items() if one.kind in kinds}
    if not benched:
        raise RecipeError(
            f"backend {', '.join(backends)} runs engines, and the recipe builds none; add a "
            "[[build-trt]], or leave backend out"
        )
    for batch in given["batch"]:
        if not any(one.takes(batch) for one in benched.values()):
            why = "; ".join(f"{name!r} {one.batches}" for name, one in benched.items())
            raise RecipeError(
                f"no artifact takes batch {batch}: {why}; set batch to one that is taken, or "
                "batch of [[export]] to 'dynamic'"
            )


def _check_package(
    job: Job, source: Planned, num_classes: int | None, names: set[tuple[Path, str]]
) -> None:
    given = _options(job)
    check_package_options(given)
    if given["web"] is not None:
        if (given["web"], "") in names:
            raise RecipeError(f"another package has the folder {shown_path(given['web'])} as well")
        names.add((given["web"], ""))
        check_page(repr(job.source), source.kind, source.precision, source.tail, source.batch)
        return
    serving = choose_format(source.kind, given["format"])
    choose_accelerator(
        serving,
        given["accelerator"],
        source.target,
        source.precision,
        dynamic_ranges=source.dynamic_ranges,
    )
    profiles = source.profiles if source.batch is None else ()
    choose_batching(repr(job.source), source.batch, serving, profiles, given["max_batch"])
    choose_activation(source.tail, num_classes, given["activation"])
    # the default name has the variant and the precision
    name = given["name"] or source.precision.value
    if (given["triton"], name) in names:
        raise RecipeError(
            f"another package in {shown_path(given['triton'])} has the same name; give it a name "
            "of its own"
        )
    names.add((given["triton"], name))


def _options(job: Job) -> dict[str, Any]:
    """The options of a step's command, by parameter; what the recipe leaves out by default."""
    declared = parameters(COMMANDS[job.command])
    defaults = {name: p.read(p.default) for name, p in declared.items() if not p.required}
    return {**defaults, **job.given}


def _takes_ranges(job: Job) -> bool:
    """Whether a quantisation takes ranges on pictures."""
    given = _options(job)
    return given["mode"] is QuantizationMode.STATIC and not given["type"].weights_only


def _same(one: Path | None, other: Path | None) -> bool:
    return None not in (one, other) and Path(str(one)).absolute() == Path(str(other)).absolute()
