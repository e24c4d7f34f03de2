"""From pictures to a session's feeds, and from its outputs to classes: one way for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from t2t_deploy.errors import ArtifactError, UsageError
from t2t_deploy.images import normalise
from t2t_deploy.runtime import Session, SessionRequest, fill_batch, open_session
from t2t_deploy.types import BARE, GraphIO, ShapeProfile, Tail, TensorSpec, softmax

DEFAULT_BATCH = 8
DEFAULT_TOP = 5


@dataclass(frozen=True, slots=True)
class ClassifierRequest:
    """Everything needed to open a classifier, in this process or another.

    batch: pictures at a time where the session's batch is free. profile: the batches that an engine
    takes; None where there is no such limit.
    """

    session: SessionRequest
    graph_io: GraphIO = BARE
    batch: int = DEFAULT_BATCH
    profile: ShapeProfile | None = None


@dataclass(frozen=True, slots=True)
class TopClasses:
    """The best classes of n pictures, best first.

    indices: (n, k) int64; probabilities: (n, k) float32; finite: (n,) bool, False where the session
    gave NaN or infinity, so that the picture has no class.
    """

    indices: np.ndarray
    probabilities: np.ndarray
    finite: np.ndarray


class Classifier:
    """An open session that takes pixels and gives classes.

    Raises ArtifactError where the session's inputs or outputs are not those of ``ends``.
    """

    def __init__(self, session: Session, request: ClassifierRequest) -> None:
        self._session = session
        self._graph_io = request.graph_io
        self._input = _input_of(session, request.graph_io)
        self._outputs = _outputs_of(session, request.graph_io)
        taken = self._input.shape
        size = taken[1] if request.graph_io.embed_preprocess else taken[2]
        assert size is not None  # _input_of refuses others
        self.size: int = size
        """Side of the pictures, pixels."""
        fixed, profile = taken[0], request.profile
        if fixed is not None:
            self._least, self.batch = fixed, fixed
        elif profile is not None:
            self._least, self.batch = profile.min, min(max(request.batch, profile.min), profile.max)
        else:
            self._least, self.batch = 1, request.batch

    @property
    def backend(self) -> str:
        """The runtime, as on the command line."""
        return self._session.backend

    @property
    def columns(self) -> int:
        """Values that the session gives for a picture: its classes, or the best of them."""
        columns = self._outputs[0].shape[1]
        assert columns is not None  # _outputs_of refuses others
        return columns

    def feeds(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """(n, S, S, 3) uint8, n up to ``batch`` -> what the session takes.

        A batch smaller than the session takes is filled by repeating the last picture.
        """
        pixels = fill_batch(pixels, self._least)
        if self._graph_io.embed_preprocess:
            return {self._input.name: np.ascontiguousarray(pixels)}
        return {self._input.name: normalise(pixels)}

    def top(self, outputs: Mapping[str, np.ndarray], count: int, top: int) -> TopClasses:
        """The ``top`` best classes of the first ``count`` pictures.

        Among equal values the lower class comes first. Probabilities of logits are computed in
        float64.
        """
        first, *others = (outputs[spec.name][:count] for spec in self._outputs)
        finite = np.isfinite(first).all(axis=1)
        if self._graph_io.tail is Tail.TOPK:
            return TopClasses(
                others[0][:, :top].astype(np.int64), first[:, :top].astype(np.float32), finite
            )
        values = np.where(finite[:, None], first, 0).astype(np.float64)
        indices = np.argsort(-values, axis=1, kind="stable")[:, :top]
        shares = softmax(values) if self._graph_io.tail is Tail.LOGITS else values
        return TopClasses(
            indices, np.take_along_axis(shares, indices, axis=1).astype(np.float32), finite
        )

    def classify(self, pixels: np.ndarray, top: int) -> TopClasses:
        """The best classes of (n, S, S, 3) uint8 pictures, n from 1 to ``batch``."""
        return self.top(self._session.run(self.feeds(pixels)), len(pixels), top)

    def close(self) -> None:
        """Free the session."""
        self._session.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_classifier(request: ClassifierRequest) -> Classifier:
    """Open what the request asks for. Raises BackendError, ArtifactError."""
    session = open_session(request.session)
    try:
        return Classifier(session, request)
    except BaseException:
        session.close()
        raise


def wanted_top(asked: int | None, classifier: Classifier) -> int:
    """How many classes to tell; None is the default. Raises UsageError beyond what there is."""
    if asked is None:
        return min(DEFAULT_TOP, classifier.columns)
    if asked > classifier.columns:
        raise UsageError(
            f"--top is {asked}; the artifact gives {classifier.columns} classes: ask for up to "
            "that many"
        )
    return asked


def _input_of(session: Session, graph_io: GraphIO) -> TensorSpec:
    specs = session.inputs
    if len(specs) == 1 and graph_io.takes(specs[0]):
        return specs[0]
    expected = "(N, S, S, 3) uint8" if graph_io.embed_preprocess else "(N, 3, S, S) float32"
    raise ArtifactError(
        f"{_listed(specs)} is what the artifact takes; expected pictures {expected}: predict with "
        "a classifier that t2t-deploy exported"
    )


def _outputs_of(session: Session, graph_io: GraphIO) -> tuple[TensorSpec, ...]:
    """The outputs in the order of their use: values, then classes where the graph gives these."""
    by_name = {spec.name: spec for spec in session.outputs}
    if graph_io.tail is Tail.TOPK:
        chosen = [by_name.get(name) for name in ("probabilities", "indices")]
        expected = "probabilities (N, k) and indices (N, k)"
    else:
        chosen = list(session.outputs) if len(session.outputs) == 1 else [None]
        expected = "logits (N, classes)"
    found = tuple(spec for spec in chosen if spec is not None and len(spec.shape) == 2)
    if len(found) == len(chosen) and found[0].shape[1] is not None:
        return found
    raise ArtifactError(
        f"{_listed(session.outputs)} is what the artifact gives; expected {expected}: predict with "
        "a classifier that t2t-deploy exported"
    )


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(str(spec) for spec in specs) or "nothing"
