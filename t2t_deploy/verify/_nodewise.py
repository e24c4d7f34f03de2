"""Where a typed graph overflows, how large its tensors get, how its error grows: node by node."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._codec import to_plain
from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.errors import ArtifactError
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    fill_batch,
    why_not_runnable,
)
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, TOLERANCES, Status, Tolerance
from t2t_deploy.verify._compare import Verification, compare_logits, not_verified
from t2t_deploy.verify._nodewise_session import Evaluation, NodeKernels, rounded
from t2t_deploy.verify._nodewise_sums import CodeSum, CodeSums
from t2t_deploy.verify._pictures import PictureSet, nodewise_pictures, pictures_for
from t2t_deploy.verify._typed_graph import (
    FloatFormat,
    TypedGraph,
    bare_graph,
    typed_graph_from_onnx,
)
from t2t_deploy.workspace import Manifest

if TYPE_CHECKING:
    import onnx

SHOWN_NODES = 5
# They move numbers, so that what they show was shown by the node before.
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
)


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """One float tensor, over all pictures.

    max_abs, min_nonzero_abs: of the finite numbers the node computes, before rounding; None where
    there are none. non_finite: after rounding. overflow: infinities that arise here: by rounding,
    or in the node itself from finite inputs. underflow: numbers rounded to zero. subnormal_share:
    of all numbers, those rounded to zero or to a subnormal. rel_error: ||a - b|| / ||b|| between
    the rounded and the unrounded run, of the worst picture, None where it is not finite.
    error_jump: the same less that of the worst input. overflow_on: the first picture with one.
    """

    index: int
    name: str
    op: str
    tensor: str
    dtype: str
    dtype_max: float
    elements: int
    max_abs: float | None
    min_nonzero_abs: float | None
    non_finite: int
    overflow: int
    underflow: int
    subnormal_share: float
    rel_error: float | None
    error_jump: float | None
    overflow_on: str | None = None

    @property
    def range_share(self) -> float:
        """max_abs as a share of the largest finite number of the type; above 1 it overflows."""
        return 0.0 if self.max_abs is None else self.max_abs / self.dtype_max


@dataclass(frozen=True, slots=True)
class NodewiseReport:
    """A graph node by node, and the verdict on its logits against the float64 reference.

    It fails where a number is not finite anywhere, or the logits are beyond the tolerance.
    weights_rel_l2: the logits' error in the unrounded run, that is of the stored weights alone.
    float32_ops: operators that the unrounded run computed in float32. sums: of products of codes;
    bare ones pass the 16-bit type on their way, as in an engine.
    """

    status: Status
    logits: Verification
    reason: str | None = None
    nodes: tuple[NodeFigures, ...] = ()
    weights_rel_l2: float | None = None
    float32_ops: tuple[str, ...] = ()
    sums: tuple[CodeSum, ...] = ()

    @property
    def first_overflow(self) -> NodeFigures | None:
        """The first node, in the order of evaluation, that makes an infinity."""
        return next((node for node in self.nodes if node.overflow), None)

    @property
    def first_non_finite(self) -> NodeFigures | None:
        """The first node with an infinity or NaN; not the one above where NaN comes of 0/0."""
        return next((node for node in self.nodes if node.non_finite), None)

    @property
    def largest_range(self) -> tuple[NodeFigures, ...]:
        """The nodes nearest to the end of their type's range, nearest first."""
        return _largest(self.nodes, lambda node: node.range_share)

    @property
    def largest_jumps(self) -> tuple[NodeFigures, ...]:
        """The nodes that add most to the error of their inputs, most first."""
        return _largest(self.nodes, lambda node: node.error_jump or 0.0)

    def summary(self) -> dict[str, Any]:
        """The verdict without the nodes, for a manifest."""
        logits = self.logits.to_dict()
        return {
            "status": self.status.value,
            "reason": self.reason,
            **{name: logits[name] for name in ("rel_l2", "max_abs", "tolerance", "pictures")},
            "weights_rel_l2": self.weights_rel_l2,
        }

    def to_dict(self) -> dict[str, Any]:
        """The ``nodewise`` object of the JSON output."""
        return {
            **self.summary(),
            "float32_ops": list(self.float32_ops),
            "first_overflow": to_plain(self.first_overflow),
            "first_non_finite": to_plain(self.first_non_finite),
            "largest_range": [node.tensor for node in self.largest_range],
            "largest_jumps": [node.tensor for node in self.largest_jumps],
            "sums": to_plain(self.sums),
            "nodes": to_plain(self.nodes),
        }


def nodewise_not_run(tolerance: Tolerance, reason: str) -> NodewiseReport:
    """A report of nothing: not run is not passed."""
    return NodewiseReport(Status.NOT_RUN, not_verified(tolerance, reason), reason)


