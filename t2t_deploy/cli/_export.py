"""``t2t-deploy export``, and the table of ``--compare``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import fail_if, locating, show_verification
from t2t_deploy.commands import (
    ComparedStrategies,
    StrategyComparison,
    compare_exports,
    export_onnx,
    export_values,
    split_name,
)
from t2t_deploy.errors import UsageError
from t2t_deploy.workspace import Artifact

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.bench import Latency, Speedup

Cell = Callable[[ComparedStrategies], str]

_NONE = "-"
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
    if given.pop("embed_preprocess", False) or given.pop("tail", "logits") != "logits":
        raise UsageError(
            "--compare times the forms of the model itself; leave --embed-preprocess and --tail out"
        )
    return compare_exports(**given)


@command_line("export", export_onnx, extra={"output": [_COMPARE]}, run=_run)
def command(made: Artifact | StrategyComparison, output: Output) -> int:
    """Export a checkpoint to ONNX and verify the file against the reference.

    \b
    t2t-deploy export --variant 14
    t2t-deploy export --checkpoint 81.5_T2T_ViT_14.pth.tar --variant 14
    t2t-deploy export --checkpoint tuned.pth --image-size 384 --batch 1
    t2t-deploy export --variant 14 --embed-preprocess --tail topk
    t2t-deploy export --variant 14 --precision fp16 --target tensorrt --compare
    """
    if isinstance(made, StrategyComparison):
        output.result(made.to_dict(), lambda console: _show_comparison(console, made))
        return 0 if any(row.exported for row in made.rows) else 1
    verification = made.require_manifest().verification

    def show(console: Console) -> None:
        show_verification(console, verification)
        console.print(str(made.path), markup=False)

    output.result(export_values(made), show)
    return fail_if(verification, hint=locating(made))


def _show_comparison(console: Console, comparison: StrategyComparison) -> None:
    from rich.table import Table
    from rich.text import Text

    rows = comparison.rows
    table = Table(
        title=f"{comparison.variant} {comparison.precision.value}, batch {comparison.batch}"
    )
    columns = _columns(comparison)
    for name in columns:
        words = name in ("soft split", "performer")
        table.add_column(name, justify="left" if words else "right", no_wrap=not words)
    for row in rows:
        cells = (Text(cell(row)) for cell in columns.values())
        table.add_row(*cells, style="bold" if row.default else None)
    console.print(table)
    console.print(_legend(comparison, tuple(columns)), markup=False)
    told: dict[str, list[str]] = {}
    for row in rows:
        for hazard in row.hazards:
            told.setdefault(f"hazard: {hazard}", []).append(row.name)
        if row.reason is not None:
            told.setdefault(row.reason, []).append(row.name)
    for line, names in told.items():
        whose = "all" if len(names) == len(rows) else " | ".join(names)
        console.print(f"{whose}: {line}", markup=False, style="dim")


def _columns(comparison: StrategyComparison) -> dict[str, Cell]:
    """Name and content of each column; runtimes that measured nothing have none."""
    rows = comparison.rows
    columns: dict[str, Cell] = {
        "": lambda row: (_DEFAULT if row.default else "") + (_HAZARD if row.hazards else ""),
        "soft split": lambda row: split_name(row.strategies),
    }
    if comparison.token_attention == "performer":
        columns["performer"] = lambda row: row.strategies.performer.value
    else:
        columns["query groups"] = lambda row: str(row.strategies.query_groups)
    columns |= {
        "nodes": lambda row: _shown(row.nodes, "d"),
        "MB": lambda row: _shown(row.size_bytes, ".1f", 1e6),
        "error": lambda row: _shown(row.rel_l2, ".1e"),
        "flat error": lambda row: _shown(row.rel_l2_flat, ".1e"),
    }
    if any(row.latency_ms is not None for row in rows):
        columns["p50 ms"] = lambda row: _latency(row.latency_ms)
    if any(row.speedup_vs_eager is not None for row in rows):
        columns["vs eager"] = lambda row: _speedup(row.speedup_vs_eager)
    if any(row.openvino_latency_ms is not None for row in rows):
        columns["OV p50 ms"] = lambda row: _latency(row.openvino_latency_ms)
    if any(row.openvino_speedup_vs_eager is not None for row in rows):
        columns["OV vs eager"] = lambda row: _speedup(row.openvino_speedup_vs_eager)
    if any(row.engine is not None for row in rows):
        columns |= {
            "kernels": _figure("kernels", "d"),
            "moved MB": _figure("moved_bytes", ".1f", 1e6),
            "act. MB": _figure("activation_bytes", ".1f", 1e6),
            "fused att.": _figure("fused_attention", "d"),
        }
    return columns


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


def _figure(name: str, form: str, unit: float | None = None) -> Cell:
    """The cell of an engine's figure."""

    def cell(row: ComparedStrategies) -> str:
        return _shown(None if row.engine is None else getattr(row.engine, name), form, unit)

    return cell


def _shown(value: float | None, form: str, unit: float | None = None) -> str:
    if value is None:
        return _NONE
    return format(value if unit is None else value / unit, form)


def _latency(latency: Latency | None) -> str:
    return _NONE if latency is None else f"{latency.p50:.1f}"


def _speedup(speedup: Speedup | None) -> str:
    return _NONE if speedup is None else str(speedup)
