"""Which artifacts run on which backends, side by side with eager."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._codec import to_plain
from t2t_deploy._files import write_text
from t2t_deploy._options import (
    BATCHES,
    DEVICE,
    AnyPath,
    Opt,
    Role,
    choice,
    command,
    command_words,
    ending,
    several,
    whole,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy._untrusted import MAX_BENCH_BYTES, first_line, json_from_file
from t2t_deploy.bench import (
    DEFAULT_ROUND_SECONDS,
    DEFAULT_ROUNDS,
    MIN_ROUNDS,
    BenchCase,
    BenchReport,
    BenchStatus,
    CaseResult,
    Comparison,
    Verdict,
    bench_csv,
    check_comparable,
    compare_reports,
    read_environment,
    report_from_dict,
    run_bench,
    visible_gpus,
)
from t2t_deploy.commands._artifacts import (
    ArtifactFiles,
    Cause,
    Force,
    NotRun,
    Trust,
    are_named,
    check_engine,
    nothing_judged,
    session_request,
    usable_artifacts,
    why_not_run,
    workspace_of,
)
from t2t_deploy.commands._baselines import (
    EXPORTERS,
    plain_baselines,
    with_reference_logits,
    with_speedup_vs_plain,
)
from t2t_deploy.errors import ComparisonError, EngineError, UnavailableError, UsageError
from t2t_deploy.report import BenchDocument, bench_page
from t2t_deploy.runtime import (
    BACKENDS,
    REFERENCE_BACKEND,
    SessionRequest,
    available_threads,
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
# not timed on a CPU unless it is named
_ELSEWHERE = {
    Target.TENSORRT.value: "TensorRT",
    Target.CUDA.value: "CUDA",
    Target.NCNN.value: "ncnn",
}
_STREAMS_ON_GPU = "streams share the threads of a CPU; measure it with --streams 1"
# What all turns of one bench may take together, so that a full workspace ends in time too.
_TOTAL_SECONDS = 100.0


class CudaGraphs(str, Enum):
    """Whether engines replay a batch as one CUDA graph."""

    ON = "on"
    OFF = "off"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and how it is opened.

    backends: none is each that runs here. named: whether the artifacts were named one by one.
    baselines: also what one would use without this tool, and each row's error.
    """

    workspace: Workspace
    threads: int
    backends: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    streams: tuple[int, ...] = (1,)
    device: int | None = None  # cuda:0 for backends that need one, the CPU for eager
    named: bool = False
    cuda_graphs: CudaGraphs = CudaGraphs.ON
    baselines: bool = False

    def measure(
        self,
        artifacts: Sequence[Artifact],
        rounds: int,
        progress: Progress,
        interrupted: Callable[[BaseException], None],
    ) -> BenchReport:
        """Measure artifacts against the eager reference of their own weights.

        What cannot run here becomes a row that says why. Raises UnavailableError, MisfitError where
        no artifact can be measured, unless the reference alone was asked for.
        interrupted: as of `run_bench`.
        """
        cases, skipped, why = self._cases(artifacts)
        if not any(self._wanted(case.backend) for case in cases):
            raise nothing_judged("measured", why)
        with self.workspace.scratch() as folder:
            if self.baselines:
                models = self._models(artifacts)
                backends = self.backends or tuple(BACKENDS)
                for batch in self.batches:
                    plain = plain_baselines(models, batch, self.threads, backends, folder, progress)
                    _sort((way for one in plain for way in self._streamed(one)), cases, skipped)
                cases = with_reference_logits(cases, models, seed=_SEED, progress=progress)
            turns = len(cases) * max(rounds, 1)
            measured = run_bench(
                cases,
                rounds=rounds,
                round_seconds=min(DEFAULT_ROUND_SECONDS, _TOTAL_SECONDS / turns),
                seed=_SEED,
                progress=progress.progress,
                # a terminal has the bar
                stage=None if sys.stderr.isatty() else progress.step,
                interrupted=interrupted,
            )
        results = measured.results
        if self.baselines:
            results = tuple(with_speedup_vs_plain(cases, results))
        return dataclasses.replace(measured, results=(*results, *skipped))

    def _wanted(self, backend: str) -> bool:
        """Whether a bench is about what a backend runs, not about the reference beside it."""
        takes = {name: BACKENDS[name].takes for name in self.backends or BACKENDS}
        return takes[backend] != "weights" or set(takes.values()) == {"weights"}

    def _cases(
        self, artifacts: Sequence[Artifact]
    ) -> tuple[list[BenchCase], list[CaseResult], list[NotRun]]:
        """What to measure, each once, the rows of what cannot be, and why artifacts cannot."""
        cases: list[BenchCase] = []
        skipped: list[CaseResult] = []
        why: list[NotRun] = []
        for batch in self.batches:
            for artifact in artifacts:
                for backend in self.backends or BACKENDS:
                    found = self.case(artifact, backend, batch)
                    if isinstance(found, BenchCase):
                        ways = [w for way in self._graph_ways(found) for w in self._streamed(way)]
                        _sort(ways, cases, skipped)
                    elif found is not None:
                        row = (backend, artifact.path.name, _precision(artifact), batch)
                        missed = CaseResult(*row, BenchStatus.NOT_RUN, found.reason)
                        _sort(self._streamed(missed), cases, skipped)
                        why += [found] if self._wanted(backend) else []
        if not self.backends:  # those that no artifact was made for get a row too
            known = {case.backend for case in cases} | {row.backend for row in skipped}
            reasons = {b: why_not_runnable(b, self.device) for b in BACKENDS if b not in known}
            rows = [
                CaseResult(backend, None, _ANY_PRECISION, batch, BenchStatus.NOT_RUN, reason)
                for batch in self.batches
                for backend, reason in reasons.items()
                if reason is not None
            ]
            _sort((way for row in rows for way in self._streamed(row)), cases, skipped)
        return cases, skipped, why

    def _graph_ways(self, case: BenchCase) -> list[BenchCase]:
        """With and without CUDA graphs, as asked; of a backend without them as it is."""
        if not BACKENDS[case.backend].cuda_graphs:
            return [case]
        request = dataclasses.replace(case.request, cuda_graph=False)
        plain = dataclasses.replace(case, request=request, artifact=f"{case.artifact}{NO_GRAPH}")
        ways = {CudaGraphs.ON: [case], CudaGraphs.OFF: [plain]}
        return ways.get(self.cuda_graphs, [case, plain])

    def _streamed(self, one: BenchCase | CaseResult) -> Iterator[BenchCase | CaseResult]:
        """A case, or the row of one, with each number of streams."""
        for streams in self.streams:
            if isinstance(one, CaseResult):
                yield dataclasses.replace(one, streams=streams)
                continue
            request = dataclasses.replace(one.request, streams=streams)
            case = dataclasses.replace(one, request=request)
            on_gpu = BACKENDS[one.backend].needs_gpu or request.device is not None
            runs = streams == 1 or not on_gpu
            yield case if runs else case.result(BenchStatus.NOT_RUN, _STREAMS_ON_GPU)

    def _models(self, artifacts: Sequence[Artifact]) -> dict[str, SessionRequest]:
        """The references of the artifacts whose weights are known, by `BenchCase.model`."""
        manifests = [artifact.manifest for artifact in artifacts]
        known = {one.model_key: one for one in manifests if one is not None and one.weights}
        return {
            key: SessionRequest(REFERENCE_BACKEND, self.workspace.weights(one), config=one.config)
            for key, one in known.items()
        }

    def case(self, artifact: Artifact, backend: str, batch: int) -> BenchCase | NotRun | None:
        """An artifact on a backend, or why it is not measured; None where it is moot."""
        takes, manifest = BACKENDS[backend].takes, artifact.manifest
        of_weights = takes == "weights" and manifest is not None and manifest.weights
        if takes != artifact.kind and not of_weights:
            return None
        if manifest is not None and takes == "engine" and backend != manifest.engine.backend:
            return None
        reason = why_not_run(artifact, backend, self.device)
        if reason is not None:
            return NotRun(Cause.NO_TOOL, reason)
        why_not = self._why_not(artifact, backend, batch)
        if why_not is not None:
            return why_not
        name, precision = artifact.path.name, _precision(artifact)
        request = session_request(self.workspace, artifact, backend, self.threads, self.device)
        if manifest is not None and takes == "weights":
            name, precision = manifest.reference_name, Precision.FP32.value
            # PyTorch's cache is one of the process, and a worker is ours
            request = dataclasses.replace(request, cache=self.workspace.cache(backend))
        model = manifest.model_key if manifest is not None and manifest.weights else None
        return BenchCase(request, name, precision, batch, model)

    def _why_not(self, artifact: Artifact, name: str, batch: int) -> NotRun | None:
        """Why an artifact is not measured on a backend that could run it, or None."""
        no_tool = functools.partial(NotRun, Cause.NO_TOOL)
        misfit = functools.partial(NotRun, Cause.MISFIT)
        backend, manifest = BACKENDS[name], artifact.manifest
        if backend.takes == "weights":
            fast = not backend.compiles or self.device is not None
            return None if fast or self.baselines or self.backends else misfit(_SLOW_COMPILE)
        if backend.takes == "engine" and not self.named:
            try:
                check_engine(artifact)
            except EngineError as err:
                return no_tool(str(err))
        if manifest is None:
            return None
        if backend.takes == "engine":
            profiles = manifest.engine.shape_profiles
            fits = not profiles or any(one.min <= batch <= one.max for one in profiles)
            return None if fits else misfit(f"its profiles take {', '.join(map(str, profiles))}")
        if not backend.on_cpu:
            return None
        if manifest.batch not in (None, batch):
            return misfit(
                f"its batch is fixed at {manifest.batch}: measure that, or export with batch "
                "dynamic"
            )
        made_for = _ELSEWHERE.get(manifest.target)
        if made_for is not None and not self.named:
            # without backends that were named, its own one is what is lacking
            why = misfit if self.backends else no_tool
            return why(f"made for {made_for}; name it to run it on the CPU all the same")
        return None


