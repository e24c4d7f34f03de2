"""Engines on this machine's GPU: built, checked, and timed against PyTorch on the same GPU.

    python tools/bench_gpu.py                  # variants 7, 14, t_14, 24 at batch 1, 8, 32
    python tools/bench_gpu.py --variants 7 --batches 1 --rounds 15

For each variant, seeded weights: an fp16 engine with one profile for each batch, built by the
builder that `build-trt` chooses, compared with the float32 reference on the CPU and then timed
beside ONNX Runtime on CUDA and on TensorRT, eager PyTorch, eager under autocast to fp16, and
torch.compile under the same; what replays CUDA graphs also without. One process each, interleaved
rounds. What cannot run is a row with its reason. Writes FOLDER/DEVICE.json, with every sample, and
FOLDER/DEVICE.md, anew after each batch: a run that is stopped keeps the batches before.
Exit status: 0; 1 where there is no device or nothing was measured; 3 where a check fell short.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from t2t_deploy._codec import to_plain
from t2t_deploy._files import file_sha256
from t2t_deploy.bench import (
    BenchCase,
    BenchReport,
    BenchStatus,
    CaseResult,
    run_bench,
)
from t2t_deploy.commands import build_engine, export_onnx
from t2t_deploy.commands._bench import NO_GRAPH
from t2t_deploy.engine import device_capability, device_name, why_no_device
from t2t_deploy.errors import DeployError
from t2t_deploy.model import VARIANTS
from t2t_deploy.runtime import (
    BACKENDS,
    SessionRequest,
    available_threads,
    open_session,
    why_not_runnable,
)
from t2t_deploy.types import TOLERANCES, Precision, ShapeProfile, Status, Target
from t2t_deploy.verify import standard_pictures, verify_session
from t2t_deploy.workspace import Artifact, Workspace

DEFAULT_VARIANTS = ("7", "14", "t_14", "24")
DEFAULT_BATCHES = (1, 8, 32)
PRECISION = Precision.FP16
TORCH_CASES = (("eager", None), ("eager", PRECISION), ("compile", PRECISION))


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a session answers as the reference does, and how far off it is."""

    variant: str
    backend: str
    status: Status
    rel_l2: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend and the file it is to run; without one, why there is none."""

    backend: str
    path: Path | None
    reason: str | None = None


def candidates(
    workspace: Workspace, graph: Artifact, batches: Sequence[int], device: int
) -> list[Candidate]:
    """The engine and the ONNX sessions, those that cannot run here with their reasons."""
    found = []
    try:
        profiles = tuple(ShapeProfile(batch, batch, batch) for batch in batches)
        engine = build_engine(
            artifact=graph.path, precision=PRECISION, profile=profiles, workspace=workspace
        )
        backend = str(engine.require_manifest().details["engine"]["backend"])
        found.append(Candidate(backend, engine.path, why_not_runnable(backend, device)))
    except DeployError as err:  # the other backends are measured all the same
        found.append(Candidate("tensorrt-rtx", None, str(err)))
    for backend in ("ort-cuda", "ort-tensorrt"):
        found.append(Candidate(backend, graph.path, why_not_runnable(backend, device)))
    return found


def checked(
    workspace: Workspace, graph: Artifact, candidate: Candidate, device: int
) -> tuple[Candidate, Check]:
    """The candidate compared with the reference on the standard pictures; one that errs says so."""
    variant, tolerance = graph.require_manifest().variant, TOLERANCES[PRECISION]
    if candidate.path is None or candidate.reason is not None:
        check = Check(variant, candidate.backend, Status.NOT_RUN, None, candidate.reason)
        return candidate, check
    reference = SessionRequest(
        "eager", workspace.weights(graph.require_manifest()), config=graph.require_manifest().config
    )
    pictures = standard_pictures(graph.require_manifest().config["image_size"])
    try:
        with (
            open_session(reference) as wanted,
            open_session(request_of(workspace, candidate, device)) as session,
        ):
            result = verify_session(wanted, session, pictures, tolerance)
    except DeployError as err:
        failed = Candidate(candidate.backend, None, str(err))
        return failed, Check(variant, candidate.backend, Status.FAILED, None, str(err))
    check = Check(variant, candidate.backend, result.status, result.rel_l2, result.reason)
    return candidate, check


def request_of(workspace: Workspace, candidate: Candidate, device: int) -> SessionRequest:
    """How the candidate is opened."""
    assert candidate.path is not None
    return SessionRequest(
        candidate.backend,
        candidate.path,
        threads=available_threads(),
        device=device,
        precision=PRECISION,
        cache=workspace.root / "cache" / candidate.backend,
        sha256=file_sha256(candidate.path),  # built or exported a moment ago
    )


def cases_of(
    workspace: Workspace, graph: Artifact, found: Sequence[Candidate], batch: int, device: int
) -> tuple[list[BenchCase], list[CaseResult]]:
    """What is timed at a batch, PyTorch first, and the rows of what cannot be."""
    manifest = graph.require_manifest()
    cases, rows = [], []
    for backend, autocast in TORCH_CASES:
        precision = (autocast or Precision.FP32).value
        reason = why_not_runnable(backend, device)
        if reason is not None:
            rows.append(_not_run(backend, manifest.variant, precision, batch, reason))
            continue
        request = SessionRequest(
            backend,
            workspace.weights(manifest),
            threads=available_threads(),
            config=manifest.config,
            device=device,
            precision=autocast,
        )
        cases.append(BenchCase(request, manifest.variant, precision, batch, manifest.variant))
    for candidate in found:
        if candidate.path is None or candidate.reason is not None:
            reason = candidate.reason or "it was not built"
            rows.append(
                _not_run(candidate.backend, manifest.variant, PRECISION.value, batch, reason)
            )
            continue
        request = request_of(workspace, candidate, device)
        cases.append(BenchCase(request, manifest.variant, PRECISION.value, batch, manifest.variant))
        if BACKENDS[candidate.backend].cuda_graphs:
            plain = replace(request, cuda_graph=False)
            shown = f"{manifest.variant}{NO_GRAPH}"
            cases.append(BenchCase(plain, shown, PRECISION.value, batch, manifest.variant))
    return cases, rows


def _not_run(backend: str, variant: str, precision: str, batch: int, reason: str) -> CaseResult:
    return CaseResult(backend, variant, precision, batch, BenchStatus.NOT_RUN, reason)


@dataclass(slots=True)
class Measured:
    """What has been measured so far; written after each batch, so that a stop loses one."""

    reports: list[BenchReport] = field(default_factory=list)
    rows: list[CaseResult] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def write(self, stem: Path, device: str, ordinal: int) -> None:
        """Both files: ``stem`` with ``.json`` and with ``.md``."""
        values = {
            "device": {"name": device, "capability": device_capability(ordinal)},
            "checks": to_plain(self.checks),
            "reports": [report.to_dict() for report in self.reports],
            "not_run": to_plain(self.rows),
        }
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".json").write_text(json.dumps(values, separators=(",", ":")) + "\n")
        text = markdown(device, self.reports, self.rows, self.checks)
        stem.with_suffix(".md").write_text(text)


def measure(workspace: Workspace, options: argparse.Namespace) -> Iterator[Measured]:
    """Everything that was asked for, a variant and a batch at a time."""
    so_far = Measured()
    for variant in options.variants:
        print(f"{variant}: exporting, building, checking", file=sys.stderr, flush=True)
        asked: dict[str, Any] = {
            "variant": variant,
            "precision": PRECISION,
            "target": Target.TENSORRT,
        }
        graph = export_onnx(**asked, workspace=workspace)
        found = []
        for candidate in candidates(workspace, graph, options.batches, options.device):
            candidate, check = checked(workspace, graph, candidate, options.device)
            found.append(candidate)
            so_far.checks.append(check)
        for batch in options.batches:
            print(f"{variant}: timing batch {batch}", file=sys.stderr, flush=True)
            cases, skipped = cases_of(workspace, graph, found, batch, options.device)
            so_far.rows += skipped
            if cases:
                so_far.reports.append(run_bench(cases, rounds=options.rounds))
            yield so_far


def markdown(
    device: str, reports: Sequence[BenchReport], rows: Iterable[CaseResult], checks: Sequence[Check]
) -> str:
    """The report as people read it."""
    lines = [f"# {device}", ""]
    if reports:
        environment = reports[0].environment
        versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
        lines += [f"{environment.date_utc}, {environment.platform}; {versions}.", ""]
    lines += [
        "T2T-ViT, seeded weights, 224 px. p50 is one call from arrays on the host to arrays on the "
        "host; kernels, copies in and copies out were timed apart.",
        "",
        "| variant | batch | backend | precision | p50 ms | kernels ms | in ms | out ms | images/s "
        "| vs eager fp32 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    measured = [result for report in reports for result in report.results]
    lines += [_row(result) for result in measured if result.status is BenchStatus.OK]
    lines += ["", "| variant | backend | check | relative error |", "|---|---|---|---|"]
    lines += [
        f"| {check.variant} | {check.backend} | {check.status.value.replace('_', ' ')} | "
        f"{'-' if check.rel_l2 is None else format(check.rel_l2, '.1e')} |"
        for check in checks
    ]
    left = [result for result in (*measured, *rows) if result.status is not BenchStatus.OK]
    if left:
        lines += ["", "Not measured:", ""]
        told = dict.fromkeys(
            f"- {row.backend} {row.precision}, {row.artifact}: {row.status.value.replace('_', ' ')}"
            f", {row.reason}"
            for row in left
        )
        lines += list(told)
    return "\n".join(lines) + "\n"


def _row(result: CaseResult) -> str:
    parts, speedup, latency = result.parts_ms, result.speedup_vs_eager, result.latency_ms
    assert latency is not None
    times = (
        ("-", "-", "-")
        if parts is None
        else tuple(f"{value:.3f}" for value in (parts.kernel_ms, parts.h2d_ms, parts.d2h_ms))
    )
    ratio = (
        "-" if speedup is None else f"{speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
    )
    p50 = f"{latency.p50:.3f}{', unstable' if result.unstable else ''}"
    cells = (
        *(result.artifact, result.batch, result.backend, result.precision),
        *(p50, *times, f"{result.images_per_s:.0f}", ratio),
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """Measure, write both files, say where they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT_VARIANTS)
    parser.add_argument("--batches", nargs="+", type=int, default=DEFAULT_BATCHES)
    parser.add_argument("--device", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workspace", type=Path, default=Path("build/bench-gpu/artifacts"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    unavailable = why_no_device(options.device)
    if unavailable is not None:
        print(f"error: nothing to bench on: {unavailable}", file=sys.stderr)
        return 1
    device = device_name(options.device) or f"cuda:{options.device}"
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    stem = options.output / name
    measured = Measured()
    for measured in measure(Workspace(options.workspace), options):
        measured.write(stem, device, options.device)
    print(stem.with_suffix(".md"))
    results = [result for report in measured.reports for result in report.results]
    if not any(result.status is BenchStatus.OK for result in results):
        return 1
    return 3 if any(check.status is Status.FAILED for check in measured.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
