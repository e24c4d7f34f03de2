"""Every sensible combination of strategies side by side; nothing of it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, cast

import numpy as np

from t2t_deploy._files import temporary_folder
from t2t_deploy._optional import is_installed, require
from t2t_deploy._options import AnyPath, command
from t2t_deploy._progress import Progress, silent
from t2t_deploy.bench import (
    DEFAULT_ROUND_SECONDS,
    MIN_ROUNDS,
    BenchCase,
    BenchStatus,
    CaseResult,
    run_bench,
)
from t2t_deploy.commands._artifacts import workspace_of
from t2t_deploy.commands._export import (
    Batch,
    CheckpointFile,
    Classes,
    ConfigFile,
    FloatPrecision,
    GraphForm,
    GraphTarget,
    ImageSize,
    Opset,
    Performer,
    SoftSplit,
    Variant,
    load_model,
)
from t2t_deploy.commands._strategy_grid import (
    ENGINE_SM,
    RUNTIME,
    ComparedStrategies,
    EngineSummary,
    StrategyComparison,
    strategies_to_compare,
    strategy_name,
)
from t2t_deploy.engine import BuildOptions, build_engine
from t2t_deploy.errors import DeployError, MissingDependencyError, counted
from t2t_deploy.export import choose_strategies
from t2t_deploy.runtime import (
    BACKENDS,
    REFERENCE_BACKEND,
    SessionRequest,
    available_threads,
    backend_for,
    open_session,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.types import TOLERANCES, Precision, ShapeProfile, Target
from t2t_deploy.verify import (
    NodewiseSession,
    PictureSet,
    compare_logits,
    flat_pictures,
    logits_of,
    standard_pictures,
)
from t2t_deploy.workspace import Workspace

if TYPE_CHECKING:
    from t2t_deploy.model import T2TViT

    pass

# Measuring gets what exporting and building leave of this, so that a comparison stays one a person
# waits for.
_TOTAL_SECONDS = 170.0
_REFERENCE_BATCH = 4  # pictures at once in float64: half the time of one by one
# Node by node a picture takes seconds: fixed noise and a photograph, black and cream.
_NODEWISE_STANDARD = ("noise 0", "china")
_NODEWISE_FLAT = ("black", "cream")
# What one combination may raise while the others go on; torch's exporter and ONNX Runtime raise
# RuntimeError, a full disk OSError.
_FAILURES = (DeployError, RuntimeError, OSError)


@command
def compare_exports(
    *,
    variant: Variant = None,
    config: ConfigFile = None,
    checkpoint: CheckpointFile = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    batch: Batch = "dynamic",
    precision: FloatPrecision = Precision.FP32,
    target: GraphTarget = Target.PORTABLE,
    soft_split: SoftSplit = None,
    performer: Performer = None,
    opset: Opset = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> StrategyComparison:
    """What every combination of strategies costs and loses: ``t2t-deploy export --compare``.

    Nothing is kept: all files lie in a temporary folder that is gone at the end, in the workspace
    where that can be written. A combination that fails is a row with its reason. Strategies that
    are given and differ from the target's are one more row. Raises as `export_onnx`.
    """
    form = GraphForm(
        cast("int | None", batch),
        Precision(precision),
        Target(target),
        soft_split,
        performer,
        opset,
    )
    started_s = monotonic()
    default = choose_strategies(form.target)
    asked = form.strategies()
    require("torch")
    from t2t_deploy.model import TokensType, reference_from_state_dict, save_weights

    model = load_model(form, variant, config, checkpoint, num_classes, image_size, progress)
    dims, state_dict = model.config, model.state_dict
    performers = dims.tokens_type is TokensType.PERFORMER
    if not performers:  # its form makes no difference then
        asked = dataclasses.replace(asked, performer=default.performer)
    combinations = strategies_to_compare(default, performer=performers)
    if asked not in combinations:
        combinations = (*combinations, asked)
    with temporary_folder(workspace_of(workspace).root) as scratch:
        weights = scratch / "weights.safetensors"
        save_weights(state_dict, weights)
        progress.step("computing the reference in float64")
        # a model of its own: the deploy form shares the float32 weights of the other
        reference_logits = _reference_logits(
            reference_from_state_dict(state_dict, dims), form.precision
        )
        reference = reference_from_state_dict(state_dict, dims)
        rows = []
        files = []
        for index, strategies in enumerate(combinations, start=1):
            name = strategy_name(strategies, performer=performers)
            progress.step(f"exporting {name} ({index} of {len(combinations)})")
            files.append(scratch / f"{index}.onnx")
            row = ComparedStrategies(name, strategies, default=strategies == default)
            rows.append(_examined(row, reference, form, reference_logits, files[-1], progress))
        left_s = _TOTAL_SECONDS - (monotonic() - started_s)
        eager = SessionRequest(REFERENCE_BACKEND, weights, available_threads(), dims.to_dict())
        rows = with_latencies(rows, files, eager, form, left_s, progress)
    return StrategyComparison(
        variant=dims.name,
        precision=form.precision,
        target=form.target,
        batch=form.batch or 1,
        token_attention=dims.tokens_type.value,
        rows=tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class _ReferenceLogits:
    """Pictures, and the reference's logits of them in float64."""

    standard: PictureSet
    standard_logits: np.ndarray
    flat: PictureSet
    flat_logits: np.ndarray


