"""Comparison of a file, or a session, with the reference, and its verdict."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._files import temporary_folder
from t2t_deploy._preparation import Preparation
from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import (
    BACKENDS,
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    ReferenceSession,
    Session,
    SessionRequest,
    backend_for,
    fill_batch,
    open_session,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.types import (
    INDICES_NAME,
    OUTPUT_NAME,
    PROBABILITIES_NAME,
    TOLERANCES,
    UNIT_NAME,
    GraphIO,
    Precision,
    Status,
    Tail,
    Target,
    TensorSpec,
    Tolerance,
    relative_errors,
    sigmoid,
    softmax,
)
from t2t_deploy.verify._nodewise_session import NodewiseSession, why_non_finite
from t2t_deploy.verify._pictures import PictureSet, pictures_for
from t2t_deploy.verify._typed_graph import bare_graph
from t2t_deploy.workspace import Manifest

NODEWISE_PICTURES = 3
"""Node by node takes seconds where a runtime takes tenths of one."""
# float32 softmaxes of two libraries over 1000 classes; no probability is above 1
TAIL_TOLERANCE = 1e-5
_BATCH = 4


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a model's logits are from the reference's, and whether that is near enough.

    rel_l2: largest `relative_errors` of one picture; max_abs: largest difference of one logit;
    cosine: smallest cosine similarity; top1_agreement: share of pictures with the same class.
    All None where nothing was run.
    """

    status: Status
    tolerance: float
    rel_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    reason: str | None = None
    pictures: Mapping[str, float] = field(default_factory=dict)
    """picture -> its rel_l2"""

    def to_dict(self) -> dict[str, Any]:
        """The ``verification`` object of the JSON contract."""
        names = ("rel_l2", "max_abs", "cosine", "top1_agreement", "tolerance", "reason")
        values = {name: getattr(self, name) for name in names}
        return {"status": self.status.value, **values, "pictures": dict(self.pictures)}


def not_verified(tolerance: Tolerance, reason: str) -> Verification:
    """A verification that could not be run, which is not one that passed."""
    return Verification(Status.NOT_RUN, tolerance.rel_l2, reason=reason)


def verify_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    *,
    backend: str = DEFAULT_BACKEND,
) -> Verification:
    """Compare an ONNX file with the reference on the standard pictures, or on others.

    What no runtime here can run is reported as not run, with the reason. bf16 has no runtime that
    every CPU has: for ONNX Runtime it is evaluated node by node, on three pictures, which the
    result says. An 8-bit graph on a bf16 base is computed by its target's runtime, where this CPU
    can, else by ONNX Runtime in float32; the result says which.
    """
    precision, how = manifest.precision, ""
    if manifest.base is not None and backend == DEFAULT_BACKEND:
        usual = backend_for(Target(manifest.target))
        lacks = why_not_runnable(usual) or why_not_in(usual, manifest.base)
        backend = usual if lacks is None else backend
        how = f"computed by {backend}, in {manifest.base.value} around the 8-bit products"
        if lacks is not None:
            how = f"computed by {backend}, in fp32 instead of {manifest.base.value}: {lacks}"
    nodewise = precision is Precision.BF16 and backend == DEFAULT_BACKEND
    reason = why_not_runnable(backend)
    if reason is None and manifest.quantization.mode == "dynamic":
        reason = BACKENDS[backend].why_no_dynamic_ranges
    if reason is None and not nodewise:
        reason = why_not_in(backend, precision)
    if reason is not None:
        return not_verified(TOLERANCES[precision], reason)
    chosen = pictures_for(manifest, pictures)
    if nodewise:
        chosen = chosen.first(NODEWISE_PICTURES)
    graph_io = manifest.graph_io
    with contextlib.ExitStack() as stack:
        eager = SessionRequest(REFERENCE_BACKEND, weights, config=manifest.config)
        reference = stack.enter_context(open_session(eager))
        base = manifest.base if backend != DEFAULT_BACKEND else None
        request = SessionRequest(backend, path, precision=precision, base=base)
        if nodewise:
            session: Session = NodewiseSession(bare_graph(path, graph_io))
        else:
            session = open_session(request)
            if graph_io.embed_preprocess:
                session = PixelSession(session, manifest.preparation)
        stack.enter_context(session)
        if nodewise or not graph_io.tail.appended:
            result = verify_session(reference, session, chosen, TOLERANCES[precision])
        else:
            # a folder in the workspace, which the stored weights are of
            folder = stack.enter_context(temporary_folder(weights.parent))
            result = _verify_tail(reference, session, request, graph_io.tail, folder, chosen)
    result = _with_cause(result, path, manifest, chosen)
    if not nodewise:
        return _with_reason(result, how) if how else result
    how = (
        f"evaluated node by node on {len(chosen.names)} pictures: ONNX Runtime's CPU kernels have "
        "no bf16 matrix product"
    )
    if not graph_io.bare:
        how += ", and of the graph inside its ends"
    return _with_reason(result, how)


