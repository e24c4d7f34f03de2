"""Pixels into what a session takes, its outputs into classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2t_deploy.errors import ArtifactError, UsageError
from t2t_deploy.images import normalise
from t2t_deploy.runtime import ClosingSession, SessionRequest, check_feeds
from t2t_deploy.serving import Classifier, ClassifierRequest
from t2t_deploy.serving import wanted_top as wanted
from t2t_deploy.types import BARE, GraphIO, ShapeProfile, Tail, TensorSpec

SIZE = 4
LOGITS = np.array([[0.0, 2.0, 2.0, -1.0], [5.0, 4.0, 3.0, 2.0], [0.0, 0.0, 0.0, 9.0]], np.float32)


class FakeSession(ClosingSession):
    """Checks what it is fed as real sessions do, keeps it, and answers by ``compute``."""

    backend = "fake"

    def __init__(
        self,
        taken: TensorSpec,
        given: tuple[TensorSpec, ...],
        compute: Callable[[np.ndarray], dict[str, np.ndarray]],
    ) -> None:
        self.inputs, self.outputs = (taken,), given
        self._compute = compute
        self.fed: list[np.ndarray] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        (array,) = feeds.values()
        self.fed.append(array)
        return self._compute(array)

    def close(self) -> None: ...


def request(form: GraphIO, **fields: Any) -> ClassifierRequest:
    return ClassifierRequest(SessionRequest("fake", Path("fake.onnx")), form, **fields)


def spec(name: str, *shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def planes(batch: int | None = None) -> TensorSpec:
    return spec("image", batch, 3, SIZE, SIZE)


def logits_session(batch: int | None = None) -> FakeSession:
    return FakeSession(
        planes(batch),
        (spec("logits", batch, 4),),
        lambda fed: {"logits": np.resize(LOGITS, (len(fed), 4))},
    )


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_logits_become_probabilities_and_the_lower_of_equal_classes_is_first() -> None:
    found = Classifier(logits_session(), request(BARE)).classify(pixels(3), 2)
    np.testing.assert_array_equal(found.indices, [[1, 2], [0, 1], [3, 0]])
    shares = np.exp(LOGITS.astype(np.float64))
    shares /= shares.sum(axis=1, keepdims=True)
    wanted_shares = np.take_along_axis(shares, found.indices, axis=1).astype(np.float32)
    np.testing.assert_array_equal(found.probabilities, wanted_shares)
    assert found.finite.all()


def test_planes_are_normalised_pixels() -> None:
    session = logits_session()
    shown = pixels(3)
    Classifier(session, request(BARE)).classify(shown, 1)
    np.testing.assert_array_equal(session.fed[0], normalise(shown))


def test_a_graph_that_normalises_inside_is_fed_pixels() -> None:
    session = FakeSession(
        spec("image", None, SIZE, SIZE, 3, dtype="uint8"),
        (spec("logits", None, 4),),
        lambda fed: {"logits": LOGITS[: len(fed)]},
    )
    classifier = Classifier(session, request(GraphIO(embed_preprocess=True)))
    shown = pixels(3)
    assert classifier.classify(shown, 1).indices.tolist() == [[1], [0], [3]]
    assert classifier.size == SIZE
    np.testing.assert_array_equal(session.fed[0], shown)


def test_probabilities_are_taken_as_they_are() -> None:
    shares = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    session = FakeSession(
        planes(), (spec("probabilities", None, 4),), lambda _: {"probabilities": shares}
    )
    classifier = Classifier(session, request(GraphIO(tail=Tail.SOFTMAX)))
    found = classifier.classify(pixels(1), 3)
    assert found.indices.tolist() == [[3, 2, 1]]
    np.testing.assert_array_equal(found.probabilities, shares[:, [3, 2, 1]])


def test_the_best_classes_are_taken_as_they_are() -> None:
    """The outputs are found by name, whatever their order."""
    shares = np.array([[0.7, 0.2]], np.float32)
    session = FakeSession(
        planes(),
        (spec("indices", None, 2, dtype="int64"), spec("probabilities", None, 2)),
        lambda _: {"indices": np.array([[8, 3]]), "probabilities": shares},
    )
    classifier = Classifier(session, request(GraphIO(tail=Tail.TOPK)))
    found = classifier.classify(pixels(1), 2)
    assert found.indices.tolist() == [[8, 3]]
    np.testing.assert_array_equal(found.probabilities, shares)
    assert wanted(None, classifier) == 2
    with pytest.raises(UsageError, match="--top is 3; the artifact gives 2 classes"):
        wanted(3, classifier)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_picture_without_numbers_has_no_class(bad: float) -> None:
    logits = LOGITS.copy()
    logits[1, 2] = bad
    session = FakeSession(planes(), (spec("logits", None, 4),), lambda _: {"logits": logits})
    found = Classifier(session, request(BARE)).classify(pixels(3), 1)
    assert found.finite.tolist() == [True, False, True]
    assert found.indices[[0, 2]].tolist() == [[1], [3]]


def test_a_fixed_batch_is_filled() -> None:
    session = logits_session(batch=3)
    classifier = Classifier(session, request(BARE, batch=8))
    assert classifier.batch == 3
    shown = pixels(2)
    assert classifier.classify(shown, 1).indices.tolist() == [[1], [0]]
    np.testing.assert_array_equal(session.fed[0], normalise(shown[[0, 1, 1]]))


@pytest.mark.parametrize(
    ("profile", "asked", "batch", "fed"),
    [("2:4:6", 8, 6, 2), ("2:4:6", 1, 2, 2), ("1:8:32", 8, 8, 1)],
)
def test_an_engine_is_fed_what_its_profile_takes(
    profile: str, asked: int, batch: int, fed: int
) -> None:
    session = logits_session()
    form = request(BARE, batch=asked, profile=ShapeProfile.parse(profile))
    classifier = Classifier(session, form)
    assert classifier.batch == batch
    assert len(classifier.classify(pixels(1), 1).indices) == 1
    assert len(session.fed[0]) == fed


@pytest.mark.parametrize(
    ("form", "taken", "given", "message"),
    [
        (BARE, spec("image", None, 4), (spec("logits", None, 4),), r"\(N, 3, S, S\) float"),
        (BARE, spec("image", None, 3, 4, 5), (spec("logits", None, 4),), "expected pic"),
        (
            GraphIO(embed_preprocess=True),
            planes(),
            (spec("logits", None, 4),),
            r"image float32 \(N, 3, 4, 4\) is what the artifact takes; expected pictures \(N, S",
        ),
        (BARE, planes(), (spec("map", None, 4, 4, 4),), "is what the artifact gives; exp"),
        (BARE, planes(), (spec("logits", None, None),), r"expected logits \(N, classes\)"),
        (GraphIO(tail=Tail.TOPK), planes(), (spec("logits", None, 4),), "probabilities"),
    ],
)
def test_other_ends_are_refused(
    form: GraphIO, taken: TensorSpec, given: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        Classifier(FakeSession(taken, given, lambda _: {}), request(form))


def test_the_form_is_read_from_a_manifest() -> None:
    assert GraphIO.of_details({}) == BARE
    details = {"image_input": "uint8_nhwc", "tail": "topk"}
    assert GraphIO.of_details(details) == GraphIO(embed_preprocess=True, tail=Tail.TOPK)
    with pytest.raises(
        ArtifactError,
        match="tail 'argmax'; known are float32_nchw, uint8_nhwc and logits, softmax, topk",
    ):
        GraphIO.of_details({"tail": "argmax"})
