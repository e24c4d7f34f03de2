"""``t2t-deploy doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._adapter import plain_command
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import check_values, show_check
from t2t_deploy.errors import CheckFailed

if TYPE_CHECKING:
    from rich.console import Console


_REPORT = click.Option(
    ["as_report", "--report"],
    is_flag=True,
    help="As Markdown for an issue, without paths and names of this machine.",
)


@plain_command("doctor", [_REPORT])
def command(workspace: Any, output: Output, as_report: bool) -> int:
    """Tell what this machine can build and run, why not the rest, and check the workspace."""
    from t2t_deploy.commands import bug_report, examine_machine, examine_workspace

    found = examine_machine()
    if as_report:
        report = bug_report(found)
        output.result({"report": report}, lambda console: click.echo(report))
        return 0
    checked = examine_workspace(workspace)
    found["workspace"] = {"path": str(workspace.root), **check_values(checked)}

    def show(console: Console) -> None:
        from rich.table import Table

        device = found["cuda_device"]
        console.print(
            f"t2t-deploy {found['t2t_deploy']}, Python {found['python']}, {found['platform']}, "
            + (f"CUDA device of compute capability {device}" if device else "no CUDA device")
        )
        for line in _about(found["processor"]):
            console.print(line, markup=False)
        for name, state in found["can"].items():
            console.print(f"{name}: {state['why_not'] or 'yes'}", markup=False)
        table = Table("backend", "version", "imports", "device", "builds", "runs")
        steps: dict[str, list[str]] = {}
        for backend in found["backends"]:
            flags = [backend[name] for name in ("importable", "device", "builds", "runs")]
            table.add_row(
                backend["name"],
                backend["version"] or "-",
                *("-" if flag is None else "yes" if flag else "no" for flag in flags),
            )
            for step in backend["steps"]:
                steps.setdefault(step, []).append(backend["name"])
        console.print(table)
        for step, names in steps.items():
            console.print(f"{', '.join(names)}: {step}", markup=False)
        if found["onnxruntime"]["problem"]:
            console.print(f"onnxruntime: {found['onnxruntime']['problem']}", markup=False)
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        console.print(versions, markup=False)
        console.print(f"workspace {workspace.root}:", end=" ", markup=False)
        show_check(console, checked)

    output.result(found, show)
    return CheckFailed.exit_status if checked.problems else 0


def _about(processor: dict[str, Any]) -> list[str]:
    """The processor, and what it means for 8-bit and bf16 artifacts on it."""
    if processor["flags"] is None:
        return [f"processor: {processor['model']}; its instructions cannot be read here"]
    flags = ", ".join(processor["flags"]) or "none of AVX2 and later"
    integer = "without widening" if processor["vnni"] else "widened to 16 bits (no VNNI), so slower"
    return [
        f"processor: {processor['model']}; {flags}",
        f"8-bit products on it: {integer}",
        f"bf16 products on it: {'yes' if processor['bf16'] else 'no'}",
    ]
