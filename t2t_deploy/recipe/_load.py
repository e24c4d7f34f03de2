"""A recipe as values: read, with tables checked, names resolved, paths absolute; and written."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._codec import to_plain
from t2t_deploy._files import write_text
from t2t_deploy._untrusted import tables_of
from t2t_deploy.commands import QuantizationMode, quantization_target
from t2t_deploy.errors import RecipeError, shown_path
from t2t_deploy.recipe._fits import check_fits
from t2t_deploy.recipe._tables import read_tables
from t2t_deploy.types import QUANTIZED, Precision, Target

_LARGEST_FILE = 1 << 20
TOP1_WITHIN = 0.2
"""How far, in points, a measured top-1 may be from the published one."""


@dataclass(frozen=True, slots=True)
class Job:
    """A command that the recipe asks for.

    given: its arguments, paths as they can be opened from here. name: of the artifact that it
    makes, or of the one that it is about. source: the name of what it starts from; None for
    exports, and for commands that look at all artifacts.
    """

    command: str
    given: Mapping[str, Any]
    name: str = ""
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model must turn out to be; None is not checked.

    top1: of the float32 model on ``[evaluate]`` images, percent; within: how far off it may be.
    """

    sha256: str | None = None
    classes: int | None = None
    image_size: int | None = None
    params: int | None = None
    top1: float | None = None
    within: float = TOP1_WITHIN


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe file, read.

    calibration: how static quantisation takes ranges, without an artifact. None, or nothing in a
    tuple, where the recipe does not ask for it.
    """

    file: Path
    workspace: Path | None
    exports: tuple[Job, ...]
    expected: Expected | None
    calibration: Job | None
    quantizations: tuple[Job, ...]
    builds: tuple[Job, ...]
    verify: Job | None
    evaluate: Job | None
    bench: Job | None
    packages: tuple[Job, ...]

    @property
    def folder(self) -> Path:
        """What its paths are relative to."""
        return self.file.parent

    @property
    def artifacts(self) -> tuple[Job, ...]:
        """Everything that makes an artifact, in the order of the work."""
        return (*self.exports, *self.quantizations, *self.builds)


def load_recipe(file: Path) -> Recipe:
    """Read a recipe.

    Raises RecipeError where the file is absent, not TOML, or says what cannot be followed.
    """
    shown = shown_path(file)
    try:
        if file.is_file() and file.stat().st_size > _LARGEST_FILE:
            raise RecipeError(f"{shown} has more than 1 MiB, which no recipe has; name a recipe")
        return recipe_of(tables_of(file.read_bytes()), file)
    except OSError as err:
        raise RecipeError(
            f"cannot read {shown}: {err.strerror}; name a recipe, or write one: t2t-deploy run "
            "--example -o recipe.toml"
        ) from err
    except (ValueError, RecursionError) as err:
        # tomllib's errors, and a number or a nesting that is too large for Python
        first = (str(err).splitlines() or [type(err).__name__])[0]
        raise RecipeError(f"{shown} is not valid TOML: {first}") from err


def recipe_of(values: Mapping[str, Any], file: Path) -> Recipe:
    """The recipe of a file that has these values, as TOML's reader gives them.

    Raises RecipeError for what cannot be followed.
    """
    shown = shown_path(file)
    return _Reader(file, shown, read_tables(values, shown)).recipe()


def example_recipe() -> str:
    """A recipe that runs as it is; what needs files of one's own stands in it as a comment."""
    return (importlib.resources.files(__package__) / "example.toml").read_text(encoding="utf-8")


def write_example(file: Path) -> None:
    """Write the example to a file. Raises RecipeError where something is there, ArtifactError."""
    if file.exists():
        raise RecipeError(
            f"{shown_path(file)} is there already and may be a recipe of yours; name another file, "
            "or remove it"
        )
    write_text(file, example_recipe())


