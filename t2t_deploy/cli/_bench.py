"""``t2t-deploy bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy.bench import BenchStatus, bench_table, comparison_table, not_run_lines
from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.commands import DocumentedBench, benchmark

if TYPE_CHECKING:
    from rich.console import Console


@command_line("bench", benchmark)
def bench(done: DocumentedBench, output: Output) -> int:
    """Measure artifacts (all of the workspace if none is named) against eager PyTorch.

    Each runs in its own process; rounds are interleaved, so that a slow minute hits all alike.

    \b
    t2t-deploy bench
    t2t-deploy bench --batch 1,8 --threads 2 --report bench.html
    t2t-deploy bench --backend ort-cpu --compare before.json
    """

    def show(console: Console) -> None:
        console.print(bench_table(done.report))
        for line in not_run_lines(done.report):
            console.print(line, markup=False, style="dim")
        if done.comparison is not None:
            console.print(comparison_table(done.comparison))
        for path in done.written:
            console.print(f"written: {path}", markup=False)

    output.result(done.to_dict(), show)
    failed = [row for row in done.report.results if row.status is BenchStatus.FAILED]
    for row in failed:
        output.note(f"{row.backend} {row.artifact} failed: {row.reason}")
    return 1 if failed else 0
