"""Accuracy, agreement, error and confusion of logits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2t_deploy.types import Tail, TensorSpec, softmax
from t2t_deploy.verify import Accuracy, AccuracyRunner, AccuracySum

from ..sessions import FakeSession


def one(values: int, classes: int) -> np.ndarray:
    """Logits that are 1 for one class and fall off with the distance to it."""
    return 1 - np.abs(np.arange(classes) - values) / np.float32(classes)


def figures(
    logits: np.ndarray,
    labels: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    *,
    batch: int = 1000,
) -> Accuracy:
    total = AccuracySum(logits.shape[1])
    for start in range(0, len(logits), batch):
        parts = [None if a is None else a[start : start + batch] for a in (labels, reference)]
        total.add(logits[start : start + batch], parts[0], parts[1])
    return total.result()


def test_top1_and_top5() -> None:
    """Of eight classes in falling order: the first, the fifth and the sixth."""
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (3, 1))
    found = figures(logits, np.array([0, 4, 5]))
    assert (found.images, found.top1, found.top5) == (3, 1 / 3, 2 / 3)
    assert (found.agreement, found.rel_l2_mean, found.rel_l2_max) == (None, None, None)
    assert found.confusion[[0, 4, 5], 0].tolist() == [1, 1, 1] and found.confusion.sum() == 3


def test_of_equal_logits_the_lower_class_is_found() -> None:
    """As `argmax` says, so that a constant output is right on one class, not on all."""
    logits = np.zeros((10, 10), np.float32)
    found = figures(logits, np.arange(10))
    assert (found.top1, found.top5) == (0.1, 0.5)
    assert found.confusion[:, 0].tolist() == [1] * 10


def test_agreement_and_error() -> None:
    reference = np.array([[3, 4], [3, 4], [0, 5]], np.float32)
    logits = np.array([[3, 4], [4, 3], [0, 4]], np.float32)
    found = figures(logits, None, reference)
    assert found.agreement == pytest.approx(2 / 3)
    assert found.rel_l2_mean == pytest.approx((0 + 2**0.5 / 5 + 1 / 5) / 3)
    assert found.rel_l2_max == pytest.approx(2**0.5 / 5)
    assert (found.top1, found.top5) == (None, None)
    # without labels, rows are the classes that the reference finds
    assert found.confusion.tolist() == [[0, 0], [1, 2]]


def test_labels_are_the_rows_where_there_are_any() -> None:
    logits = np.stack([one(2, 3), one(1, 3)])
    found = figures(logits, np.array([0, 1]), np.stack([one(2, 3), one(2, 3)]))
    assert found.confusion.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert (found.top1, found.agreement) == (0.5, 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classes", [3, 8])
def test_logits_that_are_no_numbers_are_wrong(bad: float, classes: int) -> None:
    """Even where the label's logit is the largest, and where five classes are all of them."""
    logits = np.stack([one(0, classes), one(1, classes), one(2, classes)])
    reference = logits.copy()
    logits[1, 2] = bad
    found = figures(logits, np.array([0, 1, 2]), reference)
    assert found.non_finite == 1
    assert found.top1 == found.top5 == found.agreement == 2 / 3
    assert (found.rel_l2_mean, found.rel_l2_max) == (None, None)
    assert found.confusion.diagonal().tolist() == [1, 0, 1] + [0] * (classes - 3)
    assert found.confusion.sum() == 2


def test_no_agreement_with_a_reference_that_is_no_number() -> None:
    reference = np.full((2, 3), np.nan, np.float32)
    for logits, non_finite in ((reference, 2), (np.stack([one(0, 3)] * 2), 0)):
        found = figures(logits, None, reference)
        assert (found.agreement, found.non_finite, found.rel_l2_max) == (0.0, non_finite, None)
        assert found.confusion.sum() == 0


def test_nothing_at_all() -> None:
    found = AccuracySum(3).result()
    assert (found.images, found.top1, found.agreement, found.rel_l2_max) == (0, None, None, None)
    empty = np.empty((0, 3), np.float32)
    assert figures(empty, np.empty(0, np.int64), empty).images == 0


