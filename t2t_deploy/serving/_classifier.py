"""From images to a session's feeds, and from its outputs to classes: one way for everybody."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from t2t_deploy._preparation import USUAL, Preparation
from t2t_deploy.errors import ArtifactError, ImageError, UsageError
from t2t_deploy.pictures import shown_name
from t2t_deploy.runtime import Session, SessionRequest, fill_batch, open_session
from t2t_deploy.types import (
    BARE,
    Activation,
    GraphIO,
    ShapeProfile,
    Tail,
    TensorSpec,
    sigmoid,
    softmax,
)

DEFAULT_BATCH = 8
DEFAULT_TOP = 5
NOT_FINITE = "the artifact gives NaN or infinity for this picture"
_BATCHES_AHEAD = 2

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a classifier of images takes and gives.

    image: (N, C, H, W) float32, normalised, or (N, H, W, C) uint8. scores: (N, classes) or, behind
    a top-k, (N, k), float; of a backbone without classifier its first output. indices: (N, k) of
    the classes behind a top-k, else None. others: further outputs of a backbone.
    classes: how many there are; None behind a top-k where nothing else says it. preparation: from
    a picture to the image.
    """

    image: TensorSpec
    scores: TensorSpec
    indices: TensorSpec | None
    graph_io: GraphIO
    classes: int | None
    preparation: Preparation
    others: tuple[TensorSpec, ...] = ()

    @property
    def batch(self) -> int | None:
        """Images at a time; None where that is free."""
        return self.image.shape[0]

    @property
    def columns(self) -> int:
        """Values for each image: its classes, or the best of them."""
        columns = self.scores.shape[1]
        assert columns is not None  # read_signature refuses others
        return columns

    def activation(self, asked: Activation | None = None) -> Activation:
        """What makes probabilities of the model's logits, in the graph or behind it.

        asked: None is the graph's own, for logits a softmax, for one output a sigmoid. Raises
        UsageError where the graph has another.
        """
        return choose_activation(self.graph_io.tail, self.classes, asked)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """All it gives."""
        ranks = () if self.indices is None else (self.indices,)
        return (self.scores, *ranks, *self.others)


def choose_activation(tail: Tail, classes: int | None, asked: Activation | None) -> Activation:
    """As `Signature.activation`, of what a graph gives; classes: None is not known."""
    if not tail.classifies and asked is not None:
        raise UsageError(
            f"activation makes probabilities of logits, and the artifact gives {tail.value}; "
            "leave it out"
        )
    if tail is Tail.LOGITS:
        usual = Activation.SIGMOID if classes == 1 else Activation.SOFTMAX
        if asked is Activation.SOFTMAX and classes == 1:
            raise UsageError(
                "activation is softmax, and the model has one output, whose softmax is 1 for "
                "every picture; give sigmoid, or leave it out"
            )
        return asked or usual
    own = Activation.SIGMOID if tail is Tail.SIGMOID else Activation.SOFTMAX
    if asked not in (None, own):
        raise UsageError(
            f"activation is {asked.value}, and the artifact gives probabilities of its own "
            f"{own.value}; leave it out, or export the model without a tail"
        )
    return own


