"""What one would use without this tool: the reference, exported as it is, in the same runtimes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy._optional import require
from t2t_deploy._progress import Progress
from t2t_deploy.bench import (
    BenchCase,
    BenchStatus,
    CaseResult,
    make_inputs,
    not_run_result,
    speedup_between,
)
from t2t_deploy.runtime import BACKENDS, SessionRequest, why_not_in, why_not_runnable
from t2t_deploy.types import INPUT_NAME, Precision, TensorSpec
from t2t_deploy.verify import float64_logits

if TYPE_CHECKING:
    from t2t_deploy.model import T2TViT

OPSET = 18  # what the default exporter writes by itself
# name in the report -> whether it is torch's default exporter
EXPORTERS = {"plain, TorchScript exporter": False, "plain, default exporter": True}
# where a plain export runs; OpenVINO rounds a float32 graph itself
_RUNS = tuple(
    (backend.name, precision)
    for backend in BACKENDS.values()
    if backend.on_cpu
    for precision in backend.float32_in
)
_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class BenchedModel:
    """A model of which artifacts are measured. key: as `BenchCase.model`."""

    key: str
    weights: Path
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Baselines:
    """The cases to measure, and rows of what failed before it could be, or cannot be here."""

    cases: tuple[BenchCase, ...]
    rows: tuple[CaseResult, ...]


def plain_baselines(
    model: BenchedModel,
    *,
    batch: int,
    threads: int,
    backends: Collection[str],
    folder: Path,
    progress: Progress,
) -> Baselines:
    """Export the reference as it is through both of torch's exporters, at a fixed batch.

    backends: those to run the files on, of which `ort-cpu` and `openvino` count. folder: for the
    files. An exporter that fails is a row with its error for each of them.
    """
    require("torch")
    from t2t_deploy.model import config_from_dict, load_reference

    reference = load_reference(model.weights, config_from_dict(model.config))
    cases: list[BenchCase] = []
    rows: list[CaseResult] = []
    for name, default in EXPORTERS.items():
        progress.step(f"exporting the reference as it is ({name}, batch {batch})")
        path = folder / f"{len(list(folder.iterdir()))}" / "plain.onnx"
        path.parent.mkdir()
        error = None
        try:
            plain_export(reference, path, batch=batch, dynamo=default)
        except Exception as err:  # whatever it is, a peer that fails is a row
            text = " ".join(str(err).split())[:_REASON_CHARS]
            error = f"not exported: {type(err).__name__}: {text}"
        for backend, precision in _RUNS:
            if backend not in backends:
                continue
            reason = why_not_runnable(backend) or why_not_in(backend, precision)
            if reason is not None:
                rows.append(
                    not_run_result(
                        backend=backend,
                        artifact=name,
                        precision=precision.value,
                        batch=batch,
                        reason=reason,
                    )
                )
            elif error is not None:
                failed = BenchStatus.FAILED
                rows.append(CaseResult(backend, name, precision.value, batch, failed, error))
            else:
                request = SessionRequest(backend, path, threads=threads, precision=precision)
                cases.append(BenchCase(request, name, precision.value, batch, model.key))
    return Baselines(tuple(cases), tuple(rows))


def plain_export(reference: T2TViT, path: Path, *, batch: int, dynamo: bool) -> None:
    """Write the reference, of which nothing is rewritten, at a fixed batch."""
    import torch

    size = reference.config.image_size
    picture = torch.zeros(batch, 3, size, size)
    with _quiet_exporter():
        torch.onnx.export(
            reference.eval(),
            (picture,),
            path,
            input_names=[INPUT_NAME],
            dynamo=dynamo,
            opset_version=OPSET,
        )


def with_wanted(
    cases: Sequence[BenchCase], models: Sequence[BenchedModel], *, seed: int, progress: Progress
) -> list[BenchCase]:
    """The cases with the float64 reference's logits of the first picture they are timed on."""
    known = {model.key: model for model in models}
    wanted: dict[tuple[str, int], tuple[float, ...]] = {}
    found = []
    for case in cases:
        if case.model is None or case.model not in known:
            found.append(case)
            continue
        place = (case.model, case.batch)
        if place not in wanted:
            progress.step(f"computing the reference in float64 (batch {case.batch})")
            wanted[place] = _wanted(known[case.model], case.batch, seed)
        found.append(dataclasses.replace(case, wanted=wanted[place]))
    return found


def with_speedup_vs_plain(
    cases: Sequence[BenchCase], results: Sequence[CaseResult]
) -> list[CaseResult]:
    """Results with their speed against the fastest plain export in the same runtime.

    results: of the cases, in their order. A plain export in the same precision is taken where there
    is one, else in float32.
    """
    paired = list(zip(cases, results, strict=True))

    def plain(case: BenchCase, precision: str) -> CaseResult | None:
        peers = [
            result
            for other, result in paired
            if other.artifact in EXPORTERS
            and result.latency_ms is not None
            and (other.backend, other.model, other.batch) == (case.backend, case.model, case.batch)
            and other.precision == precision
        ]
        return min(peers, key=_p50, default=None)

    found = []
    for case, result in paired:
        base = plain(case, case.precision) or plain(case, Precision.FP32.value)
        if base is None or case.artifact in EXPORTERS or result.status is not BenchStatus.OK:
            found.append(result)
        else:
            speedup = speedup_between(base, result)
            found.append(dataclasses.replace(result, speedup_vs_plain=speedup))
    return found


def _p50(result: CaseResult) -> float:
    assert result.latency_ms is not None
    return result.latency_ms.p50


def _wanted(model: BenchedModel, batch: int, seed: int) -> tuple[float, ...]:
    size = model.config["image_size"]
    taken = TensorSpec(INPUT_NAME, "float32", (None, 3, size, size))
    pictures = make_inputs((taken,), batch=batch, seed=seed)[INPUT_NAME]
    (logits,) = float64_logits(model.weights, model.config, pictures[:1])
    return tuple(float(value) for value in logits)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep what the exporters say of their own future, and of absent packages, off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
