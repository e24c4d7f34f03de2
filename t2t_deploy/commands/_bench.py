"""Which artifacts run on which backends, side by side with eager."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._codec import to_plain
from t2t_deploy._files import make_folder, write_text
from t2t_deploy._options import (
    BATCHES,
    DEVICE,
    AnyPath,
    Opt,
    Role,
    choice,
    command,
    ending,
    several,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy._untrusted import MAX_BENCH_BYTES, first_line, json_from_file
from t2t_deploy.bench import (
    DEFAULT_ROUND_SECONDS,
    DEFAULT_ROUNDS,
    BenchCase,
    BenchReport,
    CaseResult,
    Comparison,
    bench_csv,
    check_comparable,
    compare_reports,
    not_run_result,
    read_environment,
    report_from_dict,
    run_bench,
    visible_gpus,
)
from t2t_deploy.commands._artifacts import (
    ArtifactFiles,
    Force,
    Trust,
    are_named,
    check_engine,
    engine_sha256,
    usable_artifacts,
    workspace_of,
)
from t2t_deploy.commands._baselines import (
    Baselines,
    BenchedModel,
    plain_baselines,
    with_speedup_vs_plain,
    with_wanted,
)
from t2t_deploy.errors import BackendError, ComparisonError, EngineError
from t2t_deploy.report import BenchDocument, bench_page
from t2t_deploy.runtime import (
    BACKENDS,
    SessionRequest,
    available_threads,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace

_ANY_PRECISION = "-"
NO_GRAPH = ", no CUDA graph"
"""Follows the name of an engine in a row that was measured without."""
_SEED = 0
_SLOW_COMPILE = (
    "compiles for a minute or more on a CPU; ask for it: --baselines or --backend compile"
)
# What all turns of one bench may take together, so that a full workspace ends in time too.
_TOTAL_SECONDS = 100.0


class CudaGraphs(str, Enum):
    """Whether engines replay a batch as one CUDA graph."""

    ON = "on"
    OFF = "off"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to measure; empty means every artifact of the workspace on every backend."""

    artifacts: Sequence[Path] = ()
    backends: Sequence[str] = ()
    batches: Sequence[int] = (1,)
    threads: int | None = None
    device: int | None = None  # cuda:0 for backends that need one, the CPU for eager
    rounds: int = DEFAULT_ROUNDS
    cuda_graphs: CudaGraphs = CudaGraphs.ON  # of engines and ort-cuda
    baselines: bool = False  # also what one would use without this tool, and each row's error
    force: bool = False
    trust: bool = False


def bench_artifacts(
    workspace: Workspace, request: BenchRequest, progress: Progress = silent
) -> BenchReport:
    """Measure artifacts against the eager reference of their own weights.

    A backend that cannot run here becomes a row that says why, unless it was asked for by name.
    Raises BackendError for one that was, ArtifactError where there is nothing to measure.
    """
    for name in request.backends:
        reason = why_not_runnable(name, request.device)
        if reason is not None:
            raise BackendError(f"backend {name} cannot run here: {reason}")
    artifacts = usable_artifacts(
        workspace,
        request.artifacts,
        force=request.force,
        purpose="bench",
        progress=progress,
        trust=request.trust,
    )
    threads = request.threads or available_threads()
    cases: list[BenchCase] = []
    skipped: list[CaseResult] = []
    for batch in request.batches:
        for artifact in artifacts:
            for backend in request.backends or BACKENDS:
                case, reason = _case(workspace, artifact, backend, batch, threads, request)
                if case is not None:
                    ways = _graph_ways(case, request.cuda_graphs)
                    cases += [way for way in ways if way not in cases]
                elif reason is not None:
                    skipped.append(
                        not_run_result(
                            backend=backend,
                            artifact=artifact.path.name,
                            precision=_precision(artifact),
                            batch=batch,
                            reason=reason,
                        )
                    )
    if not request.backends:
        skipped += _untried(cases, skipped, request)
    if not cases:
        reasons = "; ".join(dict.fromkeys(str(row.reason) for row in skipped))
        raise BackendError(f"nothing here can be measured: {reasons or 'no backend takes it'}")
    with workspace.scratch() as folder:
        if request.baselines:
            models = _models(workspace, artifacts)
            for found in _plain(models, request, threads, folder, progress):
                cases += found.cases
                skipped += found.rows
            cases = with_wanted(cases, models, seed=_SEED, progress=progress)
        turns = len(cases) * max(request.rounds, 1)
        measured = run_bench(
            cases,
            rounds=request.rounds,
            round_seconds=min(DEFAULT_ROUND_SECONDS, _TOTAL_SECONDS / turns),
            seed=_SEED,
            progress=progress.progress,
        )
    results = measured.results
    if request.baselines:
        results = tuple(with_speedup_vs_plain(cases, results))
    return dataclasses.replace(measured, results=(*results, *skipped))


