"""A bench and what is written about it: files, lineage, the command, an older bench beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._files import MAX_BENCH_BYTES, first_line, json_from_file
from t2t_deploy.bench import (
    BenchReport,
    Comparison,
    bench_csv,
    check_comparable,
    compare_reports,
    read_environment,
    report_from_dict,
    visible_gpus,
)
from t2t_deploy.errors import ComparisonError, UsageError
from t2t_deploy.pipeline._bench import NO_GRAPH, BenchRequest, CudaGraphs, bench_artifacts
from t2t_deploy.pipeline._progress import Report, silent
from t2t_deploy.report import BenchDocument, bench_page
from t2t_deploy.runtime import available_threads
from t2t_deploy.workspace import Artifact, Manifest, Workspace, make_folder, write_text

_PAGE_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True)
class BenchOutputs:
    """What to write beside the result, and what to compare it with; None means nothing.

    page: an HTML file. table: a CSV file. compare: what `bench --json` printed before.
    """

    page: Path | None = None
    table: Path | None = None
    compare: Path | None = None


@dataclass(frozen=True, slots=True)
class DocumentedBench:
    """A bench, how to repeat it, how it compares, and which files tell of it."""

    report: BenchReport
    command: str
    comparison: Comparison | None
    written: tuple[Path, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        comparison = None if self.comparison is None else self.comparison.to_dict()
        more = {"command": self.command, "comparison": comparison}
        return self.report.to_dict() | more | {"written": [str(path) for path in self.written]}


def document_bench(
    workspace: Workspace, request: BenchRequest, outputs: BenchOutputs, report: Report = silent
) -> DocumentedBench:
    """Measure as `bench_artifacts` does, compare with an older bench, write files about it.

    What cannot be compared or written is told before anything is measured. Raises ComparisonError,
    UsageError, and what `bench_artifacts` raises.
    """
    _check_files(outputs)
    old = None if outputs.compare is None else _comparable(outputs.compare, request)
    measured = bench_artifacts(workspace, request, report)
    comparison = None
    if old is not None:
        comparison = compare_reports(old, measured, name=str(outputs.compare))
        for note in comparison.notes:
            report.note(f"not the same as then: {note}")
    command = _command(workspace, request, outputs)
    written = []
    if outputs.table is not None:
        write_text(outputs.table, bench_csv(measured))
        written.append(outputs.table)
    if outputs.page is not None:
        manifests = _manifests(workspace, request.artifacts, measured)
        document = BenchDocument(measured, command, manifests, comparison)
        write_text(outputs.page, bench_page(document))
        written.append(outputs.page)
    return DocumentedBench(measured, command, comparison, tuple(written))


def _check_files(outputs: BenchOutputs) -> None:
    if outputs.page is not None and outputs.page.suffix.lower() not in _PAGE_SUFFIXES:
        raise UsageError(f"--report is {outputs.page}; expected a file that ends in .html")
    if outputs.table is not None and outputs.table.suffix.lower() != ".csv":
        raise UsageError(f"--csv is {outputs.table}; expected a file that ends in .csv")
    for path in (outputs.page, outputs.table):
        if path is not None:
            make_folder(path.parent)


def read_report(path: Path) -> BenchReport:
    """The report that ``bench --json`` printed. Raises ComparisonError."""
    try:
        return report_from_dict(json_from_file(path, MAX_BENCH_BYTES))
    except OSError as err:
        raise ComparisonError(
            f"cannot read {path}: {err.strerror}; name a file that holds what 'bench --json' "
            "printed"
        ) from err
    except ValueError as err:
        raise ComparisonError(
            f"{path} is no result of a bench ({first_line(err)}); name a file that holds what this "
            "version's 'bench --json' printed"
        ) from err


def _comparable(path: Path, request: BenchRequest) -> BenchReport:
    """The older report, once it is known to be of this machine and these settings."""
    old = read_report(path)
    threads = request.threads or available_threads()
    now = read_environment(threads=[threads], load_before=None, gpus=visible_gpus())
    check_comparable(old, now, devices=(request.device,), name=str(path))
    return old


def _manifests(
    workspace: Workspace, named: Sequence[Path], measured: BenchReport
) -> dict[str, Manifest]:
    """Manifests of the files that were measured, by the name that the rows have."""
    artifacts: list[Artifact] = (
        [workspace.open(path, force=True) for path in named] if named else workspace.artifacts()
    )
    rows = {row.artifact for row in measured.results if row.latency_ms is not None}
    return {
        row: artifact.manifest
        for artifact in artifacts
        for row in (artifact.path.name, f"{artifact.path.name}{NO_GRAPH}")
        if artifact.manifest is not None and row in rows
    }


def _command(workspace: Workspace, request: BenchRequest, outputs: BenchOutputs) -> str:
    """The command line that measures the same again, defaults spelled out where they may vary."""
    words: list[object] = ["t2t-deploy", "bench", "--workspace", workspace.root]
    for backend in request.backends:
        words += ["--backend", backend]
    words += ["--batch", ",".join(str(batch) for batch in request.batches)]
    words += ["--threads", request.threads or available_threads()]
    if request.device is not None:
        words += ["--device", f"cuda:{request.device}"]
    words += ["--rounds", request.rounds]
    if request.cuda_graphs is not CudaGraphs.ON:
        words += ["--cuda-graphs", request.cuda_graphs.value]
    flags = {
        "--baselines": request.baselines,
        "--force": request.force,
        "--trust": request.trust,
    }
    words += [flag for flag, given in flags.items() if given]
    files = {"--report": outputs.page, "--csv": outputs.table, "--compare": outputs.compare}
    for option, path in files.items():
        words += [] if path is None else [option, path]
    # a name that begins with a hyphen would be read as an option
    words += [f"./{path}" if str(path).startswith("-") else path for path in request.artifacts]
    return shlex.join(str(word) for word in words)