def _precision(artifact: Artifact) -> str:
    return "as stored" if artifact.manifest is None else artifact.manifest.precision.value


def _sort(
    found: Iterable[BenchCase | CaseResult], cases: list[BenchCase], rows: list[CaseResult]
) -> None:
    """Add cases, each once, and rows to their lists."""
    for one in found:
        if isinstance(one, CaseResult):
            rows.append(one)
        elif one not in cases:
            cases.append(one)


@dataclass(frozen=True, slots=True)
class DocumentedBench:
    """A bench, how to repeat it, how it compares, and which files were written."""

    report: BenchReport
    command: str
    comparison: Comparison | None
    written: tuple[Path, ...]

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The rows of cases that failed."""
        return tuple(row for row in self.report.results if row.status is BenchStatus.FAILED)

    @property
    def failure(self) -> str | None:
        """Why it does not count as done: cases that failed, nothing measured, nothing compared."""
        if self.failed:
            rows_failed = (f"{row.backend} {row.artifact}: {row.reason}" for row in self.failed)
            return f"failed: {'; '.join(rows_failed)}"
        rows = [row for row in self.report.results if _of_artifact(row.backend, row.artifact)]
        if rows and not any(row.status is BenchStatus.OK for row in rows):
            reasons = dict.fromkeys(str(row.reason) for row in rows)
            return f"no artifact was measured: {'; '.join(reasons)}"
        if self.comparison is None:
            return None
        cases = [
            case
            for case in self.comparison.cases
            if not rows or _of_artifact(case.backend, case.artifact)
        ]
        if any(case.verdict is not Verdict.NOT_COMPARED for case in cases):
            return None
        apart = dict.fromkeys(f"{case.backend} {case.artifact}: {case.reason}" for case in cases)
        return (
            f"nothing was compared with {self.comparison.old}; name a bench of the same artifacts, "
            f"backends, batches and streams ({'; '.join(apart) or 'neither measured an artifact'})"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with the field names of the command-line contract."""
        names = ("command", "comparison", "written")
        return self.report.to_dict() | {name: to_plain(getattr(self, name)) for name in names}