def _graph_ways(case: BenchCase, asked: CudaGraphs) -> list[BenchCase]:
    """A case with and without CUDA graphs, as asked; one of a backend without them as it is."""
    if not BACKENDS[case.backend].cuda_graphs:
        return [case]
    request = dataclasses.replace(case.request, cuda_graph=False)
    plain = dataclasses.replace(case, request=request, artifact=f"{case.artifact}{NO_GRAPH}")
    return {CudaGraphs.ON: [case], CudaGraphs.OFF: [plain]}.get(asked, [case, plain])


def _models(workspace: Workspace, artifacts: Sequence[Artifact]) -> list[BenchedModel]:
    """The models of the artifacts whose weights are known, each once."""
    found = {
        manifest.model_key: BenchedModel(
            manifest.model_key, workspace.weights(manifest), dict(manifest.config)
        )
        for manifest in (artifact.manifest for artifact in artifacts)
        if manifest is not None and manifest.weights
    }
    return list(found.values())


def _plain(
    models: Sequence[BenchedModel],
    request: BenchRequest,
    threads: int,
    folder: Path,
    progress: Progress,
) -> Iterator[Baselines]:
    for batch in request.batches:
        for model in models:
            yield plain_baselines(
                model,
                batch=batch,
                threads=threads,
                backends=request.backends or tuple(BACKENDS),
                folder=folder,
                progress=progress,
            )


def _untried(
    cases: Sequence[BenchCase], skipped: Sequence[CaseResult], request: BenchRequest
) -> list[CaseResult]:
    """Backends that cannot run here and that no artifact was made for: they are told too."""
    mentioned = {case.backend for case in cases} | {row.backend for row in skipped}
    reasons = {
        backend: why_not_runnable(backend, request.device)
        for backend in BACKENDS
        if backend not in mentioned
    }
    return [
        not_run_result(
            backend=backend, artifact=None, precision=_ANY_PRECISION, batch=batch, reason=reason
        )
        for batch in request.batches
        for backend, reason in reasons.items()
        if reason is not None
    ]


def _case(
    workspace: Workspace,
    artifact: Artifact,
    backend: str,
    batch: int,
    threads: int,
    asked: BenchRequest,
) -> tuple[BenchCase | None, str | None]:
    """The case of an artifact on a backend, or why it is not measured; neither where it is moot."""
    takes, device, named = BACKENDS[backend].takes, asked.device, are_named(asked.artifacts)
    manifest = artifact.manifest
    if takes == "weights":
        if manifest is None or not manifest.weights:
            return None, None
        reason = why_not_runnable(backend, device)
        if reason is None and BACKENDS[backend].compiles and device is None:
            reason = None if asked.baselines or asked.backends else _SLOW_COMPILE
        if reason is not None:
            return None, reason
        request = SessionRequest(
            backend,
            workspace.weights(manifest),
            threads=threads,
            config=manifest.config,
            device=device,
            cache=workspace.cache(backend),
        )
        return BenchCase(
            request, manifest.reference_name, Precision.FP32.value, batch, manifest.model_key
        ), None
    if takes != artifact.kind:
        return None, None
    if manifest is not None and takes == "engine" and backend != manifest.engine.backend:
        return None, None
    reason = why_not_runnable(backend, device)
    if reason is None and takes == "engine" and not named:
        reason = _why_not_loaded(artifact)
    if reason is None and manifest is not None and BACKENDS[backend].on_cpu:
        reason = why_not_in(backend, manifest.precision)
        if reason is None and manifest.quantization.mode == "dynamic":
            reason = BACKENDS[backend].why_no_dynamic_ranges
        if reason is None and manifest.target == Target.TENSORRT.value and not named:
            reason = "made for TensorRT; name it to run it on the CPU all the same"
        if reason is None and manifest.batch not in (None, batch):
            reason = f"its batch is fixed at {manifest.batch}"
    if reason is None and manifest is not None and takes == "engine":
        profiles = manifest.engine.shape_profiles
        if profiles and not any(p.min <= batch <= p.max for p in profiles):
            reason = f"its profiles take {', '.join(map(str, profiles))}"
    if reason is not None:
        return None, reason
    computes = manifest.model_key if manifest and manifest.weights else None
    request = SessionRequest(
        backend,
        artifact.path,
        threads=threads,
        device=device,
        precision=manifest.precision if manifest else None,
        cache=workspace.cache(backend),
        sha256=engine_sha256(artifact),
    )
    return BenchCase(request, artifact.path.name, _precision(artifact), batch, computes), None