def read_signature(
    name: object,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    graph_io: GraphIO,
    classes: int | None,
    preparation: Preparation | None = None,
) -> Signature:
    """The tensors of a classifier in their roles, by dtype and shape, whatever their order.

    name: of the artifact, for messages. classes: of the model, where its manifest has them.
    preparation: None is the released models'.
    Raises ArtifactError where these are not the tensors of ``graph_io`` and ``classes``.
    """
    shape = graph_io.input_shape(inputs[0]) if len(inputs) == 1 else None
    # what no manifest describes is taken for a model of colours
    if shape is None or shape[0] != (3 if preparation is None else preparation.channels):
        expected = "uint8 (N, H, W, 3)" if graph_io.embed_preprocess else "float32 (N, 3, H, W)"
        raise ArtifactError(
            f"{name} takes {_listed(inputs)}; expected pictures, {expected}: use a classifier that "
            "t2t-deploy exported"
        )
    prepared = (preparation or USUAL).fitted(shape[0], shape[1:])
    if not graph_io.tail.classifies:
        if not outputs or any(None in spec.shape[1:] for spec in outputs):
            raise ArtifactError(f"{name} gives {_listed(outputs)}; expected tensors of fixed sizes")
        return Signature(inputs[0], outputs[0], None, graph_io, None, prepared, tuple(outputs[1:]))
    rows = [spec for spec in outputs if len(spec.shape) == 2 and spec.shape[1] is not None]
    scores = [spec for spec in rows if spec.dtype in ("float32", "float16")]
    indices = [spec for spec in rows if spec.dtype in ("int64", "int32")]
    ranked = graph_io.tail is Tail.TOPK
    if (len(outputs), len(scores), len(indices)) != (1 + ranked, 1, ranked) or (
        ranked and indices[0].shape[1] != scores[0].shape[1]
    ):
        expected = "probabilities (N, k) and indices (N, k)" if ranked else "scores (N, classes)"
        raise ArtifactError(
            f"{name} gives {_listed(outputs)}; expected {expected} of the tail "
            f"{graph_io.tail.value}: use a classifier that t2t-deploy exported"
        )
    found = classes if ranked else scores[0].shape[1]
    if classes not in (None, found):
        raise ArtifactError(f"{name} gives {scores[0]}, its manifest says {classes} classes")
    if found == 1 and graph_io.tail in (Tail.SOFTMAX, Tail.TOPK):
        raise ArtifactError(
            f"{name} gives the softmax of one output, which is 1 for every picture; export the "
            "model with --tail sigmoid"
        )
    ranks = indices[0] if ranked else None
    return Signature(inputs[0], scores[0], ranks, graph_io, found, prepared)


