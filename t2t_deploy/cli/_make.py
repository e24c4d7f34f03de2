"""What commands that make files print: export, calibrate, quantize, build-trt, package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy._options import parameters
from t2t_deploy.bench import figure_cell
from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output, dim, fail_if, hint_for, table, verification_line
from t2t_deploy.commands import (
    CalibratedRanges,
    ComparedStrategies,
    Package,
    StrategyComparison,
    WebPackage,
    build_engine,
    build_values,
    calibrate_onnx,
    calibrate_values,
    calibration_advice,
    compare_exports,
    export_onnx,
    export_values,
    package_artifact,
    package_values,
    quantize_onnx,
    quantize_values,
    split_name,
)
from t2t_deploy.errors import UsageError, counted
from t2t_deploy.types import Status
from t2t_deploy.workspace import Artifact

if TYPE_CHECKING:
    from rich.console import RenderableType

Cell = Callable[[ComparedStrategies], str]

_DEFAULT = "*"
_HAZARD = "!"
_COMPARE = click.Option(
    ["--compare"],
    is_flag=True,
    help="Write nothing; show what every combination of strategies costs and loses.",
)


def _run(given: dict[str, Any], extra: dict[str, Any]) -> Artifact | StrategyComparison:
    if not extra["compare"]:
        return export_onnx(**given)
    if given.pop("output", None) is not None:
        raise UsageError("--compare writes no artifact and -o names a file; leave one of them out")
    known = parameters(compare_exports)
    others = {name: one for name, one in parameters(export_onnx).items() if name not in known}
    for name, parameter in others.items():
        if given.pop(name, parameter.default) not in (parameter.default, parameter.opt.shown):
            raise UsageError(
                f"--compare times the forms of the model itself; leave --{parameter.option} out"
            )
    return compare_exports(**given)


@command_line("export", export_onnx, extra={"output": [_COMPARE]}, run=_run)
def export(made: Artifact | StrategyComparison, output: Output) -> int:
    """Export a checkpoint to ONNX and verify the file against the reference.

    \b
    t2t-deploy export --variant 14
    t2t-deploy export --checkpoint 81.5_T2T_ViT_14.pth.tar --variant 14
    t2t-deploy export --checkpoint tuned.pth --image-size 384 --batch 1
    t2t-deploy export --checkpoint tuned.pth --labels class_to_idx.json
    t2t-deploy export --variant 14 --embed-preprocess --tail topk
    t2t-deploy export --variant 14 --precision fp16 --target tensorrt --compare
    """
    if isinstance(made, StrategyComparison):
        output.result(made.to_dict(), _comparison(made))
        return 0 if any(row.exported for row in made.rows) else 1
    verification = made.require_manifest().verification
    output.result(export_values(made), [verification_line(verification), str(made.path)])
    return fail_if(verification, hint=hint_for(made))


def _comparison(comparison: StrategyComparison) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    rows = comparison.rows
    grid = Table(
        title=f"{comparison.variant} {comparison.precision.value}, batch {comparison.batch}"
    )
    columns = _columns(comparison)
    for name in columns:
        words = name in ("soft split", "performer")
        grid.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for row in rows:
        cells = (Text(cell(row)) for cell in columns.values())
        grid.add_row(*cells, style="bold" if row.default else None)
    yield grid
    yield _legend(comparison, tuple(columns))
    remarks: dict[str, list[str]] = {}
    for row in rows:
        for hazard in row.hazards:
            remarks.setdefault(f"hazard: {hazard}", []).append(row.name)
        if row.reason is not None:
            remarks.setdefault(row.reason, []).append(row.name)
    for line, names in remarks.items():
        whose = "all" if len(names) == len(rows) else " | ".join(names)
        yield dim(f"{whose}: {line}")


# Names and contents of columns; of those measured also the field without which there is none.
_FIGURES = {
    "nodes": figure_cell("nodes"),
    "MB": figure_cell("size_bytes", ".1f", 1e6),
    "error": figure_cell("rel_l2", ".1e"),
    "flat error": figure_cell("rel_l2_flat", ".1e"),
}
_MEASURED = {
    "p50 ms": ("latency_ms", figure_cell("latency_ms.p50", ".1f")),
    "vs eager": ("speedup_vs_eager", figure_cell("speedup_vs_eager")),
    "OV p50 ms": ("openvino_latency_ms", figure_cell("openvino_latency_ms.p50", ".1f")),
    "OV vs eager": ("openvino_speedup_vs_eager", figure_cell("openvino_speedup_vs_eager")),
    "kernels": ("engine", figure_cell("engine.kernels")),
    "moved MB": ("engine", figure_cell("engine.moved_bytes", ".1f", 1e6)),
    "act. MB": ("engine", figure_cell("engine.activation_bytes", ".1f", 1e6)),
    "fused att.": ("engine", figure_cell("engine.fused_attention")),
}


def _columns(comparison: StrategyComparison) -> dict[str, Cell]:
    """Name and content of each column; runtimes that measured nothing have none."""
    columns: dict[str, Cell] = {
        "": lambda row: (_DEFAULT if row.default else "") + (_HAZARD if row.hazards else ""),
        "soft split": lambda row: split_name(row.strategies),
    }
    if comparison.token_attention == "performer":
        columns["performer"] = lambda row: row.strategies.performer.value
    else:
        columns["query groups"] = figure_cell("strategies.query_groups")
    measured = {
        name: cell
        for name, (field, cell) in _MEASURED.items()
        if any(getattr(row, field) is not None for row in comparison.rows)
    }
    return columns | _FIGURES | measured


def _legend(comparison: StrategyComparison, columns: tuple[str, ...]) -> str:
    """What the table's words mean, of the columns that it has."""
    parts = [
        f"{_DEFAULT} default of target {comparison.target.value}",
        f"{_HAZARD} hazard",
        "errors: worst relative L2 against float64, on standard and on flat pictures",
        "MB: 10^6 bytes",
    ]
    if "p50 ms" in columns:
        parts.append("p50: ONNX Runtime, CPU")
    if "OV p50 ms" in columns:
        parts.append("OV: OpenVINO, CPU")
    if "kernels" in columns:
        parts.append(f"from kernels on: TensorRT-RTX engine for SM{comparison.engine_sm}")
    return "; ".join(parts)