def _why_not_loaded(engine: Artifact) -> str | None:
    try:
        check_engine(engine)
    except EngineError as err:
        return str(err)
    return None


def _precision(artifact: Artifact) -> str:
    return artifact.manifest.precision.value if artifact.manifest else "as stored"


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
        names = ("command", "comparison", "written")
        return self.report.to_dict() | {name: to_plain(getattr(self, name)) for name in names}


@command
def benchmark(
    artifacts: ArtifactFiles = (),
    *,
    backend: Annotated[
        str | Sequence[str],
        Opt("Repeatable.", several(choice(*BACKENDS)), metavar="NAME", recorded="backends"),
    ] = (),
    batch: Annotated[int | Sequence[int], Opt(kind=BATCHES, shown="1", recorded="batches")] = (1,),
    threads: Annotated[int | None, Opt("Default: the cores at hand.")] = None,
    device: Annotated[
        int | str | None, Opt("Of the GPU backends; eager runs there too.", DEVICE)
    ] = None,
    rounds: Annotated[
        int, Opt("Interleaved rounds; default 7, at least 5.", none=DEFAULT_ROUNDS)
    ] = DEFAULT_ROUNDS,
    report: Annotated[
        AnyPath | None,
        Opt(
            "Write a page about it.",
            ending(".html", ".htm"),
            Role.WRITES,
            metavar="FILE.html",
        ),
    ] = None,
    csv: Annotated[
        AnyPath | None,
        Opt("Write the figures.", ending(".csv"), Role.WRITES, metavar="FILE.csv"),
    ] = None,
    compare: Annotated[
        AnyPath | None,
        Opt(
            "Say what became faster or slower than what --json printed before.",
            role=Role.READS,
            metavar="OLD.json",
            recorded="older bench",
        ),
    ] = None,
    cuda_graphs: Annotated[
        str | CudaGraphs,
        Opt("Of engines and ort-cuda; both measures each twice.", shown="on"),
    ] = CudaGraphs.ON,
    baselines: Annotated[
        bool,
        Opt("Also torch.compile and plain exports of the reference; and each row's error."),
    ] = False,
    force: Force = False,
    trust: Trust = False,
    measured: Mapping[str, Any] | None = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> DocumentedBench:
    """Latency, throughput and memory against eager PyTorch: ``t2t-deploy bench``.

    artifacts: none is all of the workspace. report, csv: files to write. compare: what
    ``bench --json`` printed before. What cannot be compared or written is said before anything is
    measured. What cannot run here is a row that says why; a backend that was named and cannot is an
    error. measured: what `DocumentedBench.to_dict` gave before, to write about without measuring
    again. Raises ArtifactError, BackendError, ComparisonError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import benchmark
    >>> bench = benchmark([made.path], backend="ort-cpu", rounds=5)
    >>> [(row.backend, row.batch, row.status.value) for row in bench.report.results]
    [('ort-cpu', 1, 'ok')]
    """
    workspace = workspace_of(workspace)
    request = BenchRequest(
        artifacts=cast("tuple[Path, ...]", artifacts),
        backends=cast("tuple[str, ...]", backend),
        batches=cast("tuple[int, ...]", batch),
        threads=threads,
        device=cast("int | None", device),
        rounds=rounds,
        cuda_graphs=CudaGraphs(cuda_graphs),
        baselines=baselines,
        force=force,
        trust=trust,
    )
    outputs = BenchOutputs(
        *(None if path is None else Path(path) for path in (report, csv, compare))
    )
    old = _prepared(request, outputs)
    found = None if measured is None else _stored(measured)
    found = found or bench_artifacts(workspace, request, progress)
    return _documented(workspace, found, request, outputs, old, progress)


def _stored(measured: Mapping[str, Any]) -> BenchReport:
    try:
        return report_from_dict(measured)
    except ValueError as err:
        raise ComparisonError(
            f"the stored measurement is no result of this version's bench ({err}); measure again"
        ) from err


def _prepared(request: BenchRequest, outputs: BenchOutputs) -> BenchReport | None:
    """The older bench, once it is known that all files can be written."""
    for path in (outputs.page, outputs.table):
        if path is not None:
            make_folder(path.parent)
    return None if outputs.compare is None else _comparable(outputs.compare, request)


def _documented(
    workspace: Workspace,
    measured: BenchReport,
    request: BenchRequest,
    outputs: BenchOutputs,
    old: BenchReport | None,
    progress: Progress,
) -> DocumentedBench:
    comparison = None
    if old is not None:
        comparison = compare_reports(old, measured, name=str(outputs.compare))
        for note in comparison.notes:
            progress.note(f"not the same as then: {note}")
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
    workspace: Workspace, named: Sequence[Path] | None, measured: BenchReport
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
