"""Pixels into what a session takes, its outputs into classes, images through it in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from t2t_deploy.errors import ArtifactError, ImageError, UsageError
from t2t_deploy.runtime import SessionRequest
from t2t_deploy.serving import (
    Classifier,
    ClassifierRequest,
    RankedClass,
    classify_images,
    top_count,
)
from t2t_deploy.types import BARE, GraphIO, ShapeProfile, Tail, TensorSpec

from ..prepared import normalise
from ..sessions import FakeSession

SIZE = 4
LOGITS = np.array([[0.0, 2.0, 2.0, -1.0], [5.0, 4.0, 3.0, 2.0], [0.0, 0.0, 0.0, 9.0]], np.float32)
SHARES = np.exp(LOGITS.astype(np.float64))
SHARES /= SHARES.sum(axis=1, keepdims=True)


def spec(name: str, *shape: int | None, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


PLANES = spec("image", None, 3, SIZE, SIZE)
PIXELS = spec("image", None, SIZE, SIZE, 3, dtype="uint8")
SCORES = spec("logits", None, 4)
TOP = (spec("indices", None, 2, dtype="int64"), spec("probabilities", None, 2))


def fake_session(taken: TensorSpec = PLANES, *given: TensorSpec, **rows: Any) -> FakeSession:
    """Answers with these rows."""
    known = rows or {"logits": LOGITS}

    def answer(array: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.resize(one, (len(array), len(one[0]))) for name, one in known.items()}

    return FakeSession(answer, taken, *(given or (SCORES,)))


def classifier(session: FakeSession, graph_io: GraphIO = BARE, **fields: Any) -> Classifier:
    request = SessionRequest("fake", Path("fake.onnx"))
    return Classifier(session, ClassifierRequest(request, graph_io, **fields))


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def test_logits_become_probabilities_and_the_lower_of_equal_classes_is_first() -> None:
    indices, probabilities = classifier(fake_session()).classify(pixels(3), 2)
    np.testing.assert_array_equal(indices, [[1, 2], [0, 1], [3, 0]])
    expected = np.take_along_axis(SHARES, indices, axis=1).astype(np.float32)
    np.testing.assert_array_equal(probabilities, expected)


@pytest.mark.parametrize(("taken", "embedded"), [(PLANES, False), (PIXELS, True)])
def test_a_graph_is_fed_what_it_takes(taken: TensorSpec, embedded: bool) -> None:
    """Normalised planes, or pixels where it normalises inside."""
    session, given = fake_session(taken), pixels(3)
    opened = classifier(session, GraphIO(embed_preprocess=embedded))
    assert opened.classify(given, 1)[0].tolist() == [[1], [0], [3]]
    assert opened.signature.preparation.size == (SIZE, SIZE)
    np.testing.assert_array_equal(session.fed[0], given if embedded else normalise(given))


def test_probabilities_are_taken_as_they_are() -> None:
    shares = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)
    session = fake_session(PLANES, spec("probabilities", None, 4), probabilities=shares)
    indices, found = classifier(session, GraphIO(tail=Tail.SOFTMAX)).classify(pixels(1), 3)
    assert indices.tolist() == [[3, 2, 1]]
    np.testing.assert_array_equal(found, shares[:, [3, 2, 1]])


def test_the_best_classes_are_taken_as_they_are() -> None:
    """Whatever the order of the outputs."""
    shares = np.array([[0.7, 0.2]], np.float32)
    session = fake_session(PLANES, *TOP, indices=[[8, 3]], probabilities=shares)
    opened = classifier(session, GraphIO(tail=Tail.TOPK))
    indices, found = opened.classify(pixels(1), 2)
    assert indices.tolist() == [[8, 3]]
    np.testing.assert_array_equal(found, shares)
    assert (opened.signature.classes, top_count(None, opened)) == (None, 2)
    with pytest.raises(UsageError, match="--top is 3; the artifact gives 2 classes"):
        top_count(3, opened)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_without_numbers_has_no_class(bad: float) -> None:
    logits = LOGITS.copy()
    logits[1, 2] = bad
    indices, probabilities = classifier(fake_session(logits=logits)).classify(pixels(3), 1)
    assert np.isnan(probabilities[:, 0]).tolist() == [False, True, False]
    assert indices[[0, 2]].tolist() == [[1], [3]]


def test_a_fixed_batch_is_filled() -> None:
    session = fake_session(spec("image", 3, 3, SIZE, SIZE), spec("logits", 3, 4))
    opened, given = classifier(session, batch=8), pixels(2)
    assert opened.batch == 3
    assert opened.classify(given, 1)[0].tolist() == [[1], [0]]
    np.testing.assert_array_equal(session.fed[0], normalise(given[[0, 1, 1]]))


@pytest.mark.parametrize(
    ("profile", "asked", "batch", "fed"),
    [("2:4:6", 8, 6, 2), ("2:4:6", 1, 2, 2), ("1:8:32", 8, 8, 1)],
)
def test_an_engine_is_fed_what_its_profile_takes(
    profile: str, asked: int, batch: int, fed: int
) -> None:
    session = fake_session()
    opened = classifier(session, batch=asked, profile=ShapeProfile.parse(profile))
    assert opened.batch == batch
    assert len(opened.classify(pixels(1), 1)[0]) == 1
    assert len(session.fed[0]) == fed


@pytest.mark.parametrize(
    ("graph_io", "taken", "given", "message"),
    [
        (BARE, spec("image", None, 4), (SCORES,), r"expected pictures, float32 \(N, 3, H, W\)"),
        (BARE, spec("image", None, 4, 4, 3), (SCORES,), "expected pictures"),
        (
            GraphIO(embed_preprocess=True),
            PLANES,
            (SCORES,),
            r"takes image float32 \(N, 3, 4, 4\); expected pictures, uint8 \(N, H, W, 3\)",
        ),
        (BARE, PLANES, (spec("map", None, 4, 4, 4),), "the artifact gives map"),
        (BARE, PLANES, (spec("logits", None, None),), r"expected scores \(N, classes\)"),
        (BARE, PLANES, (spec("logits", None, 5),), "gives logits .* manifest says 4 classes"),
        (GraphIO(tail=Tail.TOPK), PLANES, (SCORES,), "expected probabilities .* the tail topk"),
    ],
)
def test_other_inputs_and_outputs_are_refused(
    graph_io: GraphIO, taken: TensorSpec, given: tuple[TensorSpec, ...], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        classifier(fake_session(taken, *given), graph_io, classes=4)


def test_the_form_is_read_from_a_manifest() -> None:
    assert GraphIO.of_details({}) == BARE
    details = {"image_input": "uint8_nhwc", "tail": "topk"}
    assert GraphIO.of_details(details) == GraphIO(embed_preprocess=True, tail=Tail.TOPK)
    with pytest.raises(
        ArtifactError,
        match="tail 'argmax'; known are float32_nchw, uint8_nhwc and logits, softmax, topk",
    ):
        GraphIO.of_details({"tail": "argmax"})


class Numbers(Classifier):
    """Gives an image's own number as its class."""

    def __init__(self) -> None:
        self.batch, self.size = 4, 2
        self.batches: list[int] = []

    def classify(self, pixels: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        self.batches.append(len(pixels))
        numbers = pixels[:, :1, 0, 0].astype(np.int64)
        return numbers, np.where(numbers == 13, np.nan, 0.1).astype(np.float32)


def numbered(name: str) -> np.ndarray:
    if name.startswith("bad"):
        raise ImageError(f"cannot read {name}")
    return np.full((2, 2, 3), int(name), np.uint8)


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_images_keep_their_order(readers: int) -> None:
    numbers = Numbers()
    names = ["0", "1", "bad2", "3", "4", "5", "13", "7", "bad8"]
    found = list(
        classify_images(numbers, names, numbered, top=1, readers=readers, labels="abcdefgh")
    )
    assert [image.image for image in found] == names
    ranked = [(RankedClass(index, "abcdefgh"[index], 0.1),) for index in range(8)]
    nothing = ()
    assert [image.top for image in found] == [
        *(ranked[0], ranked[1], nothing, ranked[3]),
        *(ranked[4], ranked[5], nothing, ranked[7], nothing),
    ]
    assert numbers.batches == [3, 4]
    assert [(one.error, one.unreadable) for one in found if one.error] == [
        ("cannot read bad2", True),
        ("the artifact gives NaN or infinity for this picture", False),
        ("cannot read bad8", True),
    ]


@pytest.mark.parametrize(("readers", "most"), [(0, 4), (2, 12)])
def test_few_images_are_held(readers: int, most: int) -> None:
    """However many there are: names are drawn and images read as results are taken."""
    drawn = 0

    def names() -> Iterator[str]:
        nonlocal drawn
        for drawn in range(1, 1_000_001):
            yield str(drawn % 10)

    found = classify_images(Numbers(), names(), numbered, top=1, readers=readers)
    for taken in range(1, 400):
        assert next(found).top[0].label is None
        assert drawn <= (taken + 3) // 4 * 4 + most - 4
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("t2t-read")]


def test_a_bug_is_no_unreadable_image() -> None:
    broken = Mock(side_effect=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        list(classify_images(Numbers(), ["0"], broken, top=1, readers=2))
