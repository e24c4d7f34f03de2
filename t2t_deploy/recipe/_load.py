"""Reading a recipe: its tables checked, its names resolved, its paths placed."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t2t_deploy.bench import DEFAULT_ROUNDS
from t2t_deploy.calibration import RangeMethod
from t2t_deploy.commands import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    BenchOutputs,
    BenchRequest,
    BuildRequest,
    CalibrateRequest,
    CudaGraphs,
    EvaluateRequest,
    ExportRequest,
    PackageRequest,
    QuantizationMode,
    QuantizeRequest,
    chosen_profiles,
    quantization_target,
)
from t2t_deploy.errors import RecipeError, UsageError, shown_path
from t2t_deploy.recipe._recipe import TOP1_WITHIN, Expected, Named, Recipe, VerifyPlan
from t2t_deploy.recipe._schema import read_tables
from t2t_deploy.serving.triton import Accelerator, ServingFormat
from t2t_deploy.types import QUANTIZED, GraphIO, Precision, Tail, Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST_FILE = 1 << 20


def load_recipe(file: Path) -> Recipe:
    """Read a recipe.

    Raises RecipeError where the file is absent, not TOML, or says what cannot be followed.
    """
    shown = shown_path(file)
    try:
        if file.is_file() and file.stat().st_size > _LARGEST_FILE:
            raise RecipeError(f"{shown} has more than 1 MiB, which no recipe has; name a recipe")
        values = tomllib.loads(file.read_bytes().decode("utf-8"))
        return _Reader(file, shown, read_tables(values, shown)).recipe()
    except OSError as err:
        raise RecipeError(
            f"cannot read {shown}: {err.strerror}; name a recipe, or write one: t2t-deploy run "
            "--example -o recipe.toml"
        ) from err
    except (ValueError, RecursionError) as err:
        # tomllib's errors, and a number or a nesting that is too large for Python
        first = (str(err).splitlines() or [type(err).__name__])[0]
        raise RecipeError(f"{shown} is not valid TOML: {first}") from err


class _Reader:
    """Turns the tables of one file into a `Recipe`."""

    def __init__(self, file: Path, shown: str, tables: Mapping[str, list[dict[str, Any]]]) -> None:
        self.file, self.shown, self.tables = file, shown, tables

    def recipe(self) -> Recipe:
        exports = self.exports()
        calibration = self.calibration()
        quantizations = self.quantizations(exports, calibration)
        builds = self.builds(exports, quantizations)
        made = (*exports, *quantizations, *builds)
        self.check_names(made)
        bench = self.only("bench")
        self.check_places(made, bench or {})
        return Recipe(
            file=self.file,
            workspace=self.placed(self.tables[""][0].get("workspace")),
            exports=exports,
            expected=self.expected(),
            calibration=calibration,
            quantizations=quantizations,
            builds=builds,
            verify=self.verify(),
            evaluate=self.evaluate(),
            bench=None if bench is None else _bench_request(bench),
            outputs=self.outputs(bench or {}),
            packages=self.packages(made),
        )

    def only(self, name: str) -> dict[str, Any] | None:
        found = self.tables.get(name)
        return None if found is None else found[0]

    def placed(self, path: Path | None) -> Path | None:
        """A path of the recipe as one that can be opened from here."""
        return None if path is None else self.file.parent / path

    def exports(self) -> tuple[Named, ...]:
        model = self.only("model") or {}
        base = ExportRequest(
            variant=model.get("variant"),
            config_file=self.placed(model.get("config")),
            checkpoint=self.placed(model.get("checkpoint")),
            num_classes=model.get("num-classes"),
            image_size=model.get("image-size"),
        )
        if base.variant is not None and base.config_file is not None:
            raise RecipeError(
                f"{self.shown}: [model] has variant and config, which both describe the model; "
                "expected one of them"
            )
        if (base.variant, base.config_file, base.checkpoint) == (None, None, None):
            raise RecipeError(
                f"{self.shown}: nothing says which model it is about; expected variant, config or "
                "checkpoint in [model], such as variant = '14'"
            )
        return tuple(self.export(table, base) for table in self.tables.get("export", [{}]))

    def export(self, table: Mapping[str, Any], base: ExportRequest) -> Named:
        request = dataclasses.replace(
            base,
            batch=table.get("batch"),
            precision=Precision(table.get("precision", "fp32")),
            target=Target(table.get("target", "portable")),
            soft_split=table.get("soft-split"),
            performer=table.get("performer"),
            opset=table.get("opset"),
            graph_io=GraphIO(
                table.get("embed-preprocess", False), Tail(table.get("tail", "logits"))
            ),
            output=self.placed(table.get("output")),
        )
        return Named(table.get("name", request.precision.value), request)

    def calibration(self) -> CalibrateRequest | None:
        table = self.only("calibrate")
        if table is None:
            return None
        return CalibrateRequest(
            images=self.file.parent / table["images"],
            count=table.get("count", DEFAULT_COUNT),
            method=RangeMethod(table["method"]) if "method" in table else DEFAULT_METHOD,
            equalise=not table.get("no-equalise", False),
        )

    def quantizations(
        self, exports: tuple[Named, ...], calibration: CalibrateRequest | None
    ) -> tuple[Named, ...]:
        found = []
        for table in self.tables.get("quantize", []):
            source = self.source(table, exports, "quantize", "[[export]]")
            precision = Precision(table.get("type", "int8"))
            mode = QuantizationMode(table.get("mode", "static"))
            name = table.get("name", precision.value)
            target = Target(table["target"]) if "target" in table else None
            ranged = mode is QuantizationMode.STATIC and not precision.weights_only
            if ranged and calibration is None:
                raise RecipeError(
                    f"{self.shown}: [[quantize]] {name!r} takes its ranges on pictures, and the "
                    "recipe names none; expected [calibrate] with images, or mode = 'dynamic'"
                )
            if ("max-drop" in table) != ("eval" in table):
                raise RecipeError(
                    f"{self.shown}: [[quantize]] {name!r} has "
                    f"{'max-drop' if 'max-drop' in table else 'eval'} alone; expected max-drop, "
                    "the budget in points, and eval, the pictures it is measured on"
                )
            request = QuantizeRequest(
                precision=precision,
                mode=mode,
                target=quantization_target(precision, mode, target, source.request.target),
                base=Precision(table["base"]) if "base" in table else None,
                equalise=True if calibration is None else calibration.equalise,
                placement=table.get("placement"),
                max_drop=table.get("max-drop"),
                eval_images=self.placed(table.get("eval")),
                measure_speed=not table.get("no-speed", False),
                output=self.placed(table.get("output")),
            )
            found.append(Named(name, request, source.name))
        return tuple(found)

    def builds(
        self, exports: tuple[Named, ...], quantizations: tuple[Named, ...]
    ) -> tuple[Named, ...]:
        found = []
        for table in self.tables.get("build-trt", []):
            graphs = (*exports, *quantizations)
            if "from" not in table and table.get("precision") not in QUANTIZED:
                graphs = exports
            source = self.source(table, graphs, "build-trt", "[[export]] or [[quantize]]")
            held = source.request.precision
            precision = Precision(table["precision"]) if "precision" in table else held
            name = table.get("name", f"engine-{precision.value}")
            if precision is not held and QUANTIZED & {precision, held}:
                raise RecipeError(
                    f"{self.shown}: [[build-trt]] {name!r} has precision {precision.value!r} and "
                    f"is made from {source.name!r}, which is {held.value}; expected a [[quantize]] "
                    f"of that type with target = 'tensorrt', named in from"
                    if precision in QUANTIZED
                    else f"{self.shown}: [[build-trt]] {name!r} has precision {precision.value!r} "
                    f"and is made from {source.name!r}, which is {held.value}; expected an "
                    "[[export]] in from, or precision left out"
                )
            request = BuildRequest(
                precision=precision,
                profiles=self.profiles(table, name),
                sm=table.get("sm"),
                memory_limit_mib=table.get("memory-limit"),
                backend=table.get("backend", "auto"),
                optimization_level=table.get("opt-level"),
                output=self.placed(table.get("output")),
            )
            found.append(Named(name, request, source.name))
        return tuple(found)

    def profiles(self, table: Mapping[str, Any], name: str) -> Any:
        try:
            return chosen_profiles(table.get("profile", ()))
        except UsageError as err:
            raise RecipeError(f"{self.shown}: [[build-trt]] {name!r}: profile: {err}") from err

    def packages(self, made: tuple[Named, ...]) -> tuple[Named, ...]:
        found: list[Named] = []
        for table in self.tables.get("package", []):
            source = self.source(table, made, "package", "artifact of the recipe")
            chosen: dict[str, Any] = {
                "format": ServingFormat(table["format"])
                if table.get("format", "auto") != "auto"
                else None,
                "accelerator": Accelerator(table["accelerator"])
                if "accelerator" in table
                else None,
                "name": table.get("name"),
                "labels": self.placed(table.get("labels")),
                "top": table.get("top"),
                "max_batch": table.get("max-batch"),
                "queue_delay_us": table.get("queue-delay"),
                "instances": table.get("instances"),
                "preprocess_instances": table.get("preprocess-instances"),
                "threads": table.get("threads"),
            }
            request = PackageRequest(
                repository=self.file.parent / table["triton"],
                **{key: value for key, value in chosen.items() if value is not None},
            )
            number = "" if not found else f"-{len(found) + 1}"
            found.append(Named(f"{source.name}{number}", request, source.name))
        return tuple(found)

    def expected(self) -> Expected | None:
        table = self.only("expected")
        if table is None:
            return None
        if "top1-within" in table and "top1" not in table:
            raise RecipeError(
                f"{self.shown}: [expected] has top1-within without top1; expected both, or neither"
            )
        return Expected(
            sha256=table.get("sha256"),
            classes=table.get("classes"),
            image_size=table.get("image-size"),
            params=table.get("params"),
            top1=table.get("top1"),
            within=table.get("top1-within", TOP1_WITHIN),
        )

    def verify(self) -> VerifyPlan | None:
        table = self.only("verify")
        if table is None:
            return None
        images = self.placed(table.get("images"))
        return VerifyPlan(images, table.get("nodewise", False), table.get("backend"))

    def evaluate(self) -> EvaluateRequest | None:
        table = self.only("evaluate")
        if table is None:
            return None
        chosen = {key: table[key] for key in ("batch", "limit", "backend") if key in table}
        return EvaluateRequest(
            images=self.file.parent / table["images"],
            confusion=self.placed(table.get("confusion")),
            **chosen,
        )

    def outputs(self, bench: Mapping[str, Any]) -> BenchOutputs:
        paths = {key: self.placed(bench.get(key)) for key in ("report", "csv", "compare")}
        if paths["compare"] is not None and paths["report"] is None and paths["csv"] is None:
            raise RecipeError(
                f"{self.shown}: [bench] has compare, whose result is shown in the report; expected "
                "report = 'FILE.html' beside it"
            )
        return BenchOutputs(page=paths["report"], table=paths["csv"], compare=paths["compare"])

    def source(
        self, table: Mapping[str, Any], known: tuple[Named, ...], command: str, what: str
    ) -> Named:
        """What a step is made from: the one it names, or the only one there is."""
        names = ", ".join(repr(one.name) for one in known)
        asked = table.get("from")
        if asked is None:
            if len(known) == 1:
                return known[0]
            raise RecipeError(
                f"{self.shown}: [[{command}]] does not say what it is made from; expected from = "
                f"one of {names}"
            )
        found = [one for one in known if one.name == asked]
        if not found:
            raise RecipeError(
                f"{self.shown}: [[{command}]] is made from {asked!r}, and no {what} has that name; "
                f"expected one of {names}"
            )
        return found[0]

    def check_names(self, made: Iterable[Named]) -> None:
        taken: set[str] = set()
        for one in made:
            if one.name in taken:
                raise RecipeError(
                    f"{self.shown}: two artifacts are called {one.name!r}; expected a name of its "
                    "own for each: add name = '...' to one of them"
                )
            taken.add(one.name)

    def check_places(self, made: Iterable[Named], bench: Mapping[str, Any]) -> None:
        places = [one.request.output for one in made]
        places += [self.placed(bench.get(key)) for key in ("report", "csv")]
        found = [path for path in places if path is not None]
        twice = [path for place, path in enumerate(found) if path in found[:place]]
        if twice:
            raise RecipeError(
                f"{self.shown}: two steps write {shown_path(twice[0])}; expected a file of its own "
                "for each"
            )


def _bench_request(table: Mapping[str, Any]) -> BenchRequest:
    return BenchRequest(
        backends=table.get("backend", ()),
        batches=tuple(dict.fromkeys(table.get("batch", (1,)))),
        threads=table.get("threads"),
        device=table.get("device"),
        rounds=table.get("rounds", DEFAULT_ROUNDS),
        cuda_graphs=CudaGraphs(table.get("cuda-graphs", "on")),
        baselines=table.get("baselines", False),
    )