def _with_reason(result: Verification, reason: str) -> Verification:
    """The same with one more reason."""
    reasons = reason if result.reason is None else f"{result.reason}; {reason}"
    return dataclasses.replace(result, reason=reasons)


def _verify_tail(
    reference: Session,
    session: Session,
    request: SessionRequest,
    tail: Tail,
    folder: Path,
    pictures: PictureSet,
) -> Verification:
    """The verdict on the model's output inside a file, and on the tail behind it.

    The file runs as it is, in ``session``, and once more as a copy that differs in one thing: its
    logits, or embedding, are an output too. The copy's are compared with the reference's, and what
    the file gives with what the tail makes of the copy's.
    """
    import onnx

    from t2t_deploy.graph import expose_tensors

    assert request.precision is not None
    expected = outputs_of(reference, pictures.pictures)
    actual = outputs_of(session, pictures.pictures)
    copy = folder / "logits.onnx"
    model = read_onnx(request.path, external_data=True)
    onnx.save(expose_tensors(model, [tail.output]), copy)
    with open_session(dataclasses.replace(request, path=copy)) as opened:
        exposed = session.around(opened) if isinstance(session, PixelSession) else opened
        inside = outputs_of(exposed, pictures.pictures)
    tolerance = TOLERANCES[request.precision]
    result = compare_outputs(expected, inside, pictures.names, tolerance, typical_norm(reference))
    fault = None if result.rel_l2 is None else tail_fault(actual, inside[tail.output], tail)
    if fault is None:
        return result
    return _with_reason(dataclasses.replace(result, status=Status.FAILED), fault)


def _with_cause(
    result: Verification, path: Path, manifest: Manifest, pictures: PictureSet
) -> Verification:
    """The same verdict; where logits are no numbers, the tensor that is the first without."""
    if result.status is not Status.FAILED or result.rel_l2 is not None:
        return result
    of_pixels, preparation = manifest.graph_io.embed_preprocess, manifest.preparation
    for picture in pictures.pictures:
        fed = fill_batch(picture[None], manifest.batch)
        cause = why_non_finite(path, preparation.pixels_of(fed) if of_pixels else fed)
        if cause is not None:
            return _with_reason(result, cause)
    return result


def verify_session(
    reference: Session, candidate: Session, pictures: PictureSet, tolerance: Tolerance
) -> Verification:
    """Compare logits, or what else a model gives, picture by picture.

    A dynamic batch is run at 1, then at 4; a fixed one in its own size, the last batch repeated
    full. The verdict is on the worst picture.
    """
    expected, actual = (outputs_of(one, pictures.pictures) for one in (reference, candidate))
    return compare_outputs(expected, actual, pictures.names, tolerance, typical_norm(reference))


def typical_norm(session: Session) -> float:
    """Of the logits of a reference's session; 0 where it does not know, as of another graph."""
    return session.typical_norm if isinstance(session, ReferenceSession) else 0.0


def compare_outputs(
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    names: tuple[str, ...],
    tolerance: Tolerance,
    typical: float = 0.0,
) -> Verification:
    """The verdict on the worst of a model's outputs, (n, ...) each, by the reference's.

    typical: of logits, as of `relative_errors`. Raises ArtifactError where one is absent.
    """
    found = []
    for name, own in expected.items():
        if name not in actual:
            raise ArtifactError(
                f"the artifact gives {', '.join(actual)}; expected {', '.join(expected)}: export "
                "the model again"
            )
        rows = [np.reshape(one, (len(one), -1)) for one in (own, actual[name])]
        least = typical if name == OUTPUT_NAME else 0.0
        result = compare_logits(rows[0], rows[1], names, tolerance, least)
        if name != OUTPUT_NAME:
            of = None if result.reason is None else f"{name}: {result.reason}"
            result = dataclasses.replace(result, top1_agreement=None, reason=of)
        found.append(result)
    return max(found, key=lambda one: np.inf if one.rel_l2 is None else one.rel_l2)