def nodewise_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    progress: Progress = silent,
) -> NodewiseReport:
    """Evaluate a file node by node on noise, a photograph and cream, or on other pictures.

    An engine, or a graph without the runtime to compute its nodes, is reported as not run.
    Raises ArtifactError for a graph that cannot be evaluated so.
    """
    tolerance = TOLERANCES[manifest.precision]
    if manifest.kind == "engine":
        return nodewise_not_run(tolerance, "an engine has no nodes; name the ONNX file it is of")
    reason = why_not_runnable(DEFAULT_BACKEND) or why_not_runnable(REFERENCE_BACKEND)
    if reason is not None:
        return nodewise_not_run(tolerance, reason)
    chosen = pictures_for(manifest, pictures, nodewise_pictures)
    expected, typical = float64_logits(weights, manifest.config, chosen.pictures)
    graph = bare_graph(path, manifest.graph_io)
    return evaluate_nodewise(graph, chosen, expected, tolerance, progress, typical=typical)


def float64_logits(
    weights: Path, config: Mapping[str, Any], pictures: np.ndarray
) -> tuple[np.ndarray, float]:
    """Logits (n, classes) of the reference in float64 on the original weights, one at a time.

    Also their typical norm, see `relative_errors`.
    """
    torch = require("torch")
    from t2t_deploy.model import config_from_dict, load_reference

    model = load_reference(weights, config_from_dict(config)).double()
    with torch.inference_mode():
        logits = [model(torch.from_numpy(picture[None]).double()).numpy() for picture in pictures]
    return np.concatenate(logits), model.typical_norm()


def evaluate_nodewise(
    source: Path | onnx.ModelProto,
    pictures: PictureSet,
    expected: np.ndarray,
    tolerance: Tolerance,
    progress: Progress = silent,
    *,
    typical: float = 0.0,
) -> NodewiseReport:
    """Evaluate a typed graph with true rounding and overflow after every node.

    Each picture goes through it twice from the same stored weights: rounded after every node, and
    not at all, in float64 where ONNX Runtime has such a kernel. Their difference is the error of
    the activations' rounding, by depth; that of the logits from the reference's is the file's.

    expected: float64 logits (n, classes) of the reference on the n pictures, the original weights;
    typical: their norm, as of `relative_errors`.
    A dynamic batch runs one picture at a time; a fixed one in its size, the last batch repeated
    full. Raises ArtifactError where the graph cannot be evaluated, InputError where the pictures
    do not fit it.
    """
    graph = typed_graph_from_onnx(source)
    if OUTPUT_NAME not in {spec.name for spec in graph.outputs}:
        names = ", ".join(spec.name for spec in graph.outputs)
        raise ArtifactError(
            f"the graph's outputs are {names}; node by node compares {OUTPUT_NAME!r}: export the "
            "model with t2t-deploy, with the tail logits"
        )
    kernels = NodeKernels(graph)
    sums = CodeSums(graph)
    rounding = Evaluation(graph, kernels, np.float32)
    exact = Evaluation(graph, kernels, np.float64)
    size, steps = graph.inputs[0].shape[0] or 1, len(graph.steps)
    starts = range(0, len(pictures.names), size)
    figures: list[list[NodeFigures]] = []
    found, unrounded = [], []
    for done, start in enumerate(starts):
        chunk = pictures.pictures[start : start + size]
        names = ", ".join(pictures.names[start : start + size])
        figures.append([])
        rows = _rows(graph, rounding, exact, sums, fill_batch(chunk, size), names)
        for index, row in enumerate(rows):
            figures[-1] += row
            progress.progress("node by node", done * steps + index + 1, len(starts) * steps)
        found.append(rounding.results()[OUTPUT_NAME][: len(chunk)])
        unrounded.append(exact.results()[OUTPUT_NAME][: len(chunk)])
    logits, weights = (
        compare_logits(expected, np.concatenate(each), pictures.names, tolerance, typical)
        for each in (found, unrounded)
    )
    report = NodewiseReport(
        status=logits.status,
        logits=logits,
        reason=logits.reason,
        nodes=tuple(_merged(same) for same in zip(*figures, strict=True)),
        weights_rel_l2=weights.rel_l2,
        float32_ops=tuple(sorted(kernels.float32_ops)),
        sums=sums.found(),
    )
    problem = _problem(report)
    if problem is None:
        return report
    return dataclasses.replace(report, status=Status.FAILED, reason=problem)


def _problem(report: NodewiseReport) -> str | None:
    """What is wrong inside the graph, whatever the logits look like."""
    node = report.first_overflow or report.first_non_finite
    if node is None:
        return None
    if not node.overflow:
        return (
            f"{node.non_finite} of {node.elements} numbers are NaN first in {node.tensor} "
            f"({node.op}, {node.dtype})"
        )
    bare = next((one for one in report.sums if one.name == node.name and one.bare), None)
    if bare is not None:
        reach = (
            f"its bare sum of codes reaches {bare.seen:.0f}, {node.dtype} ends at "
            f"{node.dtype_max:.0f}, and a TensorRT engine scales it only afterwards: quantise "
            "again with t2t-deploy quantize --target tensorrt"
        )
    else:
        largest = "infinity" if node.max_abs is None else f"{node.max_abs:.3g}"
        reach = f"it reaches {largest}, {node.dtype} ends at {node.dtype_max:.3g}"
    return (
        f"{node.op} overflows first in {node.tensor} on {node.overflow_on}: {node.overflow} of "
        f"{node.elements} numbers become infinite; {reach}"
    )


