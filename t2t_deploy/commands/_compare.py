"""Every sensible combination of strategies side by side; nothing of it is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._codec import to_plain
from t2t_deploy._files import temporary_folder
from t2t_deploy._optional import is_installed, require
from t2t_deploy._options import AnyPath, command
from t2t_deploy._preparation import USUAL
from t2t_deploy._progress import Progress, silent
from t2t_deploy.bench import (
    DEFAULT_ROUND_SECONDS,
    MIN_ROUNDS,
    BenchCase,
    BenchStatus,
    Latency,
    Speedup,
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
    IgnoreKeys,
    ImageSize,
    Opset,
    Performer,
    QkScale,
    SoftSplit,
    Variant,
    Weights,
    graph_of_reference,
    load_model,
)
from t2t_deploy.engine import BuildOptions, build_engine
from t2t_deploy.errors import DeployError, MissingDependencyError, counted
from t2t_deploy.export import PerformerForm, SoftSplitForm, Strategies, choose_strategies
from t2t_deploy.runtime import (
    BACKENDS,
    DEFAULT_BACKEND,
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

_ENGINE_SM = "86"
# Measuring gets what exporting and building leave of this, so that a comparison stays one a person
# waits for.
_TOTAL_SECONDS = 170.0
_WARM_UP_SECONDS = 4.0  # of one case, its process included
_MIN_ROUND_SECONDS = 0.05  # a few calls, however little time is left
_REFERENCE_BATCH = 4  # pictures at once in float64: half the time of one by one
# Node by node a picture takes seconds: fixed noise and a photograph, black and cream.
_NODEWISE_IMAGES = ("noise 0", "china", "black", "cream")
# What one combination may raise while the others go on; torch's exporter and ONNX Runtime raise
# RuntimeError, a full disk OSError.
_FAILURES = (DeployError, RuntimeError, OSError)
# The runtimes that are timed: what the figure of each is called, and how its fields begin.
_OPENVINO = backend_for(Target.OPENVINO)
_TIMED = {DEFAULT_BACKEND: ("latency", ""), _OPENVINO: ("OpenVINO latency", "openvino_")}


@dataclass(frozen=True, slots=True)
class EngineSummary:
    """Figures of an engine at the compared batch, in bytes and counts; see `EngineFigures`."""

    kernels: int
    moved_bytes: int | None
    activation_bytes: int
    fused_attention: int


@dataclass(slots=True)
class ComparedStrategies:
    """One combination, and what its graph costs and loses: a row of ``export --compare``.

    name: the combination in few words. default: whether it is the target's own. rel_l2,
    rel_l2_flat: largest relative L2 error of one picture's logits against the reference in float64,
    over the standard and the flat pictures. latency_ms, speedup_vs_eager: in ONNX Runtime on the
    CPU; openvino_latency_ms, openvino_speedup_vs_eager: in OpenVINO. engine: of TensorRT-RTX. What
    was not run or failed is None, and ``reason`` says why; a reason may also say how a figure was
    come by. hazards: known ways in which the combination loses numbers, one line each.
    """

    name: str
    strategies: Strategies
    default: bool = False
    nodes: int | None = None
    size_bytes: int | None = None
    rel_l2: float | None = None
    rel_l2_flat: float | None = None
    latency_ms: Latency | None = None
    speedup_vs_eager: Speedup | None = None
    openvino_latency_ms: Latency | None = None
    openvino_speedup_vs_eager: Speedup | None = None
    engine: EngineSummary | None = None
    reason: str | None = None
    hazards: tuple[str, ...] = ()

    @property
    def exported(self) -> bool:
        """Whether the combination became a file."""
        return self.size_bytes is not None

    def because(self, reason: str) -> None:
        """Add a reason."""
        self.reason = reason if self.reason is None else f"{self.reason}; {reason}"


@dataclass(frozen=True, slots=True)
class StrategyComparison:
    """All combinations of one model, precision and target.

    batch: what latencies and engines are of: the graph's fixed batch, 1 where it is free.
    token_attention: the form of the token blocks, which decides whether ``performer`` or
    ``query_groups`` makes a difference. engine_sm: the compute capability of the engines.
    """

    variant: str
    precision: Precision
    target: Target
    batch: int
    token_attention: str
    engine_sm: str
    rows: tuple[ComparedStrategies, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``export --compare``."""
        values: dict[str, Any] = to_plain(self)
        rows = [{**row.pop("strategies"), **row} for row in values["rows"]]
        return {**values, "rows": rows}