_SHOWN_PAIRS = 10


@command_line("calibrate", calibrate_onnx)
def calibrate(found: CalibratedRanges, output: Output) -> None:
    """Take the ranges of what linear layers read (of the newest export if none is named).

    The ranges file belongs to this graph, these pictures, this method; the same ones again are read
    from the workspace, and an interrupted calibration goes on where it was.

    \b
    t2t-deploy calibrate --images train/ --count 512
    t2t-deploy quantize --ranges artifacts/calibration/14-224-portable-....ranges
    """
    calibration = found.calibration
    pairs = calibration.equalisation.applied
    values = calibrate_values(found)

    def show() -> Iterator[RenderableType]:
        if pairs:
            columns = ("equalised, widest first", "read by", "largest / median channel", "after")
            widest = sorted(pairs, key=lambda pair: -pair.spread_before)
            rows = (
                (
                    pair.producer,
                    ", ".join(name.rpartition(".")[2] for name in pair.layers),
                    f"{pair.spread_before:.1f}",
                    f"{pair.spread_after:.1f}",
                )
                for pair in widest[:_SHOWN_PAIRS]
            )
            yield table(columns, rows)
        if len(pairs) > _SHOWN_PAIRS:
            yield f"and {len(pairs) - _SHOWN_PAIRS} more; --json names them all"
        unreadable = len(calibration.unreadable)
        yield (
            f"{len(calibration.ranges)} ranges ({values['calibration']['method']}) from "
            f"{counted(values['calibration']['images'], 'picture')}"
            + (f", {unreadable} unreadable" if unreadable else "")
        )
        yield str(found.path)

    output.result(values, show())


@command_line("quantize", quantize_onnx)
def quantize(made: Artifact, output: Output) -> int:
    """Quantise the linear layers of an export (the newest if none is named).

    \b
    t2t-deploy quantize --images train/                          static, for any runtime
    t2t-deploy quantize --images train/ --target tensorrt        int8 products in an fp16 graph
    t2t-deploy quantize --images train/ --mode dynamic           for ONNX Runtime on the CPU
    t2t-deploy quantize --images train/ --max-drop 0.5 --eval val/
    """
    manifest = made.require_manifest()
    values = quantize_values(made)
    quantization, speed, budget = (values[name] for name in ("quantization", "speed", "budget"))

    shown = [
        f"{quantization['quantized_nodes']} products in {quantization['type']}, "
        f"{quantization['float_nodes']} in {quantization['base']}; {quantization['share']:.1%} "
        "of the linear layers' multiply-adds are quantised"
    ]
    if (computed := quantization["computed"]) is not None:
        shown.append(
            f"{computed['backend']} runs {computed['integer']} products in integers here, "
            f"{computed['float']} in floats"
        )
    if budget is not None:
        shown.append(
            f"budget {budget['status']}: {budget['drop']:.2f} points of {budget['measure']} lost "
            f"of {budget['max_drop']:g} allowed, on {counted(budget['images'], 'picture')}; back "
            f"in float: {', '.join(budget['returned']) or 'none'}"
        )
    shown.append(verification_line(manifest.verification))
    if speed is not None:
        shown.append(_speed(speed))
    output.result(values, [*shown, str(made.path)])
    found = fail_if(manifest.verification, hint=hint_for(made))
    return found or fail_if(budget, hint=calibration_advice(manifest))