def _rows(
    graph: TypedGraph,
    rounding: Evaluation,
    exact: Evaluation,
    sums: CodeSums,
    pictures: np.ndarray,
    names: str,
) -> Iterator[list[NodeFigures]]:
    """Take pictures through two runs of one graph; the figures of each node's float outputs.

    The runs go side by side, so that few tensors are held at a time. names: of the pictures.
    """
    errors: dict[str, float] = {}
    broken: set[str] = set()
    index = 0
    for run in (rounding, exact):
        run.start({INPUT_NAME: pictures})
    for step in graph.steps:
        computed = sums.as_written(step, rounding.compute(step))
        truth = exact.compute(step)
        kept = rounded(step, computed)
        error_before = max((errors.get(tensor, 0.0) for tensor in step.inputs), default=0.0)
        finite_inputs = broken.isdisjoint(step.inputs)
        rows = []
        for output, form in enumerate(step.formats):
            if form is None:
                continue
            error = _relative_error(kept[output], truth[output])
            row = NodeFigures(
                index=index,
                name=step.name,
                op=step.op,
                tensor=step.outputs[output],
                dtype=form.name,
                dtype_max=form.max,
                elements=kept[output].size,
                **_magnitudes(form, computed[output], kept[output], finite_inputs),
                rel_error=error,
                error_jump=None if error is None else max(error - error_before, 0.0),
            )
            errors[row.tensor] = math.inf if error is None else error
            if row.non_finite:
                broken.add(row.tensor)
            rows.append(dataclasses.replace(row, overflow_on=names) if row.overflow else row)
            index += 1
        rounding.keep(step, kept)
        exact.keep(step, truth)
        yield rows


def _magnitudes(
    form: FloatFormat, computed: np.ndarray, kept: np.ndarray, finite_inputs: bool
) -> dict[str, Any]:
    """What `NodeFigures` says of numbers: as computed, and as their type holds them."""
    size = np.abs(computed)
    non_finite = overflow = underflow = subnormal = 0
    if not np.isfinite(kept).all():
        finite = np.isfinite(size)
        infinite = np.isinf(kept)
        overflow = int((infinite if finite_inputs else infinite & finite).sum())
        non_finite = int(kept.size - np.isfinite(kept).sum())
        size = size[finite]
    largest = float(size.max()) if size.size else None
    smallest = float(size.min()) if size.size else None
    if smallest == 0.0:
        nonzero = size[size > 0]
        smallest = float(nonzero.min()) if nonzero.size else None
    if smallest is not None and smallest < form.smallest_normal:
        stored = form.round(size[size > 0])
        underflow = int((stored == 0).sum())
        subnormal = int((stored < form.smallest_normal).sum())
    return {
        "max_abs": largest,
        "min_nonzero_abs": smallest,
        "non_finite": non_finite,
        "overflow": overflow,
        "underflow": underflow,
        "subnormal_share": subnormal / max(kept.size, 1),
    }


def _relative_error(actual: np.ndarray, expected: np.ndarray) -> float | None:
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.subtract(actual, expected, dtype=np.float64)
    error, norm = _norm(difference), _norm(expected)
    if error == 0.0:
        return 0.0
    relative = error / norm if norm > 0.0 else math.inf
    return relative if math.isfinite(relative) else None


def _norm(array: np.ndarray) -> float:
    # Not linalg.norm: that wakes the threads of numpy's BLAS, which then take cores from
    # ONNX Runtime's (11 s of processor time instead of 5 for three pictures of variant 14).
    return math.sqrt(float(np.square(array).sum()))


def _merged(same: Sequence[NodeFigures]) -> NodeFigures:
    """One node's figures over all pictures."""
    elements = sum(one.elements for one in same)
    subnormals = sum(one.subnormal_share * one.elements for one in same)
    sizes = [one.max_abs for one in same if one.max_abs is not None]
    smallest = [one.min_nonzero_abs for one in same if one.min_nonzero_abs is not None]
    return dataclasses.replace(
        same[0],
        elements=elements,
        max_abs=max(sizes, default=None),
        min_nonzero_abs=min(smallest, default=None),
        non_finite=sum(one.non_finite for one in same),
        overflow=sum(one.overflow for one in same),
        underflow=sum(one.underflow for one in same),
        subnormal_share=subnormals / max(elements, 1),
        rel_error=_worst(one.rel_error for one in same),
        error_jump=_worst(one.error_jump for one in same),
        overflow_on=next((one.overflow_on for one in same if one.overflow_on), None),
    )


def _worst(errors: Iterable[float | None]) -> float | None:
    """The largest error; None, which is not finite, is larger than any."""
    worst = max(math.inf if error is None else error for error in errors)
    return worst if math.isfinite(worst) else None


def _largest(
    nodes: Sequence[NodeFigures], key: Callable[[NodeFigures], float]
) -> tuple[NodeFigures, ...]:
    computing = (node for node in nodes if node.op not in _MOVES and key(node) > 0.0)
    return tuple(itertools.islice(sorted(computing, key=key, reverse=True), SHOWN_NODES))
