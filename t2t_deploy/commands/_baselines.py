"""What one would use without this tool: the reference, exported as it is, in the same runtimes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2t_deploy._optional import require
from t2t_deploy._progress import Progress
from t2t_deploy.bench import (
    MIN_ROUNDS,
    BenchCase,
    BenchStatus,
    CaseResult,
    make_inputs,
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


def plain_baselines(
    models: Mapping[str, SessionRequest],
    batch: int,
    threads: int,
    backends: Collection[str],
    folder: Path,
    progress: Progress,
) -> Iterator[BenchCase | CaseResult]:
    """Export references as they are through both of torch's exporters, at a fixed batch.

    models: by `BenchCase.model`. backends: those to run the files on, of which `ort-cpu` and
    `openvino` count. folder: for the files. Gives cases to measure, and rows of what failed before
    it could be, or cannot be here.
    """
    require("torch")
    from t2t_deploy.model import config_from_dict, load_reference

    runs = [one for one in _RUNS if one[0] in backends]
    for model, request in models.items():
        reference = load_reference(request.path, config_from_dict(request.config or {}))
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
            for backend, precision in runs:
                row = (backend, name, precision.value, batch)
                reason = why_not_runnable(backend) or why_not_in(backend, precision)
                if reason is not None:
                    yield CaseResult(*row, BenchStatus.NOT_RUN, reason)
                elif error is not None:
                    yield CaseResult(*row, BenchStatus.FAILED, error)
                else:
                    plain = SessionRequest(backend, path, threads, precision=precision)
                    yield BenchCase(plain, *row[1:], model)


def plain_export(reference: T2TViT, path: Path, *, batch: int, dynamo: bool) -> None:
    """Write the reference, of which nothing is rewritten, at a fixed batch."""
    import torch

    picture = torch.zeros(batch, *reference.config.input_shape)
    with _quiet_exporter():
        torch.onnx.export(
            reference.eval(),
            (picture,),
            path,
            input_names=[INPUT_NAME],
            dynamo=dynamo,
            opset_version=OPSET,
        )


def with_reference_logits(
    cases: Sequence[BenchCase],
    models: Mapping[str, SessionRequest],
    *,
    seed: int,
    progress: Progress,
) -> list[BenchCase]:
    """The cases with the float64 reference's logits of the first picture they are timed on."""

    @functools.cache
    def logits(model: str, batch: int) -> tuple[tuple[float, ...], float]:
        progress.step(f"computing the reference in float64 (batch {batch})")
        from t2t_deploy.model import config_from_dict

        config = models[model].config or {}
        sizes = config_from_dict(config).input_shape
        taken = TensorSpec(INPUT_NAME, "float32", (None, *sizes))
        pictures = make_inputs((taken,), batch=batch, seed=seed)[INPUT_NAME]
        (found,), typical = float64_logits(models[model].path, config, pictures[:1])
        return tuple(float(value) for value in found), typical

    def with_logits(case: BenchCase) -> BenchCase:
        if case.model is None or case.model not in models:
            return case
        found, typical = logits(case.model, case.batch)
        return dataclasses.replace(case, reference_logits=found, typical_norm=typical)

    return [with_logits(case) for case in cases]


def with_speedup_vs_plain(
    cases: Sequence[BenchCase], results: Sequence[CaseResult]
) -> list[CaseResult]:
    """Results with their speed against the fastest plain export in the same runtime.

    results: of the cases, in their order. A plain export in the same precision is taken where there
    is one, else in float32.
    """
    fastest: dict[tuple[str, str | None, int, int, str], CaseResult] = {}
    plain = [
        (result.latency_ms.p50, case, result)
        for case, result in zip(cases, results, strict=True)
        if case.artifact in EXPORTERS and result.latency_ms is not None
        # a bench that is cut short has too few rounds for an interval
        if result.status is BenchStatus.OK and len(result.rounds) >= MIN_ROUNDS
    ]
    for _, case, result in sorted(plain, key=lambda one: one[0]):
        fastest.setdefault((*_kind(case), case.precision), result)
    found = []
    for case, result in zip(cases, results, strict=True):
        same = _kind(case)
        base = fastest.get((*same, case.precision)) or fastest.get((*same, Precision.FP32.value))
        if base is not None and case.artifact not in EXPORTERS and result.status is BenchStatus.OK:
            speedup = speedup_between(base, result)
            result = dataclasses.replace(result, speedup_vs_plain=speedup)
        found.append(result)
    return found


def _kind(case: BenchCase) -> tuple[str, str | None, int, int]:
    """What is the same of cases that are compared."""
    return (case.backend, case.model, case.batch, case.request.streams)


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
