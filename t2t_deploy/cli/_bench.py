"""``t2t-deploy bench``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import (
    DeviceType,
    NumbersType,
    artifacts_argument,
    common_options,
    force_option,
    trust_option,
)
from t2t_deploy.cli._output import Output

if TYPE_CHECKING:
    from rich.console import Console


FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("bench", short_help="Latency, throughput and memory against eager PyTorch.")
@artifacts_argument
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Repeatable.")
@click.option("--batch", "batches", type=NumbersType(), default="1", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Default: the cores at hand.")
@click.option("--device", type=DeviceType(), help="Of the GPU backends; eager runs there too.")
@click.option("--rounds", type=click.IntRange(1), help="Interleaved rounds; default 7, at least 5.")
@click.option("--report", "page", type=FILE, metavar="FILE.html", help="Write a page about it.")
@click.option("--csv", "table", type=FILE, metavar="FILE.csv", help="Write the figures.")
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OLD.json",
    help="Say what became faster or slower than what --json printed before.",
)
@click.option(
    "--cuda-graphs",
    type=click.Choice(["on", "off", "both"]),
    default="on",
    show_default=True,
    help="Of engines and ort-cuda; both measures each twice.",
)
@click.option(
    "--baselines",
    is_flag=True,
    help="Also torch.compile and plain exports of the reference; and each row's error.",
)
@force_option
@trust_option
@common_options
def command(artifacts: tuple[Path, ...], workspace: Any, output: Output, **options: Any) -> int:
    """Measure artifacts (all of the workspace if none is named) against eager PyTorch.

    Each runs in its own process; rounds are interleaved, so that a slow minute hits all alike.

    \b
    t2t-deploy bench
    t2t-deploy bench --batch 1,8 --threads 2 --report bench.html
    t2t-deploy bench --backend ort-cpu --compare before.json
    """
    from t2t_deploy.bench import (
        DEFAULT_ROUNDS,
        BenchStatus,
        bench_table,
        comparison_table,
        not_run_lines,
    )
    from t2t_deploy.commands import BenchOutputs, BenchRequest, CudaGraphs, document_bench

    done = document_bench(
        workspace,
        BenchRequest(
            artifacts=artifacts,
            backends=options["backends"],
            batches=options["batches"],
            threads=options["threads"],
            device=options["device"],
            rounds=options["rounds"] or DEFAULT_ROUNDS,
            cuda_graphs=CudaGraphs(options["cuda_graphs"]),
            baselines=options["baselines"],
            force=options["force"],
            trust=options["trust"],
        ),
        BenchOutputs(page=options["page"], table=options["table"], compare=options["compare"]),
        output,
    )
    report = done.report

    def show(console: Console) -> None:
        console.print(bench_table(report))
        for line in not_run_lines(report):
            console.print(line, markup=False, style="dim")
        if done.comparison is not None:
            console.print(comparison_table(done.comparison))
        for path in done.written:
            console.print(f"written: {path}", markup=False)

    output.result(done.to_dict(), show)
    failed = [row for row in report.results if row.status is BenchStatus.FAILED]
    for row in failed:
        output.note(f"{row.backend} {row.artifact} failed: {row.reason}")
    return 1 if failed else 0
