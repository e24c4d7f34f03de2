"""What commands that look at artifacts print: verify, evaluate, bench, inspect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy._options import parameters
from t2t_deploy.bench import bench_table, comparison_table, not_run_lines
from t2t_deploy.cli._adapter import click_parameters, command_line, plain_command
from t2t_deploy.cli._output import Output, dim, fell_short, not_judged, some_of, table
from t2t_deploy.commands import (
    DocumentedBench,
    Evaluation,
    VerifiedArtifact,
    benchmark,
    calibration_advice,
    draw_features,
    evaluate_artifacts,
    evaluate_values,
    inspect_artifact,
    verify_artifacts,
    verify_values,
    why_not_judged,
)
from t2t_deploy.errors import UsageError
from t2t_deploy.types import HALF_MAX, Precision

if TYPE_CHECKING:
    from rich.console import RenderableType

    from t2t_deploy.verify import Accuracy, Located, NodewiseReport


@command_line("verify", verify_artifacts)
def verify(results: list[VerifiedArtifact], output: Output) -> int:
    """Verify artifacts (all of the workspace if none is named) against the reference."""
    output.result(verify_values(results), _verdicts(results))
    failed = {result.artifact.path.name: result.artifact for result in results if result.failed}
    if not failed:
        unjudged = why_not_judged(results)
        return 0 if unjudged is None else not_judged(unjudged)
    told = [f"failed verification: {', '.join(failed)}"]
    for name, artifact in failed.items():
        advice = calibration_advice(artifact.require_manifest(), name)
        told += [] if advice is None else [advice]
    if not any(result.located or result.nodewise for result in results):
        told.append(f"which layer: t2t-deploy verify --locate {next(iter(failed))}")
    return fell_short("; ".join(told))


def _verdicts(results: list[VerifiedArtifact]) -> Iterator[RenderableType]:
    rows = []
    for result in results:
        found = result.verification
        known = found.rel_l2 is not None
        rows.append(
            (
                result.artifact.path.name,
                found.status.value,
                f"{found.rel_l2:.2e}" if known else "",
                f"{found.tolerance:.0e}",
                f"{found.top1_agreement:.0%}" if known else "",
                found.reason or "",
            )
        )
    columns = ("artifact", "status", "rel. error", "tolerance", "top-1 agreement", "reason")
    yield table(columns, rows)
    for result in results:
        name = result.artifact.path.name
        if result.located is not None:
            yield _verdict(name, "layer by layer", result.located)
            yield from _layers(result.located)
        if result.nodewise is not None:
            yield _verdict(name, "node by node", result.nodewise)
            yield from _nodes(result.nodewise, result.plot)


def _verdict(name: str, way: str, found: Located | NodewiseReport) -> str:
    status = found.status.value.replace("_", " ")
    return f"\n{name}, {way}: {status}" + ("" if found.reason is None else f"\n{found.reason}")


def _layers(found: Located) -> Iterator[str]:
    if found.layers:
        worst = max(found.layers, key=lambda layer: layer.excess)
        yield (
            f"{len(found.layers)} layers compared on {', '.join(found.pictures)}; nearest to its "
            f"limit or furthest beyond it: {worst.layer}, {worst.words}"
        )


def _nodes(report: NodewiseReport, plot: Path | None) -> Iterator[RenderableType]:
    if not report.nodes:
        return
    overflow = report.first_overflow
    yield "first overflow: " + (
        "none" if overflow is None else f"{overflow.tensor} ({overflow.op}, {overflow.dtype})"
    )
    if report.logits.rel_l2 is not None:
        yield (
            f"logits against the float64 reference: {report.logits.rel_l2:.2e} of "
            f"{report.logits.tolerance:.0e} allowed; from the stored weights alone "
            f"{report.weights_rel_l2:.2e}; pictures: {', '.join(report.logits.pictures)}"
        )
    if report.sums:
        yield _sums(report)
    if plot is not None:
        yield f"picture: {plot}"
    yield table(
        ("largest range", "operator", "type", "largest |x|", "of the type's range"),
        (
            (node.tensor, node.op, node.dtype, f"{node.max_abs:.4g}", f"{node.range_share:.2g}")
            for node in report.largest_range
        ),
    )
    yield table(
        ("largest error added", "operator", "type", "added", "its error"),
        (
            (
                *(node.tensor, node.op, node.dtype, f"{node.error_jump:.2e}"),
                "not finite" if node.rel_error is None else f"{node.rel_error:.2e}",
            )
            for node in report.largest_jumps
        ),
    )


def _sums(report: NodewiseReport) -> str:
    """What products of codes write, in words."""
    largest = max(report.sums, key=lambda one: one.written_seen)
    beyond = sum(one.written_seen > HALF_MAX for one in report.sums)
    could = sum(one.written_possible > HALF_MAX for one in report.sums)
    return (
        f"{len(report.sums)} products of codes: bare sums up to "
        f"{max(one.seen for one in report.sums):.0f}; what an engine writes in 16 bit reaches "
        f"{largest.written_seen:.4g} on these pictures ({largest.name}), and passes float16 in "
        f"{beyond} of them, in {could} on any"
    )


@command_line("evaluate", evaluate_artifacts)
def evaluate(found: Evaluation, output: Output) -> int:
    """Compare artifacts (all of the workspace if none is named) on pictures.

    Class folders are matched by the artifact's class names, else numbered in the order of their
    names; where text, natural and numeric order differ, --class-order says which. Pictures without
    class folders have no labels: what counts then is agreement with the float32 reference. A model
    of one output takes two class folders, its no and its yes; several labels are in a table,
    --targets.

    \b
    t2t-deploy evaluate --images val/
    t2t-deploy evaluate --images val/ --class-order class_to_idx.json
    t2t-deploy evaluate --images photos/ artifacts/onnx/14-...-int8.onnx
    """
    output.result(evaluate_values(found), _accuracies(found))
    return 0 if found.failure is None else fell_short(found.failure)


def _accuracies(found: Evaluation) -> Iterator[RenderableType]:
    every = [*found.references.values(), *(r.accuracy for r in found.results if r.accuracy)]
    decided = any(accuracy.decisions is not None for accuracy in every)
    measures = {"top-1": "top1", "top-5": "top5"}
    if decided:
        measures = {"AUC": "auc", "avg. precision": "average_precision"}
        measures |= {"accuracy": "accuracy", "F1": "f1"}

    def measured(figures: Accuracy) -> list[str]:
        of = figures.decisions if decided else figures
        return [_percent(getattr(of, name, None)) for name in measures.values()]

    rows = []
    for name, figures in found.references.items():
        cells = [str(figures.images), "", *measured(figures), *[""] * 4]
        rows.append((name, Precision.FP32.value, "", *cells))
    for result in found.results:
        manifest, accuracy = result.artifact.manifest, result.accuracy
        cells = [""] * (len(measures) + 5)
        if accuracy is not None:
            found_off = (accuracy.rel_l2_mean, accuracy.rel_l2_max)
            errors = ("" if error is None else f"{error:.2e}" for error in found_off)
            shares = [*measured(accuracy), _percent(accuracy.agreement)]
            cells = [str(accuracy.images), str(result.batch), *shares, *errors]
        precision = "" if manifest is None else manifest.precision.value
        name, status = result.artifact.path.name, result.status.value
        rows.append((name, precision, status, *cells, result.reason or ""))
    numbers = ("images", "batch", *measures, "agreement", "mean error", "worst")
    yield table(("artifact", "precision", "status", *numbers, "reason"), rows, numbers=numbers)
    yield from some_of(found.unreadable)
    if found.plot is not None:
        yield f"confusion of classes: {found.plot}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


@command_line("bench", benchmark)
def bench(done: DocumentedBench, output: Output) -> int:
    """Measure artifacts (all of the workspace if none is named) against eager PyTorch.

    Each runs in its own process; rounds are interleaved, so that a slow minute hits all alike.

    \b
    t2t-deploy bench
    t2t-deploy bench --batch 1,8 --threads 2 --report bench.html
    t2t-deploy bench --backend ort-cpu --compare before.json
    """

    def show() -> Iterator[RenderableType]:
        yield bench_table(done.report)
        if done.report.cut_short is not None:
            yield f"cut short: {done.report.cut_short}"
        yield from map(dim, not_run_lines(done.report))
        if done.comparison is not None:
            yield comparison_table(done.comparison)
        yield from (f"written: {path}" for path in done.written)

    output.result(done.to_dict(), show())
    for row in done.failed:
        output.note(f"{row.backend} {row.artifact} failed: {row.reason}")
    if done.failure is None:
        return 0
    return 1 if done.failed else not_judged(done.failure)


_DRAWN = parameters(draw_features)
_PARAMETERS = [
    click.Argument(["artifact"], type=click.Path(path_type=Path)),
    click.Argument(["other"], required=False, type=click.Path(path_type=Path)),
    *click_parameters(parameters(inspect_artifact)["runtime"]),
    *click_parameters(dataclasses.replace(_DRAWN["features"], default=None)),
    *click_parameters(_DRAWN["plot"]),
]


@plain_command("inspect", _PARAMETERS)
def inspect(
    workspace: Any,
    output: Output,
    artifact: Path,
    other: Path | None,
    runtime: str | None,
    features: Path | None,
    plot: Path | None,
) -> int:
    """Show what is in an ONNX file or an engine; two artifacts side by side.

    \b
    t2t-deploy inspect artifacts/engines/14-....engine
    t2t-deploy inspect a.onnx b.onnx
    t2t-deploy inspect a.onnx --runtime mnn
    t2t-deploy inspect a.onnx a-int8.onnx --features cat.jpg
    """
    if plot is not None and features is None:
        raise UsageError("--plot draws the token maps of --features; give --features IMAGE too")
    chosen = [artifact] if other is None else [artifact, other]
    drawn = None
    if features is not None:
        drawn = draw_features(
            chosen, features=features, plot=plot, workspace=workspace, progress=output
        )
    summaries = [inspect_artifact(path, runtime=runtime, workspace=workspace) for path in chosen]

    def show() -> Iterator[RenderableType]:
        columns = [flatten(summary) for summary in summaries]
        names = (Path(summary["path"]).name for summary in summaries)
        keys = dict.fromkeys(key for column in columns for key in column)
        yield table(
            ("", *names), ((key, *(column.get(key, "") for column in columns)) for key in keys)
        )
        for summary in summaries if runtime else ():
            if not summary["runtime"]["faults"]:
                name, tried = Path(summary["path"]).name, summary["runtime"]["tried"]
                yield f"{name} in {runtime} ({tried}): nothing is known against it"
        if drawn is not None:
            stages, shown = drawn.features.stages, drawn.features.columns
            errors = (
                [s.note or "" if s.rel_l2 is None else f"{s.rel_l2:.2e}" for s in column.seen]
                for column in shown
            )
            yield table(
                ("relative error against float64", *(column.name for column in shown)),
                zip((stage.title for stage in stages), *errors, strict=True),
            )
            yield f"token maps: {drawn.plot}"

    values: dict[str, Any] = {"artifacts": summaries}
    if drawn is not None:
        values["features"] = drawn.to_dict()
    output.result(values, show())
    faults = [
        f"{Path(summary['path']).name} in {runtime}: {fault['reason']}; {fault['way_out']}"
        for summary in summaries
        for fault in summary.get("runtime", {"faults": []})["faults"]
    ]
    return fell_short("; ".join(faults)) if faults else 0


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted keys and texts, in order; empty ones are left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                flat |= flatten(item, f"{name}.{index}.")
        elif value not in (None, "", [], {}):
            shown = value if not isinstance(value, list) else ", ".join(map(str, value))
            flat[name] = f"{shown:.3g}" if isinstance(shown, float) else str(shown)
    return flat