class _Reader:
    """Turns the tables of one file into a `Recipe`."""

    def __init__(self, file: Path, shown: str, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        self.file, self.shown = file, shown
        # a recipe's paths are relative to its folder
        self.tables: dict[str, list[dict[str, Any]]] = {
            name: [
                {k: file.parent / v if isinstance(v, Path) else v for k, v in table.items()}
                for table in tables
            ]
            for name, tables in tables.items()
        }

    def recipe(self) -> Recipe:
        exports = self.exports()
        calibration = self.single("calibrate")
        quantizations = self.quantizations(exports, calibration)
        builds = self.builds(exports, quantizations)
        made = (*exports, *quantizations, *builds)
        bench = self.single("bench")
        if bench is not None and "compare" in bench.given and not _written(bench):
            raise self.error(
                "[bench] has compare, whose result is shown in the report; expected report = "
                "'FILE.html' beside it"
            )
        self.check_names(made)
        self.check_outputs((*made, bench) if bench is not None else made)
        recipe = Recipe(
            file=self.file,
            workspace=self.tables[""][0].get("workspace"),
            exports=exports,
            expected=self.expected(),
            calibration=calibration,
            quantizations=quantizations,
            builds=builds,
            verify=self.single("verify"),
            evaluate=self.single("evaluate"),
            bench=bench,
            packages=self.packages(made),
        )
        try:
            check_fits(recipe)
        except RecipeError as err:
            raise self.error(str(err)) from err
        return recipe

    def error(self, text: str) -> RecipeError:
        return RecipeError(f"{self.shown}: {text}")

    def single(self, command: str) -> Job | None:
        tables = self.tables.get(command)
        return None if tables is None else Job(command, tables[0])

    def exports(self) -> tuple[Job, ...]:
        (model,) = self.tables.get("model", [{}])
        if "variant" in model and "config" in model:
            raise self.error(
                "[model] has variant and config, which both describe the model; expected one of "
                "them"
            )
        if not model.keys() & {"variant", "config", "checkpoint"}:
            raise self.error(
                "nothing says which model it is about; expected variant, config or checkpoint in "
                "[model], such as variant = '14'"
            )
        found = []
        for table in self.tables.get("export", [{}]):
            name = table.pop("name", table.get("precision", Precision.FP32).value)
            found.append(Job("export", model | table, name))
        return tuple(found)

    def quantizations(self, exports: tuple[Job, ...], calibration: Job | None) -> tuple[Job, ...]:
        found = []
        for table in self.tables.get("quantize", []):
            source = self.source(table, exports, "quantize", "[[export]]")
            precision = table.get("type", Precision.INT8)
            mode = table.get("mode", QuantizationMode.STATIC)
            name = table.pop("name", precision.value)
            ranged = mode is QuantizationMode.STATIC and not precision.weights_only
            if ranged and calibration is None:
                raise self.error(
                    f"[[quantize]] {name!r} takes its ranges on pictures, and the recipe names "
                    "none; expected [calibrate] with images, or mode = 'dynamic'"
                )
            if ("max_drop" in table) != ("eval" in table):
                raise self.error(
                    f"[[quantize]] {name!r} has "
                    f"{'max-drop' if 'max_drop' in table else 'eval'} alone; expected max-drop, "
                    "the budget in points, and eval, the pictures it is measured on"
                )
            exported_for = source.given.get("target", Target.PORTABLE)
            given = table | {
                "target": quantization_target(precision, mode, table.get("target"), exported_for)
            }
            if calibration is not None and "equalise" in calibration.given:
                given["equalise"] = calibration.given["equalise"]
            found.append(Job("quantize", given, name, source.name))
        return tuple(found)

    def builds(self, exports: tuple[Job, ...], quantizations: tuple[Job, ...]) -> tuple[Job, ...]:
        found = []
        for table in self.tables.get("build-trt", []):
            graphs = (*exports, *quantizations)
            if "from" not in table and table.get("precision") not in QUANTIZED:
                graphs = exports
            source = self.source(table, graphs, "build-trt", "[[export]] or [[quantize]]")
            typed = source.given.get("type", Precision.INT8)
            if source.command == "export":
                typed = source.given.get("precision", Precision.FP32)
            precision = table.setdefault("precision", typed)
            name = table.pop("name", f"engine-{precision.value}")
            if precision is not typed and QUANTIZED & {precision, typed}:
                way = "an [[export]] in from, or precision left out"
                if precision in QUANTIZED:
                    way = "a [[quantize]] of that type with target = 'tensorrt', named in from"
                raise self.error(
                    f"[[build-trt]] {name!r} has precision {precision.value!r} and is made from "
                    f"{source.name!r}, which is {typed.value}; expected {way}"
                )
            found.append(Job("build-trt", table, name, source.name))
        return tuple(found)

    def packages(self, made: tuple[Job, ...]) -> tuple[Job, ...]:
        found: list[Job] = []
        for table in self.tables.get("package", []):
            source = self.source(table, made, "package", "artifact of the recipe")
            number = "" if not found else f"-{len(found) + 1}"
            found.append(Job("package", table, f"{source.name}{number}", source.name))
        return tuple(found)

    def expected(self) -> Expected | None:
        table = self.tables.get("expected")
        if table is None:
            return None
        values = {name.replace("-", "_"): value for name, value in table[0].items()}
        if "top1_within" in values:
            values["within"] = values.pop("top1_within")
            if "top1" not in values:
                raise self.error(
                    "[expected] has top1-within without top1; expected both, or neither"
                )
        return Expected(**values)

    def source(self, table: dict[str, Any], known: tuple[Job, ...], command: str, what: str) -> Job:
        """What a step is made from: the one it names, or the only one there is."""
        names = ", ".join(repr(one.name) for one in known)
        asked = table.pop("from", None)
        if asked is None:
            if len(known) == 1:
                return known[0]
            raise self.error(
                f"[[{command}]] does not say what it is made from; expected from = one of {names}"
            )
        found = [one for one in known if one.name == asked]
        if not found:
            raise self.error(
                f"[[{command}]] is made from {asked!r}, and no {what} has that name; expected one "
                f"of {names}"
            )
        return found[0]

    def check_names(self, made: Iterable[Job]) -> None:
        taken: set[str] = set()
        for one in made:
            if one.name in taken:
                raise self.error(
                    f"two artifacts are called {one.name!r}; expected a name of its own for each: "
                    "add name = '...' to one of them"
                )
            taken.add(one.name)

    def check_outputs(self, jobs: Iterable[Job]) -> None:
        paths = [path for job in jobs for path in _written(job)]
        twice = [path for index, path in enumerate(paths) if path in paths[:index]]
        if twice:
            raise self.error(
                f"two steps write {shown_path(twice[0])}; expected a file of its own for each"
            )


def _written(job: Job) -> list[Path]:
    """The files that a job is asked to write."""
    return [job.given[name] for name in ("output", "report", "csv") if name in job.given]


def recipe_text(tables: Mapping[str, Any], *, about: str = "") -> str:
    """A recipe with these tables, a list of them as ``[[name]]``, below lines of comment.

    Paths become absolute. Raises RecipeError for a value that no TOML file can hold.
    """
    parts = ["".join(f"# {line}".rstrip() + "\n" for line in about.splitlines())]
    for name, found in tables.items():
        several = isinstance(found, (list, tuple))
        for table in found if several else (found,):
            lines = [f"[[{name}]]" if several else f"[{name}]"]
            lines += [f"{key} = {_value(value)}" for key, value in table.items()]
            parts.append("\n".join(lines) + "\n")
    text = "\n".join(part for part in parts if part)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecipeError(
            "a name of a file is no text, which a recipe cannot hold; rename it"
        ) from None
    return text


def _value(value: Any) -> str:
    """TOML's spelling is JSON's, but for a character that its texts must not hold as it is."""
    plain = to_plain(value.absolute() if isinstance(value, Path) else value)
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