@given(seed=st.integers(0, 2**16), batch=st.integers(1, 12), classes=st.integers(1, 12))
def test_batches_do_not_matter(seed: int, batch: int, classes: int) -> None:
    """Against the definitions on all pictures at once."""
    stream = np.random.default_rng(seed)
    logits = stream.integers(0, 4, (12, classes)).astype(np.float32)
    reference = logits + stream.integers(0, 2, logits.shape)
    labels = stream.integers(0, classes, 12)
    found = figures(logits, labels, reference, batch=batch)
    order = np.argsort(-logits, axis=1, kind="stable")
    assert found.top1 == (order[:, 0] == labels).mean()
    assert found.top5 == (order[:, :5] == labels[:, None]).any(axis=1).mean()
    assert found.agreement == (logits.argmax(axis=1) == reference.argmax(axis=1)).mean()
    assert found.confusion.diagonal().sum() / 12 == found.top1
    assert found.confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=classes).tolist()


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    """Also after a journey between processes."""
    stream = np.random.default_rng(0)
    logits = stream.standard_normal((30, 6)).astype(np.float32)
    logits[7, 3] = np.nan
    reference = logits + stream.standard_normal((30, 6)).astype(np.float32) / 4
    labels = stream.integers(0, 6, 30)
    whole, parts = AccuracySum(6), AccuracySum(6)
    whole.add(logits, labels, reference)
    for start, stop in ((0, 11), (11, 12), (12, 30)):
        part = AccuracySum(6)
        part.add(logits[start:stop], labels[start:stop], reference[start:stop])
        parts.merge(pickle.loads(pickle.dumps(part)))
    one, other = whole.result(), parts.result()
    np.testing.assert_array_equal(one.confusion, other.confusion)
    assert one.confusion.sum() == 29 and one.non_finite == 1
    for name in ("images", "top1", "top5", "agreement", "non_finite", "rel_l2_max"):
        assert getattr(one, name) == getattr(other, name)


def test_a_sum_travels_light() -> None:
    """A thousand classes have a million pairs, 8 MB; a block of pictures meets few."""
    total = AccuracySum(1000)
    total.add(np.eye(8, 1000, dtype=np.float32), np.arange(8), None)
    assert len(pickle.dumps(total)) < 2000


# -- sessions that give probabilities ------------------------------------------------------------


def fixed(**outputs: np.ndarray) -> FakeSession:
    """Gives the same outputs for every picture."""

    def answer(image: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.repeat(a, len(image), 0) for name, a in outputs.items()}

    given = (TensorSpec(name, str(a.dtype), (None, a.shape[1])) for name, a in outputs.items())
    return FakeSession(answer, TensorSpec("image", "float32", (None, 3, 4, 4)), *given)


REFERENCE = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05]], np.float32))
TWO = np.array([[0.4, 0.3]], np.float32)


@pytest.mark.parametrize(
    ("tail", "label", "outputs", "agreement", "error"),
    [
        (Tail.SOFTMAX, 0, {"probabilities": softmax(REFERENCE).astype(np.float32)}, 1.0, 0.0),
        # what is not among the largest counts for nothing; the reference's own class always counts
        (Tail.TOPK, 0, {"probabilities": TWO, "indices": np.array([[0, 1]])}, 1.0, 0.0),
        (
            *(Tail.TOPK, 1, {"probabilities": TWO, "indices": np.array([[1, 2]])}, 0.0),
            # (0, 0.4, 0.3) where the reference has (0.4, 0.3, 0.15)
            np.sqrt(0.4**2 + 0.1**2 + 0.15**2) / np.sqrt(0.4**2 + 0.3**2 + 0.15**2),
        ),
    ],
)
def test_probabilities(
    tail: Tail, label: int, outputs: dict[str, np.ndarray], agreement: float, error: float
) -> None:
    runner = AccuracyRunner(fixed(**outputs), 1, AccuracySum(5), tail=tail)
    runner.add(np.zeros((1, 3, 4, 4), np.float32), np.array([label]), REFERENCE)
    found = runner.total.result()
    assert (found.top1, found.agreement) == (1.0, agreement)
    assert found.rel_l2_max == pytest.approx(error, rel=1e-5, abs=1e-6)