def compare_logits(
    expected: np.ndarray,
    actual: np.ndarray,
    names: tuple[str, ...],
    tolerance: Tolerance,
    typical: float = 0.0,
) -> Verification:
    """Verdict on (n, classes) logits against the reference's; ``names`` are the n pictures.

    typical: as of `relative_errors`.
    """
    if expected.shape != actual.shape:
        reason = f"logits are {actual.shape}, the reference's {expected.shape}"
        return Verification(Status.FAILED, tolerance.rel_l2, reason=reason)
    for what, logits in (("reference", expected), ("artifact", actual)):
        bad = ~np.isfinite(logits)
        if bad.any():
            first = names[int(np.argmax(bad.any(axis=1)))]
            reason = (
                f"{int(bad.sum())} of {bad.size} logits of the {what} are NaN or infinite, first "
                f"on {first}"
            )
            return Verification(Status.FAILED, tolerance.rel_l2, reason=reason)
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    errors = relative_errors(a, b, typical)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    worst = int(np.argmax(errors))
    result = Verification(
        Status.PASSED,
        tolerance.rel_l2,
        rel_l2=float(errors[worst]),
        max_abs=float(np.abs(a - b).max()),
        cosine=float(cosines.min()),
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        pictures=dict(zip(names, errors.tolist(), strict=True)),
    )
    if errors[worst] <= tolerance.rel_l2:
        return result
    reason = (
        f"relative error {errors[worst]:.2e} on {names[worst]}, tolerance {tolerance.rel_l2:.0e}"
    )
    return dataclasses.replace(result, status=Status.FAILED, reason=reason)


def logits_of(session: Session, pictures: np.ndarray) -> np.ndarray:
    """Logits (n, classes) of pictures (n, C, H, W), in batches the session takes."""
    return outputs_of(session, pictures)[OUTPUT_NAME]


def outputs_of(
    session: Session, pictures: np.ndarray, batch: int | None = None
) -> dict[str, np.ndarray]:
    """Every output for pictures (n, C, H, W), in batches the session takes.

    batch: pictures at a time where the session takes any number; None is one, then 4.
    """
    taken = session.inputs[0]
    fixed = taken.shape[0]
    size = fixed or batch or _BATCH
    starts = (0, *range(size if fixed or batch else 1, len(pictures), size))
    results = []
    for start, stop in zip(starts, (*starts[1:], len(pictures)), strict=True):
        chunk = np.ascontiguousarray(fill_batch(pictures[start:stop], fixed))
        outputs = session.run({taken.name: chunk})
        results.append({name: out[: stop - start] for name, out in outputs.items()})
    return {name: np.concatenate([found[name] for found in results]) for name in results[0]}


class PixelSession(Session):
    """A session that takes pixels, given normalised pictures (n, C, H, W) float32.

    The pictures must have been made of pixels: these are what it is fed, bit for bit.
    """

    def __init__(self, session: Session, preparation: Preparation) -> None:
        self.backend = session.backend
        self._session, self._preparation = session, preparation
        self.outputs = session.outputs
        (taken,) = session.inputs
        batch, height, width, channels = taken.shape
        self.inputs = (TensorSpec(taken.name, "float32", (batch, channels, height, width)),)

    def around(self, session: Session) -> PixelSession:
        """The same around another session of the model."""
        return PixelSession(session, self._preparation)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Session.run`."""
        pixels = {name: self._preparation.pixels_of(array) for name, array in feeds.items()}
        return self._session.run(pixels)

    def close(self) -> None:
        """Free the session inside."""
        self._session.close()


def takes_pixels(session: Session) -> bool:
    """Whether a session's one input is (batch, H, W, C) uint8."""
    pixels = GraphIO(embed_preprocess=True)
    return len(session.inputs) == 1 and pixels.takes(session.inputs[0])


def tail_fault(
    outputs: Mapping[str, np.ndarray], logits: np.ndarray, tail: Tail = Tail.SOFTMAX
) -> str | None:
    """What is wrong with what a tail makes of (n, classes) logits, or of an embedding; or None.

    Equal probabilities may come in any order.
    """
    if UNIT_NAME in outputs:
        lengths = np.linalg.norm(logits.astype(np.float64), axis=1, keepdims=True)
        off = np.abs(outputs[UNIT_NAME] - logits / np.maximum(lengths, 1e-12)).max()
        return None if off <= TAIL_TOLERANCE else f"unit embeddings are {off:.1e} off"
    name, probabilities = ("sigmoid", sigmoid) if tail is Tail.SIGMOID else ("softmax", softmax)
    expected = probabilities(logits)
    actual = outputs[PROBABILITIES_NAME].astype(np.float64)
    indices = outputs.get(INDICES_NAME)
    if indices is None:
        if actual.shape != expected.shape:
            return f"probabilities are {actual.shape}, expected {expected.shape}"
    else:
        k = actual.shape[1]
        if indices.shape != actual.shape or indices.min() < 0 or indices.max() >= expected.shape[1]:
            return f"indices are {indices.shape}, not all of them classes"
        if any(len(set(row)) < k for row in indices.tolist()):
            return "indices name a class twice"
        best = -np.sort(-expected, axis=1)[:, :k]
        off = np.abs(np.take_along_axis(expected, indices, axis=1) - best).max()
        if not off <= TAIL_TOLERANCE:
            return f"indices name classes {off:.1e} less probable than those of the logits"
        expected = best
    off = np.abs(actual - expected).max()
    if not off <= TAIL_TOLERANCE:
        return f"probabilities are {off:.1e} off the {name} of the logits"
    return None
