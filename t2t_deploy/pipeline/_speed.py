"""Whether an 8-bit graph is faster than the float graph it was made from, here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from t2t_deploy.bench import MIN_ROUNDS, BenchCase, BenchStatus, run_bench, speedup_between
from t2t_deploy.pipeline._progress import Report
from t2t_deploy.runtime import SessionRequest, available_threads, why_not_runnable
from t2t_deploy.types import Precision, Status, Target
from t2t_deploy.workspace import Workspace

_BACKENDS = {
    Target.CPU: "ort-cpu",
    Target.PORTABLE: "ort-cpu",
    Target.OPENVINO: "openvino",
    Target.TENSORRT: "tensorrt-rtx",
}
_ROUND_SECONDS = 0.3


def speed_against_float(
    workspace: Workspace,
    quantized: Path,
    base: onnx.ModelProto,
    *,
    target: Target,
    precisions: tuple[Precision, Precision],
    batch: int,
    report: Report,
) -> dict[str, Any]:
    """Latency of a quantised file against its float base in the target's runtime, JSON-ready.

    precisions: of the file and of the base. ratio: how many times as fast as the base, with its
    95 % interval; not run where the runtime is not here, with the reason.
    """
    backend = _BACKENDS[target]
    reason = why_not_runnable(backend)
    if target is Target.TENSORRT and reason is None:
        reason = "an engine is timed by t2t-deploy bench once it is built"
    if reason is not None:
        return {"status": Status.NOT_RUN.value, "backend": backend, "reason": reason}
    report.step("timing it against its float base")
    threads = available_threads()
    with workspace.scratch() as folder:
        path = folder / "float.onnx"
        onnx.save(base, path)
        cases = [
            BenchCase(SessionRequest(backend, file, threads), file.name, precision.value, batch)
            for file, precision in zip((quantized, path), precisions, strict=True)
        ]
        results = run_bench(
            cases, rounds=MIN_ROUNDS, round_seconds=_ROUND_SECONDS, progress=report.progress
        ).results
    failed = [found.reason for found in results if found.status is not BenchStatus.OK]
    if failed:
        return {"status": Status.FAILED.value, "backend": backend, "reason": str(failed[0])}
    speedup = speedup_between(results[1], results[0])
    name = precisions[1].value
    verdict = f"faster than {name} here"
    if speedup.high < 1:
        verdict = f"slower than {name} here"
    elif speedup.low <= 1:
        verdict = f"not distinguishable from {name} here"
    return {
        "status": Status.PASSED.value,
        "backend": backend,
        "batch": batch,
        "threads": threads,
        "ratio": speedup.ratio,
        "low": speedup.low,
        "high": speedup.high,
        "unstable": any(found.unstable for found in results),
        "verdict": verdict,
        "reason": None,
    }
