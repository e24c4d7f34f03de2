"""``t2t-deploy verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import fell_short
from t2t_deploy.commands import VerifiedArtifact, verify_artifacts, verify_values
from t2t_deploy.types import HALF_MAX

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.verify import NodewiseReport


@command_line("verify", verify_artifacts)
def verify(results: list[VerifiedArtifact], output: Output) -> int:
    """Verify artifacts (all of the workspace if none is named) against the reference."""

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table("artifact", "status", "rel. error", "tolerance", "top-1 agreement", "reason")
        for result in results:
            found = result.verification
            known = found.rel_l2 is not None
            table.add_row(
                result.artifact.path.name,
                found.status.value,
                f"{found.rel_l2:.2e}" if known else "",
                f"{found.tolerance:.0e}",
                f"{found.top1_agreement:.0%}" if known else "",
                found.reason or "",
            )
        console.print(table)
        for result in results:
            _show_located(console, result)
            _show_nodewise(console, result)

    output.result(verify_values(results), show)
    failed = [result.artifact.path.name for result in results if result.failed]
    if not failed:
        return 0
    looked = any(result.located or result.nodewise for result in results)
    hint = "" if looked else f"; which layer: t2t-deploy verify --locate {failed[0]}"
    return fell_short(f"failed verification: {', '.join(failed)}{hint}")


def _show_located(console: Console, result: VerifiedArtifact) -> None:
    found = result.located
    if found is None:
        return
    status = found.status.value.replace("_", " ")
    console.print(f"\n{result.artifact.path.name}, layer by layer: {status}", markup=False)
    if found.reason is not None:
        console.print(found.reason, markup=False)
    if not found.layers:
        return
    worst = max(found.layers, key=lambda layer: layer.excess)
    console.print(
        f"{len(found.layers)} layers compared on {', '.join(found.pictures)}; nearest to its limit "
        f"or furthest beyond it: {worst.layer}, {worst.words}",
        markup=False,
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


def _show_nodewise(console: Console, result: VerifiedArtifact) -> None:
    from rich.table import Table

    report = result.nodewise
    if report is None:
        return
    status = report.status.value.replace("_", " ")
    console.print(f"\n{result.artifact.path.name}, node by node: {status}", markup=False)
    if report.reason is not None:
        console.print(report.reason, markup=False)
    if not report.nodes:
        return
    overflow = report.first_overflow
    lines = [
        "first overflow: "
        + ("none" if overflow is None else f"{overflow.tensor} ({overflow.op}, {overflow.dtype})")
    ]
    if report.logits.rel_l2 is not None:
        lines.append(
            f"logits against the float64 reference: {report.logits.rel_l2:.2e} of "
            f"{report.logits.tolerance:.0e} allowed; from the stored weights alone "
            f"{report.weights_rel_l2:.2e}; pictures: {', '.join(report.logits.pictures)}"
        )
    if report.sums:
        lines.append(_sums(report))
    if result.plot is not None:
        lines.append(f"picture: {result.plot}")
    for line in lines:
        console.print(line, markup=False)
    ranges = Table("largest range", "operator", "type", "largest |x|", "of the type's range")
    for node in report.largest_range:
        ranges.add_row(
            node.tensor, node.op, node.dtype, f"{node.max_abs:.4g}", f"{node.range_share:.2g}"
        )
    jumps = Table("largest error added", "operator", "type", "added", "its error")
    for node in report.largest_jumps:
        jumps.add_row(
            node.tensor,
            node.op,
            node.dtype,
            f"{node.error_jump:.2e}",
            f"{node.rel_error:.2e}" if node.rel_error is not None else "not finite",
        )
    console.print(ranges)
    console.print(jumps)
