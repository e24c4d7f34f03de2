"""Our files on this machine's GPU, timed beside what PyTorch has for it, with the error of each.

    python tools/bench_gpu.py                             # 14, 7, t_14 at batch 1, 8, 32, 128
    python tools/bench_gpu.py --variants 7 --batches 1 --rounds 15
    python tools/bench_gpu.py --dry-run                   # a tiny model on the CPU

Seeded weights. Ours: `export --target cuda` in fp16 on ONNX Runtime, with CUDA graphs; for the
first variant also without them, and the portable file; and engines, where their runtime can be had.
Peers: eager, eager under autocast to fp16, and under the same autocast torch.compile in three modes
and AOTInductor. One process each, interleaved rounds, CUDA graphs and page-locked copies for all
that can have them. The errors are of the sessions that are timed, against float64.

The most important comes first: the first variant at small batches, without and then with all that
is compiled; for the rest our file, eager, and torch.compile with CUDA graphs. FOLDER/DEVICE.json,
with every sample, and FOLDER/DEVICE.md are written after each stage. It ends after --minutes,
with the rounds that are complete; the next run goes on with the stages that are not.
Exit status: 0; 1 where there is no device or nothing was measured; 3 where an error is too large.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gpu_peers
from gpu_peers import AHEAD, MODES

from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256, write_text
from t2t_deploy._optional import installed_versions
from t2t_deploy._progress import silent
from t2t_deploy.bench import (
    MIN_ROUNDS,
    BenchCase,
    BenchReport,
    BenchStatus,
    CaseResult,
    report_from_dict,
    run_bench,
    speedup_between,
)
from t2t_deploy.commands import build_engine, export_onnx
from t2t_deploy.commands._baselines import with_reference_logits
from t2t_deploy.commands._bench import NO_GRAPH
from t2t_deploy.engine import device_capability, device_name, why_no_device
from t2t_deploy.errors import DeployError
from t2t_deploy.model import VARIANTS
from t2t_deploy.runtime import (
    BACKENDS,
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    SessionRequest,
    available_threads,
    backend_for,
    why_not_runnable,
)
from t2t_deploy.types import TOLERANCES, Precision, ShapeProfile, Target
from t2t_deploy.workspace import Artifact, Workspace

DEFAULT_VARIANTS: tuple[str, ...] = ("14", "7", "t_14")
DEFAULT_BATCHES: tuple[int, ...] = (1, 8, 32, 128)
SMALL_BATCH = 8
PRECISION = Precision.FP16
AUTOCAST = "eager, autocast"
QUICK = (REFERENCE_BACKEND, AUTOCAST)
SHORT = (REFERENCE_BACKEND, "compile-reduce-overhead")
ALL = (*QUICK, *MODES, AHEAD)
PORTABLE = ", target portable"
_PACKAGES = ("t2t-deploy", "torch", "onnxruntime-gpu", "onnxruntime")
_TINY = """tokens_type = "performer"
embed_dim = 64
depth = 2
num_heads = 2
mlp_ratio = 2.0
token_dim = 16
image_size = 32
num_classes = 10
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is timed side by side, in one bench. peers: of `ALL`; wide: our other rows too."""

    variant: str
    batches: tuple[int, ...]
    peers: tuple[str, ...]
    wide: bool = False


def stages(variants: Sequence[str], batches: Sequence[int]) -> list[Stage]:
    """All there is to do, the most important first."""
    small = tuple(batch for batch in batches if batch <= SMALL_BATCH)
    first, *others = variants
    found = [Stage(first, small, QUICK), Stage(first, small, ALL, wide=True)]
    found += [Stage(variant, small, SHORT) for variant in others]
    found += [
        Stage(variant, (batch,), SHORT)
        for batch in batches
        if batch > SMALL_BATCH
        for variant in variants
    ]
    return [stage for stage in found if stage.batches]


@dataclass(slots=True)
class Maker:
    """Files of a variant and the cases over them. device: None is the CPU, for a dry run."""

    workspace: Workspace
    device: int | None
    config: Path | None = None

    @property
    def _threads(self) -> int:
        """One in a dry run, whose machine may have other work."""
        return 1 if self.device is None else available_threads()

    def exported(self, variant: str, target: Target) -> Artifact:
        """A graph of seeded weights, made unless it is there."""
        path = self.workspace.root / f"{variant}-{target.value}.onnx"
        if path.is_file():
            return self.workspace.open(path)
        model: dict[str, Any] = {"config": self.config} if self.config else {"variant": variant}
        return export_onnx(
            **model, precision=PRECISION, target=target, output=path, workspace=self.workspace
        )

    def cases(self, stage: Stage) -> tuple[list[BenchCase], list[CaseResult]]:
        """What is timed, and the rows of what cannot be."""
        graph = self.exported(stage.variant, Target.CUDA)
        files = [self._file(graph, stage.variant)]
        if stage.wide:
            plain = self.exported(stage.variant, Target.PORTABLE)
            files.append(self._file(plain, stage.variant + PORTABLE))
            files += self._engines(stage)
            if BACKENDS[files[0][0].backend].cuda_graphs:
                files.append((replace(files[0][0], cuda_graph=False), stage.variant + NO_GRAPH))
        manifest = graph.require_manifest()
        weights, config = self.workspace.weights(manifest), manifest.config
        for peer in stage.peers:
            request = SessionRequest(
                REFERENCE_BACKEND if peer in QUICK else peer,
                weights,
                threads=self._threads,
                config=config,
                device=self.device,
                precision=None if peer == REFERENCE_BACKEND else PRECISION,
                cache=self._cache("inductor"),
            )
            files.append((request, stage.variant))
        cases, rows = [], []
        for batch in stage.batches:
            for request, name in files:
                kind = (request.precision or Precision.FP32).value
                case = BenchCase(request, name, kind, batch, stage.variant)
                known = request.backend if request.backend in BACKENDS else "compile"
                reason = why_not_runnable(known, self.device)
                if reason is None:
                    cases.append(case)
                else:
                    rows.append(case.result(BenchStatus.NOT_RUN, reason))
        reference = SessionRequest(REFERENCE_BACKEND, weights, config=config)
        models = {stage.variant: reference}
        return with_reference_logits(cases, models, seed=0, progress=silent), rows

    def _cache(self, name: str) -> Path:
        folder = self.workspace.root.absolute() / "cache" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _file(self, artifact: Artifact, name: str, backend: str = "") -> tuple[SessionRequest, str]:
        backend = backend or backend_for(Target.CUDA)
        request = SessionRequest(
            DEFAULT_BACKEND if self.device is None else backend,
            artifact.path,
            threads=self._threads,
            device=self.device,
            precision=PRECISION,
            cache=self._cache(backend),
            sha256=file_sha256(artifact.path),  # built or exported a moment ago
        )
        return request, name

    def _engines(self, stage: Stage) -> list[tuple[SessionRequest, str]]:
        """What TensorRT runs, in its own libraries and in ONNX Runtime; nothing without them."""
        found = []
        runnable = [
            name
            for name in ("ort-tensorrt", "tensorrt-rtx", "tensorrt")
            if self.device is not None and why_not_runnable(name, self.device) is None
        ]
        if runnable:
            graph = self.exported(stage.variant, Target.TENSORRT)
            profiles = tuple(ShapeProfile(batch, batch, batch) for batch in stage.batches)
            if "ort-tensorrt" in runnable:
                found.append(self._file(graph, stage.variant, runnable.pop(0)))
            if runnable:
                engine = build_engine(
                    graph.path, precision=PRECISION, profile=profiles, workspace=self.workspace
                )
                backend = str(engine.require_manifest().engine.backend)
                found.append(self._file(engine, stage.variant, backend))
        return found


@dataclass(slots=True)
class Measured:
    """What has been measured so far, by stage."""

    device: dict[str, Any]
    versions: dict[str, str]
    done: dict[str, BenchReport] = field(default_factory=dict)

    def resume(self, path: Path) -> None:
        """Take over what an earlier run on the same device with the same versions completed."""
        if not path.is_file():
            return
        kept = json.loads(path.read_text())
        if (kept["device"], kept.get("versions")) == (self.device, self.versions):
            for key, values in zip(kept["stages"], kept["reports"], strict=True):
                report = report_from_dict(values)
                if report.cut_short is None:
                    self.done[key] = report

    def write(self, stem: Path) -> None:
        """Both files: ``stem`` with ``.json`` and with ``.md``."""
        values = {
            "device": self.device,
            "versions": self.versions,
            "stages": [*self.done],
            "reports": [report.to_dict() for report in self.done.values()],
        }
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_text(stem.with_suffix(".json"), json.dumps(values, separators=(",", ":")) + "\n")
        write_text(stem.with_suffix(".md"), self.markdown())

    def rows(self) -> dict[Any, tuple[CaseResult, str]]:
        """Each row, of the latest stage that has it, with ours against the fastest peer."""
        found: dict[Any, tuple[CaseResult, str]] = {}
        for report in self.done.values():
            for row in report.results:
                peers = [
                    one
                    for one in report.results
                    if one.batch == row.batch and not is_ours(one) and is_right(one)
                ]
                ratio = "-"
                if peers and is_ours(row) and len(row.rounds) >= MIN_ROUNDS:
                    base = min(peers, key=lambda one: one.latency_ms.p50 if one.latency_ms else 0)
                    ratio = f"{speedup_between(base, row)}, {base.backend}"
                found[row.key] = row, ratio
        return found

    def markdown(self) -> str:
        """The report as people read it."""
        lines = [f"# {self.device['name']}", ""]
        for report in [*self.done.values()][:1]:
            where = report.environment
            versions = ", ".join(f"{name} {text}" for name, text in where.versions.items())
            lines += [f"{where.date_utc}, {where.platform}; {versions}.", ""]
        lines += [
            "T2T-ViT, seeded weights. p50 is one call from arrays on the host to arrays on the "
            "host; kernels, copies in and copies out were timed apart. The error is the first "
            "picture's, of the session that was timed, against float64.",
            "",
            "| variant | batch | backend | precision | p50 ms | kernels ms | in ms | out ms "
            "| images/s | error | vs eager fp32 | vs the fastest peer |",
            "|---" * 12 + "|",
        ]
        rows = self.rows().values()
        lines += [_line(row, ratio) for row, ratio in rows if row.latency_ms is not None]
        left = [row for row, _ in rows if row.status is not BenchStatus.OK]
        if left:
            told = (
                f"- {row.backend} {row.precision}, {row.artifact}, batch {row.batch}: "
                f"{row.status.value.replace('_', ' ')}, {row.reason}"
                for row in left
            )
            lines += ["", "Not measured:", "", *dict.fromkeys(told)]
        return "\n".join(lines) + "\n"


def is_ours(row: CaseResult) -> bool:
    """Whether it is of a file of ours."""
    return row.backend in BACKENDS and BACKENDS[row.backend].takes != "weights"


def is_right(row: CaseResult) -> bool:
    """Whether it was measured, and its logits are near enough."""
    if row.latency_ms is None or row.status is not BenchStatus.OK:
        return False
    return row.rel_l2 is not None and row.rel_l2 <= TOLERANCES[Precision(row.precision)].rel_l2


def _line(row: CaseResult, ratio: str) -> str:
    parts, latency = row.parts_ms, row.latency_ms
    assert latency is not None
    times: tuple[str, ...] = ("-",) * 3
    if parts is not None:
        times = tuple(f"{ms:.3f}" for ms in (parts.kernel_ms, parts.h2d_ms, parts.d2h_ms))
    cells = (
        *(row.artifact, row.batch, row.backend, row.precision),
        f"{latency.p50:.3f}{', unstable' if row.unstable else ''}",
        *(*times, f"{row.images_per_s:.0f}"),
        "not finite" if row.rel_l2 is None else f"{row.rel_l2:.1e}",
        *(row.speedup_vs_eager or "-", ratio),
    )
    return f"| {' | '.join(map(str, cells))} |"


class OutOfTimeError(SystemExit):
    """The minutes are over."""


def measure(maker: Maker, measured: Measured, todo: Sequence[Stage], options: Any) -> Iterator[str]:
    """Each stage that is not done, by its name once it is measured, until the time is up.

    Raises DeployError where no case of a stage can run.
    """

    def out_of_time(*_: object) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, out_of_time)
    signal.setitimer(signal.ITIMER_REAL, options.minutes * 60)
    over: list[BaseException] = []
    try:
        for stage in todo:
            key = f"{stage.variant} at {', '.join(map(str, stage.batches))}: {len(stage.peers)}"
            if over or key in measured.done:
                continue
            _tell(f"{key} peers")
            cases, skipped = maker.cases(stage)
            report = run_bench(
                cases,
                rounds=options.rounds,
                round_seconds=options.round_seconds,
                stage=_tell,
                interrupted=over.append,
                worker_command=(sys.executable, gpu_peers.__file__),
                loads=available_threads(),
            )
            measured.done[key] = replace(report, results=(*report.results, *skipped))
            yield key
    except OutOfTimeError:
        over.append(OutOfTimeError())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if over:
        _tell(f"stopped after {options.minutes:g} minutes; run it again to go on")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write both files, say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT_VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=DEFAULT_BATCHES)
    parser.add_argument("--device", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--round-seconds", type=float, default=0.3)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--workspace", type=Path, default=Path("build/bench-gpu/artifacts"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU")
    options = parser.parse_args(arguments)
    config, device, name = None, options.device, "CPU, dry run"
    workspace = Workspace(options.workspace)
    if options.dry_run:
        device, options.rounds, options.round_seconds = None, MIN_ROUNDS, 0.01
        options.variants, options.batches = ("tiny",), (1, 16)
        options.output = workspace.root
        workspace.root.mkdir(parents=True, exist_ok=True)
        config = workspace.root / "tiny.toml"
        write_text(config, _TINY)
    else:
        unavailable = why_no_device(device)
        if unavailable is not None:
            _tell(f"error: nothing to bench on: {unavailable}")
            return 1
        name = device_name(device) or f"cuda:{device}"
    stem = options.output / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    capability = None if device is None else device_capability(device)
    shown = to_plain({"name": name, "capability": capability})
    measured = Measured(shown, installed_versions(*_PACKAGES))
    measured.resume(stem.with_suffix(".json"))
    todo = stages(options.variants, options.batches)
    try:
        for _ in measure(Maker(workspace, device, config), measured, todo, options):
            measured.write(stem)
    except DeployError as err:
        _tell(f"error: {err}")
        return 1
    print(stem.with_suffix(".md"))
    rows = [row for row, _ in measured.rows().values() if row.status is BenchStatus.OK]
    if not rows:
        return 1
    return 0 if all(is_right(row) for row in rows if is_ours(row)) else 3


if __name__ == "__main__":
    sys.exit(main())