@command
def compare_exports(
    *,
    variant: Variant = None,
    config: ConfigFile = None,
    checkpoint: CheckpointFile = None,
    num_classes: Classes = None,
    image_size: ImageSize = None,
    weights: Weights = None,
    ignore_keys: IgnoreKeys = None,
    qk_scale: QkScale = None,
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
    given = dict(locals())
    form = GraphForm.of(given)
    workspace = workspace_of(workspace)
    started_s = monotonic()
    default, asked = choose_strategies(form.target), form.strategies()
    require("torch")
    from t2t_deploy.model import TokensType, reference_from_state_dict, save_weights

    model = load_model(form, given, progress)
    dims, state_dict = model.config, model.state_dict
    performers = dims.tokens_type is TokensType.PERFORMER
    if not performers:  # its form makes no difference then
        asked = dataclasses.replace(asked, performer=default.performer)
    grid = dict.fromkeys((*strategies_to_compare(default, performer=performers), asked))
    rows: dict[Path, ComparedStrategies] = {}
    with temporary_folder(workspace.root) as scratch:
        file = scratch / "weights.safetensors"
        save_weights(state_dict, file)
        progress.step("computing the reference in float64")
        # a model of its own: the deploy form shares the float32 weights of the other
        exact = _reference_logits(reference_from_state_dict(state_dict, dims), form.precision)
        reference = reference_from_state_dict(state_dict, dims)
        for index, strategies in enumerate(grid, start=1):
            name = strategy_name(strategies, performer=performers)
            progress.step(f"exporting {name} ({index} of {len(grid)})")
            row = ComparedStrategies(
                name, strategies, strategies == default, hazards=strategies.hazards()
            )
            path = scratch / f"{index}.onnx"
            rows[path] = row
            _examine(row, reference, form, exact, path, progress)
        left_s = _TOTAL_SECONDS - (monotonic() - started_s)
        eager = SessionRequest(REFERENCE_BACKEND, file, available_threads(), dims.to_dict())
        exported = {path: row for path, row in rows.items() if row.exported}
        _measure(exported, eager, form, left_s, progress)
    return StrategyComparison(
        dims.name,
        form.precision,
        form.target,
        form.batch or 1,
        dims.tokens_type.value,
        _ENGINE_SM,
        tuple(rows.values()),
    )


_Logits = Mapping[str, tuple[PictureSet, np.ndarray, float]]
"""By the field of the error: pictures, the reference's logits of them in float64, their norm."""


def _reference_logits(model: T2TViT, precision: Precision) -> _Logits:
    import torch

    taken = USUAL.fitted(model.config.in_chans, model.config.image_hw)
    exact = model.double()
    found = {}
    sets = {"rel_l2": standard_pictures(taken), "rel_l2_flat": flat_pictures(taken)}
    for error, pictures in sets.items():
        if precision is Precision.BF16:
            names = enumerate(pictures.names)
            pictures = pictures.subset([i for i, name in names if name in _NODEWISE_IMAGES])
        with torch.inference_mode():
            chunks = torch.from_numpy(pictures.pictures).split(_REFERENCE_BATCH)
            logits = np.concatenate([exact(chunk.double()).numpy() for chunk in chunks])
        found[error] = (pictures, logits, model.typical_norm())
    return found


def _examine(
    row: ComparedStrategies,
    reference: T2TViT,
    form: GraphForm,
    exact: _Logits,
    path: Path,
    progress: Progress,
) -> None:
    """Write the row's file, compare it with the reference and build an engine of it."""
    import onnx

    try:
        row.strategies.check_precision(form.precision)
        graph = graph_of_reference(reference, form, strategies=row.strategies)
        onnx.save(graph.model, path)
    except MissingDependencyError:
        raise  # every combination would fail alike
    except _FAILURES as err:
        row.because(f"not exported: {_line(err)}")
        return
    row.nodes, row.size_bytes = len(graph.model.graph.node), path.stat().st_size
    refused = graph.rewrites.refused.get("query_groups")  # the others are alike in all rows
    if refused is not None:
        row.because(refused)
    try:
        _compare(row, path, form.precision, exact)
    except _FAILURES as err:
        row.because(f"not compared: {_line(err)}")
    if not is_installed(BACKENDS[backend_for(Target.TENSORRT)].module):
        return
    try:
        # pinned: the builder's log has no sizes of a free batch
        profiles = (ShapeProfile(1, 1, 1),) if form.batch is None else ()
        options = BuildOptions(profiles=profiles, sm=(_ENGINE_SM,))
        built = build_engine(path, options, progress=progress.progress)
    except _FAILURES as err:
        row.because(f"no engine: {_line(err)}")
        return
    figures = built.figures
    row.engine = EngineSummary(
        figures.kernels, built.sized.moved_bytes, figures.activation_bytes, figures.fused_attention
    )


def _compare(row: ComparedStrategies, path: Path, precision: Precision, exact: _Logits) -> None:
    """Give a row its errors."""
    reason = why_not_runnable(DEFAULT_BACKEND)
    if reason is not None:
        row.because(f"not compared: {reason}")
        return
    nodewise = precision is Precision.BF16
    request = SessionRequest(DEFAULT_BACKEND, path)
    with NodewiseSession(path) if nodewise else open_session(request) as session:
        found = [logits_of(session, pictures.pictures) for pictures, _, _ in exact.values()]
    names: list[str] = []
    tolerance = TOLERANCES[precision]
    for (error, reference), actual in zip(exact.items(), found, strict=True):
        pictures, expected, typical = reference
        verdict = compare_logits(expected, actual, pictures.names, tolerance, typical)
        setattr(row, error, verdict.rel_l2)
        if verdict.rel_l2 is None:  # no number at all; one beyond the tolerance speaks for itself
            row.because(str(verdict.reason))
        names += pictures.names
    if nodewise:
        row.because(f"errors were evaluated node by node, on {', '.join(names)} alone")


def _line(err: Exception) -> str:
    """The error in one line; an unexpected one with its kind."""
    text = (str(err).strip() or type(err).__name__).splitlines()[0]
    return text if isinstance(err, DeployError) else f"{type(err).__name__}: {text}"


def _measure(
    rows: Mapping[Path, ComparedStrategies],
    eager: SessionRequest,
    form: GraphForm,
    left_s: float,
    progress: Progress,
) -> None:
    """Give rows their latencies, one process each and all of one round within seconds.

    rows: by their file. eager: the reference, which float32 is also timed against. left_s: what the
    whole measurement may take; a case always takes a few calls a round.
    """
    runtimes = []
    for runtime, (figure, _) in _TIMED.items():
        if runtime == _OPENVINO and not is_installed(BACKENDS[_OPENVINO].module):
            continue
        reason = why_not_runnable(runtime) or why_not_in(runtime, form.precision)
        if reason is None:
            runtimes.append(runtime)
            continue
        for row in rows.values():
            row.because(f"no {figure}: {reason}")
    kept = [(path, row, runtime) for path, row in rows.items() for runtime in runtimes]
    if not kept:
        return
    rest = (form.precision.value, form.batch or 1, "the compared one")
    cases = [
        BenchCase(
            SessionRequest(runtime, path, eager.threads, precision=form.precision), row.name, *rest
        )
        for path, row, runtime in kept
    ]
    # The reference computes in float32: it is no base for the speed of another precision.
    if form.precision is Precision.FP32:
        cases.append(BenchCase(eager, "reference", *rest))
    left_s -= _WARM_UP_SECONDS * len(cases)
    round_s = max(left_s / (MIN_ROUNDS * len(cases)), _MIN_ROUND_SECONDS)
    progress.step(f"measuring {counted(len(cases), 'case')} in interleaved rounds")
    measured = run_bench(
        cases,
        rounds=MIN_ROUNDS,
        round_seconds=min(DEFAULT_ROUND_SECONDS, round_s),
        progress=progress.progress,
    )
    for (_, row, runtime), result in zip(kept, measured.results, strict=False):
        figure, prefix = _TIMED[runtime]
        if result.status is not BenchStatus.OK:
            row.because(f"no {figure}: {result.reason}")
            continue
        if result.unstable:
            row.because(f"the {figure} is unstable: its rounds differ")
        setattr(row, f"{prefix}latency_ms", result.latency_ms)
        setattr(row, f"{prefix}speedup_vs_eager", result.speedup_vs_eager)


_U, _F, _C = SoftSplitForm.UNFOLD, SoftSplitForm.FOLDED, SoftSplitForm.CENTRED
_SOFT_SPLITS = (
    *((form,) * 3 for form in (_U, SoftSplitForm.CONV, _F, _C)),
    (SoftSplitForm.SHIFTED, _U, _U),
    (_C, _U, _U),
    (_C, _F, _F),
    (_U, _F, _F),
)


def strategies_to_compare(default: Strategies, *, performer: bool) -> tuple[Strategies, ...]:
    """The combinations worth seeing beside a target's default, which is one of them.

    performer: the token blocks are performers, whose other forms are compared on the default's soft
    splits; else it is the number of query groups that is.
    """
    splits = dict.fromkeys((*_SOFT_SPLITS, default.soft_split))
    found = [dataclasses.replace(default, soft_split=split) for split in splits]
    if performer:
        found += [dataclasses.replace(default, performer=form) for form in PerformerForm]
    else:
        found += [dataclasses.replace(default, query_groups=groups) for groups in (1, 2)]
    return tuple(dict.fromkeys(found))


def strategy_name(strategies: Strategies, *, performer: bool) -> str:
    """A combination in few words, of them only what makes a difference to the token blocks."""
    groups = strategies.query_groups
    blocks = f"{groups} query group{'s' if groups > 1 else ''}"
    return f"{split_name(strategies)}, {strategies.performer.value if performer else blocks}"


def split_name(strategies: Strategies) -> str:
    """The soft splits as ``--soft-split`` takes them; one form for all three stands once."""
    forms = [form.value for form in strategies.soft_split]
    return forms[0] if len(set(forms)) == 1 else ",".join(forms)