def _speed(speed: dict[str, Any]) -> str:
    if speed["status"] != Status.PASSED.value:
        return f"speed {speed['status'].replace('_', ' ')}: {speed['reason']}"
    unstable = ", unstable" if speed["unstable"] else ""
    return (
        f"{speed['verdict']}: {speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}] "
        f"times as fast in {speed['backend']}, batch {speed['batch']}, "
        f"{counted(speed['threads'], 'thread')}{unstable}"
    )


@command_line("build-trt", build_engine)
def build_trt(built: Artifact, output: Output) -> int:
    """Build a TensorRT engine from an export (the newest if none is named).

    \b
    t2t-deploy build-trt --fp16
    t2t-deploy build-trt --fp16 --sm 86,89 --profile 1:8:32
    t2t-deploy build-trt --int8 --images train/ --count 128
    """
    details = built.require_manifest().details
    attestation = details["attestation"]

    def show() -> Iterator[RenderableType]:
        yield from _engine(details["engine"])
        yield f"attestation {attestation['status']}: asked {attestation['asked']}"
        if details["why_not"] is not None:
            yield f"not runnable here: {details['why_not']}"
        yield str(built.path)

    output.result(build_values(built), show())
    return fail_if(attestation)


def _engine(engine: Mapping[str, Any]) -> Iterator[RenderableType]:
    """A table of an engine's figures."""
    moved, batch, twin = engine["moved_bytes"], engine["moved_by_batch"], ""
    if batch is not None:  # a log of a free batch has no sizes
        kernels = engine["moved_by_kernels"]
        twin = f", by the same graph built for batch {batch} alone ({kernels} kernels)"
    rows = {
        "compute capability": ", ".join(engine["sm"]),
        "batch profiles": ", ".join(engine["profiles"]),
        "kernels": str(engine["kernels"]),
        "kernels by dtype": ", ".join(f"{k} {n}" for k, n in engine["kernels_by_dtype"].items()),
        "fused attention": str(engine["fused_attention"]),
        "moved at the tuned batch": "unknown" if moved is None else f"{moved / 1e6:.1f} MB{twin}",
        "with the weights": "unknown" if moved is None else f"{engine['total_bytes'] / 1e6:.1f} MB",
        "activation memory": f"{engine['activation_bytes'] / 1e6:.1f} MB",
        "weights": f"{engine['weights_bytes'] / 1e6:.1f} MB",
        "file": f"{engine['size_bytes'] / 1e6:.1f} MB",
        "built in": f"{engine['build_s']:.1f} s",
    }
    title = f"{engine['backend']} {engine['backend_version']}"
    yield table(("figure", "value"), rows.items(), title=title)


@command_line("package", package_artifact)
def package(package: Package | WebPackage, output: Output) -> None:
    """Write a model repository for Triton, or a page that classifies pictures in a browser.

    A repository has the model, and an ensemble that takes picture files. Without ARTIFACT the
    newest one is taken. A page takes a SECOND file of the same model too, such as its int8 one, and
    uses the faster. Folders made by this command are replaced, others never.

    \b
    t2t-deploy package --triton models/
    t2t-deploy package artifacts/onnx/14-....onnx --triton models/
    t2t-deploy package --web page/
    """
    values = package_values(package)
    if isinstance(package, WebPackage):
        page = values["web"]
        models = " or ".join(
            f"{one['precision'] or 'a model'}, {one['size_bytes'] / 1e6:.1f} MB"
            for one in page["models"]
        )
        shown = [
            f"{page['name']}: {models}; onnxruntime-web {page['runtime']}",
            f"python -m http.server -d {page['folder']}",
        ]
        output.result(values, shown)
        return
    model = values["model"]
    shown = [
        f"{model['name']}: {model['backend']}, {model['instances']}, "
        f"batches up to {model['max_batch_size']}",
        f"{values['ensemble']['name']}: picture files -> {package.service.gives}",
        *map(str, package.folders),
        f"tritonserver --model-repository={values['repository']}",
    ]
    output.result(values, shown)