def _reference_logits(model: T2TViT, precision: Precision) -> _ReferenceLogits:
    import torch

    size = model.config.image_size
    standard, flat = standard_pictures(size), flat_pictures(size)
    if precision is Precision.BF16:
        standard, flat = _only(standard, _NODEWISE_STANDARD), _only(flat, _NODEWISE_FLAT)
    exact = model.double()

    def logits(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            chunks = torch.from_numpy(pictures).split(_REFERENCE_BATCH)
            return np.concatenate([exact(chunk.double()).numpy() for chunk in chunks])

    return _ReferenceLogits(standard, logits(standard.pictures), flat, logits(flat.pictures))


def _only(pictures: PictureSet, names: Sequence[str]) -> PictureSet:
    """Those of the names that are at hand."""
    kept = [index for index, name in enumerate(pictures.names) if name in names]
    return PictureSet(
        tuple(pictures.names[index] for index in kept), pictures.pictures[kept], pictures.absent
    )


def _examined(
    row: ComparedStrategies,
    reference: T2TViT,
    form: GraphForm,
    reference_logits: _ReferenceLogits,
    path: Path,
    progress: Progress,
) -> ComparedStrategies:
    """The row with its file written, compared with the reference and built into an engine."""
    import onnx

    from t2t_deploy.export import DEFAULT_OPSET, DeployT2TViT, onnx_from_deploy
    from t2t_deploy.graph import check_graph

    try:
        row.strategies.check_precision(form.precision)
        deploy = DeployT2TViT(reference, row.strategies, form.precision)
        opset = DEFAULT_OPSET if form.opset is None else form.opset
        traced = onnx_from_deploy(deploy, batch=form.batch, opset=opset)
        model = check_graph(traced, batch=form.batch, contrib=row.strategies.fuse_attention)
        onnx.save(model, path)
    except MissingDependencyError:
        raise  # every combination would fail alike
    except _FAILURES as err:
        return row.because(f"not exported: {_line(err)}")
    row = dataclasses.replace(row, nodes=len(model.graph.node), size_bytes=path.stat().st_size)
    for refusal in deploy.report.refused.items():
        if refusal[0] == "query_groups":  # the others are alike in all rows
            row = row.because(refusal[1])
    try:
        row = _with_errors(row, path, form.precision, reference_logits)
    except _FAILURES as err:
        row = row.because(f"not compared: {_line(err)}")
    if not is_installed(BACKENDS[backend_for(Target.TENSORRT)].module):
        return row
    try:
        return _with_engine(row, path, form.batch, progress)
    except _FAILURES as err:
        return row.because(f"no engine: {_line(err)}")


def _with_errors(
    row: ComparedStrategies, path: Path, precision: Precision, reference_logits: _ReferenceLogits
) -> ComparedStrategies:
    reason = why_not_runnable(RUNTIME)
    if reason is not None:
        return row.because(f"not compared: {reason}")
    nodewise = precision is Precision.BF16
    session = NodewiseSession(path) if nodewise else open_session(SessionRequest(RUNTIME, path))
    with session:
        found = [
            logits_of(session, those.pictures)
            for those in (reference_logits.standard, reference_logits.flat)
        ]
    tolerance = TOLERANCES[precision]
    standard = compare_logits(
        reference_logits.standard_logits, found[0], reference_logits.standard.names, tolerance
    )
    flat = compare_logits(
        reference_logits.flat_logits, found[1], reference_logits.flat.names, tolerance
    )
    row = dataclasses.replace(row, rel_l2=standard.rel_l2, rel_l2_flat=flat.rel_l2)
    for verdict in (standard, flat):
        if verdict.rel_l2 is None:  # no number at all; one beyond the tolerance speaks for itself
            row = row.because(str(verdict.reason))
    if nodewise:
        names = ", ".join((*reference_logits.standard.names, *reference_logits.flat.names))
        row = row.because(f"errors were evaluated node by node, on {names} alone")
    return row


def _with_engine(
    row: ComparedStrategies, path: Path, batch: int | None, progress: Progress
) -> ComparedStrategies:
    built = build_engine(
        path,
        BuildOptions(
            # pinned: the builder's log tells no sizes of a free batch
            profiles=(ShapeProfile(1, 1, 1),) if batch is None else (),
            sm=(ENGINE_SM,),
        ),
        progress=progress.progress,
    )
    figures = built.figures
    summary = EngineSummary(
        kernels=figures.kernels,
        moved_bytes=built.moved_bytes,
        activation_bytes=figures.activation_bytes,
        fused_attention=figures.fused_attention,
    )
    return dataclasses.replace(row, engine=summary)


def _line(err: Exception) -> str:
    """The error in one line; an unexpected one with its kind."""
    text = (str(err).strip() or type(err).__name__).splitlines()[0]
    return text if isinstance(err, DeployError) else f"{type(err).__name__}: {text}"


_OPENVINO = backend_for(Target.OPENVINO)
_WARM_UP_SECONDS = 4.0  # of one case, its process included
_MIN_ROUND_SECONDS = 0.05  # a few calls, however little time is left


def with_latencies(
    rows: Sequence[ComparedStrategies],
    files: Sequence[Path],
    eager: SessionRequest,
    form: GraphForm,
    left_s: float,
    progress: Progress,
) -> list[ComparedStrategies]:
    """The rows with latencies, one process each and all of one round within seconds.

    files: the graph of each row. eager: the reference, which float32 is also timed against. left_s:
    what the whole measurement may take; a case always takes a few calls a round.
    """
    rows = list(rows)
    exported = [index for index, row in enumerate(rows) if row.exported]
    runtimes = []
    for runtime, told in _latency_words().items():
        reason = why_not_runnable(runtime) or why_not_in(runtime, form.precision)
        if reason is None:
            runtimes.append(runtime)
            continue
        for index in exported:
            rows[index] = rows[index].because(f"no {told}: {reason}")
    if not exported or not runtimes:
        return rows
    batch, precision, model = form.batch or 1, form.precision.value, "the compared one"
    places = [(runtime, index) for index in exported for runtime in runtimes]
    cases = [
        BenchCase(
            SessionRequest(runtime, files[index], eager.threads, precision=form.precision),
            rows[index].name,
            precision,
            batch,
            model,
        )
        for runtime, index in places
    ]
    # The reference computes in float32: it is no base for the speed of another precision.
    base = [BenchCase(eager, "reference", precision, batch, model)]
    everything = cases + (base if form.precision is Precision.FP32 else [])
    left_s -= _WARM_UP_SECONDS * len(everything)
    wanted_s = max(left_s / (MIN_ROUNDS * len(everything)), _MIN_ROUND_SECONDS)
    progress.step(f"measuring {counted(len(everything), 'case')} in interleaved rounds")
    measured = run_bench(
        everything,
        rounds=MIN_ROUNDS,
        round_seconds=min(DEFAULT_ROUND_SECONDS, wanted_s),
        progress=progress.progress,
    )
    for (runtime, index), result in zip(places, measured.results, strict=False):
        rows[index] = _with_latency(rows[index], runtime, result)
    return rows


def _latency_words() -> dict[str, str]:
    """The runtimes to measure, and what the figure of each is called; OpenVINO where it is."""
    words, here = {RUNTIME: "latency"}, is_installed(BACKENDS[_OPENVINO].module)
    return words | ({_OPENVINO: "OpenVINO latency"} if here else {})


def _with_latency(row: ComparedStrategies, runtime: str, result: CaseResult) -> ComparedStrategies:
    told = _latency_words()[runtime]
    if result.status is not BenchStatus.OK:
        return row.because(f"no {told}: {result.reason}")
    if result.unstable:
        row = row.because(f"the {told} is unstable: its rounds differ")
    latency, speedup = result.latency_ms, result.speedup_vs_eager
    if runtime == _OPENVINO:
        return dataclasses.replace(
            row, openvino_latency_ms=latency, openvino_speedup_vs_eager=speedup
        )
    return dataclasses.replace(row, latency_ms=latency, speedup_vs_eager=speedup)