def _listed(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "nothing"


@dataclass(frozen=True, slots=True)
class ClassifierRequest:
    """Everything needed to open a classifier, in this process or another.

    batch: images at a time where the session's batch is free. profile: the batches that an engine
    takes; None where there is no such limit. classes: of the model, where its manifest has them.
    preparation: None is the released models'. activation: as of `Signature.activation`.
    """

    session: SessionRequest
    graph_io: GraphIO = BARE
    batch: int = DEFAULT_BATCH
    profile: ShapeProfile | None = None
    classes: int | None = None
    preparation: Preparation | None = None
    activation: Activation | None = None


class Classifier(contextlib.AbstractContextManager["Classifier"]):
    """An open session that takes pixels and gives classes.

    Raises ArtifactError where the session's inputs or outputs are not those of the request,
    UsageError for an activation that is not theirs.
    """

    def __init__(self, session: Session, request: ClassifierRequest) -> None:
        self._session = session
        self.signature = read_signature(
            "the artifact",
            session.inputs,
            session.outputs,
            request.graph_io,
            request.classes,
            request.preparation,
        )
        if not self.signature.graph_io.tail.classifies:
            raise ArtifactError(
                f"the artifact gives {self.signature.graph_io.tail.value} and no classes; open it "
                "with t2t_deploy.load_session, or export a classifier"
            )
        self.activation = self.signature.activation(request.activation)
        fixed, profile = self.signature.batch, request.profile
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

    def classify(self, pixels: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``top`` best classes of (n, H, W, C) uint8 images, n from 1 to ``batch``.

        Returns (n, top) int64 classes, best first, the lower class first among equal values, and
        their probabilities, (n, top) float32, computed from logits in float64. The probabilities
        are NaN for an image for which the session gave NaN or infinity: it has no class.
        """
        signature, count = self.signature, len(pixels)
        pixels = fill_batch(pixels, self._least)
        embedded = signature.graph_io.embed_preprocess
        prepared = signature.preparation
        taken = np.ascontiguousarray(pixels) if embedded else prepared.normalise(pixels)
        outputs = self._session.run({signature.image.name: taken})
        scores = outputs[signature.scores.name][:count]
        finite = np.isfinite(scores).all(axis=1)
        if signature.indices is not None:
            indices = outputs[signature.indices.name][:count, :top].astype(np.int64)
            probabilities = scores[:, :top]
        else:
            values = np.where(finite[:, None], scores, 0).astype(np.float64)
            indices = np.argsort(-values, axis=1, kind="stable")[:, :top]
            shares = values
            if signature.graph_io.tail is Tail.LOGITS:
                shares = (sigmoid if self.activation is Activation.SIGMOID else softmax)(values)
            probabilities = np.take_along_axis(shares, indices, axis=1)
        return indices, np.where(finite[:, None], probabilities, np.nan).astype(np.float32)

    def close(self) -> None:
        """Free the session."""
        self._session.close()

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


def top_count(asked: int | None, classifier: Classifier) -> int:
    """How many classes to give; None is the default. Raises UsageError beyond what there is."""
    columns = classifier.signature.columns
    if asked is None:
        return min(DEFAULT_TOP, columns)
    if asked > columns:
        raise UsageError(
            f"--top is {asked}; the artifact gives {columns} classes: ask for up to that many"
        )
    return asked


@dataclass(frozen=True, slots=True)
class RankedClass:
    """A class of an image. label: None where nothing names the classes."""

    index: int
    label: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class PredictedImage:
    """An image and its classes, best first, or why it has none.

    image: its path; bytes that are no UTF-8 are surrogates in it. unreadable: whether it could not
    be read; else what the artifact gave are no numbers.
    """

    image: str
    top: tuple[RankedClass, ...] = ()
    error: str | None = None
    unreadable: bool = False

    @property
    def shown(self) -> str:
        """Its path as it is printed and written."""
        return shown_name(self.image)


def classify_images(
    classifier: Classifier,
    images: Iterable[str],
    read: Read,
    *,
    top: int,
    readers: int,
    labels: Sequence[str] = (),
) -> Generator[PredictedImage, None, None]:
    """The classes of each image, in order; a few batches are held at any time.

    read: makes (H, W, C) uint8 of an image, or raises ImageError. readers: threads that do so
    while the session computes; 0 reads in this one. labels: of all classes, if there are any.
    """

    def classified(
        names: list[str], found: list[np.ndarray | ImageError]
    ) -> Iterator[PredictedImage]:
        pixels = [one for one in found if not isinstance(one, ImageError)]
        rows = zip(*classifier.classify(np.stack(pixels), top), strict=True) if pixels else iter(())
        for name, one in zip(names, found, strict=True):
            if isinstance(one, ImageError):
                yield PredictedImage(name, error=str(one), unreadable=True)
                continue
            indices, probabilities = next(rows)
            if np.isnan(probabilities).any():
                yield PredictedImage(name, error=NOT_FINITE)
                continue
            ranked = (
                # through text: the shortest decimals that mean this float32
                RankedClass(index, labels[index] if labels else None, float(str(share)))
                for index, share in zip(indices.tolist(), probabilities, strict=True)
            )
            yield PredictedImage(name, tuple(ranked))

    with contextlib.ExitStack() as stack:
        batches = chunks(images, classifier.batch)
        if readers == 0:
            for names in batches:
                found = [_read(read, name) for name in names]
                yield from classified(names, found)
            return
        pool = ThreadPoolExecutor(readers, thread_name_prefix="t2t-read")
        stack.callback(pool.shutdown, cancel_futures=True)
        ahead: deque[tuple[list[str], list[Future[np.ndarray | ImageError]]]] = deque()
        # behind the last batch, empty ones push out those that are being read
        for names in itertools.chain(batches, itertools.repeat([], _BATCHES_AHEAD)):
            ahead.append((names, [pool.submit(_read, read, name) for name in names]))
            if len(ahead) > _BATCHES_AHEAD:
                names, reading = ahead.popleft()
                found = [future.result() for future in reading]
                yield from classified(names, found)


def chunks(names: Iterable[str], size: int) -> Iterator[list[str]]:
    """Names in lists of ``size``, the last one shorter; one list is held at a time."""
    rest = iter(names)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def _read(read: Read, name: str) -> np.ndarray | ImageError:
    try:
        return read(name)
    except ImageError as err:
        return err