def _of_artifact(backend: str, artifact: str | None) -> bool:
    """Whether a row is of an artifact, not of the reference or of what else it is compared with."""
    runs_weights = backend in BACKENDS and BACKENDS[backend].takes == "weights"
    return not runs_weights and artifact not in (None, *EXPORTERS)


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
    streams: Annotated[
        int | Sequence[int],
        Opt(
            "Callers at once, which share the threads.",
            BATCHES,
            shown="1",
            recorded="streams",
            later=True,
        ),
    ] = (1,),
    device: Annotated[
        int | str | None, Opt("Of the GPU backends; eager runs there too.", DEVICE)
    ] = None,
    rounds: Annotated[
        int,
        Opt("Interleaved rounds; default 7, at least 5.", whole(MIN_ROUNDS), none=DEFAULT_ROUNDS),
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
    measured. streams: how many callers compute batches of their own at once; each has its share of
    the threads. What cannot run here is a row that says why; a backend that was named and cannot is
    an error, and so is a bench in which no artifact can be measured. What becomes clear later is in
    `DocumentedBench.failure`. measured: what `DocumentedBench.to_dict` gave before, to write about
    without measuring again. Interrupted after a complete round, the KeyboardInterrupt (or
    SystemExit) has the bench of the complete rounds as its ``partial``, and the files are written.
    Raises ArtifactError, BackendError, MisfitError, ComparisonError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import benchmark
    >>> bench = benchmark([made.path], backend="ort-cpu", rounds=5)
    >>> [(row.backend, row.batch, row.status.value) for row in bench.report.results]
    [('ort-cpu', 1, 'ok')]
    """
    given = dict(locals())  # as asked
    workspace = workspace_of(workspace)
    paths = cast("tuple[Path, ...]", artifacts)
    bench = Bench(
        workspace,
        threads or available_threads(),
        tuple(backend),
        cast("tuple[int, ...]", batch),
        cast("tuple[int, ...]", streams),
        cast("int | None", device),
        are_named(paths),
        CudaGraphs(cuda_graphs),
        baselines,
    )
    old = None
    if compare is not None:  # of this machine and these settings, or refused before any work
        old = read_report(Path(compare))
        now = read_environment(threads=[bench.threads], load_before=None, gpus=visible_gpus())
        check_comparable(old, now, devices=(bench.device,), name=str(Path(compare)))
    interruptions: list[BaseException] = []
    if measured is not None:
        found = _stored(measured)
    else:
        check_streams(bench.streams, bench.threads)
        for name in bench.backends:
            reason = why_not_runnable(name, bench.device)
            if reason is not None:
                raise UnavailableError(f"backend {name} cannot run here: {reason}")
        usable = usable_artifacts(
            workspace, paths, force=force, purpose="bench", progress=progress, trust=trust
        )
        found = bench.measure(usable, rounds, progress, interruptions.append)
    comparison = None
    if old is not None:
        comparison = compare_reports(old, found, name=str(compare))
        for note in comparison.notes:
            progress.note(f"not the same as then: {note}")
    # what may vary from one machine or version to the next is spelled out
    given |= {"threads": bench.threads}
    words = command_words(benchmark, given, spelled=("batch", "rounds"))
    command = shlex.join(["t2t-deploy", "bench", "--workspace", str(workspace.root), *words])
    written = []
    if csv is not None:
        write_text(Path(csv), bench_csv(found), kept=True)
        written.append(Path(csv))
    if report is not None:
        document = BenchDocument(found, command, _manifests(workspace, paths, found), comparison)
        write_text(Path(report), bench_page(document), kept=True)
        written.append(Path(report))
    done = DocumentedBench(found, command, comparison, tuple(written))
    for interruption in interruptions:
        interruption.partial = done  # type: ignore[attr-defined]  # for who shows it
        raise interruption
    return done


def check_streams(streams: Sequence[int], threads: int) -> None:
    """Raise UsageError for more streams than threads."""
    most = max(streams)
    if most > threads:
        raise UsageError(
            f"streams is {most}, threads {threads}; each stream takes a thread at least: ask for "
            f"{threads} or fewer, or for {most} threads"
        )


def _stored(measured: Mapping[str, Any]) -> BenchReport:
    try:
        return report_from_dict(measured)
    except ValueError as err:
        raise ComparisonError(
            f"the stored measurement is no result of this version's bench ({err}); measure again"
        ) from err


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
