"""Figures of yes-or-no decisions: small examples written out, and scikit-learn's."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from t2t_deploy.types import Tail, TensorSpec, sigmoid
from t2t_deploy.verify import AccuracyRunner, AccuracySum, DecisionSum, cut_of_logits
from t2t_deploy.verify._decisions import area_under_curve, average_precision, f1_score

from ..sessions import FakeSession

TRUTH = np.array([0, 0, 1, 1], bool)
SCORES = np.array([0.1, 0.4, 0.35, 0.8])


def decided(threshold: float = 0.5) -> DecisionSum:
    return DecisionSum(threshold, cut_of_logits(threshold))


def test_area_under_the_curve() -> None:
    """Of four pairs one is in the wrong order."""
    assert area_under_curve(SCORES, TRUTH) == 0.75
    assert area_under_curve(-SCORES, TRUTH) == 0.25
    assert area_under_curve(np.zeros(4), TRUTH) == 0.5
    assert area_under_curve(np.array([0, 1, 1, 2]), TRUTH) == (1 + 1 + 1 + 0.5) / 4
    assert area_under_curve(SCORES, ~TRUTH & TRUTH) is None
    assert area_under_curve(SCORES, TRUTH | True) is None


def test_average_precision() -> None:
    """Found first, then third: precision 1 and 2/3 at half of the recall each."""
    assert average_precision(SCORES, TRUTH) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(np.zeros(4), TRUTH) == 0.5  # all at once
    assert average_precision(SCORES, TRUTH | True) == 1
    assert average_precision(SCORES, TRUTH & False) is None


def test_f1() -> None:
    """One of two found, and one that is none: precision and recall are a half."""
    assert f1_score(np.array([0, 1, 0, 1], bool), TRUTH) == 0.5
    assert f1_score(TRUTH & False, TRUTH) == 0
    assert f1_score(TRUTH, TRUTH & False) is None


def test_they_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    stream = np.random.default_rng(0)
    for _ in range(50):
        truth = np.append(stream.random(30) < 0.3, [True, False])
        scores = stream.integers(0, 8, 32).astype(float)  # many are equal
        yes = scores >= 4
        assert area_under_curve(scores, truth) == pytest.approx(
            metrics.roc_auc_score(truth, scores)
        )
        expected = metrics.average_precision_score(truth, scores)
        assert average_precision(scores, truth) == pytest.approx(expected)
        assert f1_score(yes, truth) == pytest.approx(metrics.f1_score(truth, yes))


def test_several_labels_are_averaged_over_classes_that_have_pictures() -> None:
    logits = np.array([[2, -1, -3], [-2, 1, -3], [1, -1, -3], [-1, -2, 3]], np.float32)
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    total = AccuracySum(3, decided())
    total.add(logits, truth, None)
    found = total.result()
    assert (found.top1, found.top5, found.agreement) == (None, None, None)
    assert found.decisions is not None and found.decisions.threshold == 0.5
    cat, dog, cow = found.decisions.classes
    assert (cat.positives, cat.accuracy, cat.auc, cat.f1) == (2, 0.5, 0.75, 0.5)
    assert (dog.positives, dog.accuracy, dog.auc, dog.average_precision, dog.f1) == (1, 1, 1, 1, 1)
    assert (cow.positives, cow.accuracy) == (0, 0.75)
    assert (cow.auc, cow.average_precision, cow.f1) == (None, None, None)
    assert found.decisions.accuracy == 0.75
    assert (found.decisions.auc, found.decisions.f1) == (0.875, 0.75)


def test_the_threshold_is_a_probability_of_logits_and_of_a_sigmoid() -> None:
    logits = np.array([[-1.0], [0.3], [1.2]], np.float32)
    of_logits = DecisionSum(0.6, cut_of_logits(0.6))
    of_shares = DecisionSum(0.6, 0.6)
    expected = [[False], [False], [True]]
    assert of_logits.decide(logits).tolist() == expected
    assert of_shares.decide(sigmoid(logits)).tolist() == expected


def test_one_output_agrees_by_its_decisions() -> None:
    """Of one output the largest is always the first: what is compared is on which side it is."""
    reference = np.array([[1.0], [-1.0], [0.1], [2.0]], np.float32)
    logits = np.array([[0.9], [-1.1], [-0.1], [2.1]], np.float32)
    total = AccuracySum(1, decided())
    total.add(logits, np.array([1, 0, 1, 0]), reference, 1.0)
    found = total.result()
    assert found.agreement == 0.75
    assert found.confusion.tolist() == [[1, 1], [1, 1]]
    assert found.rel_l2_max == pytest.approx(0.2)  # not 2, of the third picture's own logit
    assert found.decisions is not None and found.decisions.accuracy == 0.5


def test_a_picture_without_numbers_is_wrong_in_all() -> None:
    total = AccuracySum(1, decided())
    total.add(np.array([[np.nan], [3.0], [-2.0]], np.float32), np.array([1, 1, 0]), None)
    found = total.result().decisions
    assert found is not None and (found.accuracy, found.auc) == (2 / 3, 0.5)
    assert total.result().non_finite == 1


def test_sums_of_parts_travel_and_are_merged() -> None:
    stream = np.random.default_rng(1)
    logits = stream.standard_normal((12, 3)).astype(np.float32)
    truth = stream.integers(0, 2, (12, 3))
    whole, first, second = (AccuracySum(3, decided(0.4)) for _ in range(3))
    whole.add(logits, truth, logits)
    first.add(logits[:5], truth[:5], logits[:5])
    second.add(logits[5:], truth[5:], logits[5:])
    merged = pickle.loads(pickle.dumps(first))
    merged.merge(pickle.loads(pickle.dumps(second)))
    assert merged.result().decisions == whole.result().decisions
    empty = merged.emptied()
    assert empty.result().images == 0 and empty.result().decisions is None
    assert empty.decisions is not None and empty.decisions.threshold == 0.4


def test_a_sigmoid_tail_is_held_against_probabilities_of_the_reference() -> None:
    """All of them near zero, where the error of their own norm would be large."""
    logits = np.full((2, 3), -20, np.float32)
    session = FakeSession(
        lambda image: {"probabilities": sigmoid(image[:, 0, 0]).astype(np.float32)},
        TensorSpec("image", "float32", (None, 1, 1, 3)),
        TensorSpec("probabilities", "float32", (None, 3)),
    )
    total = AccuracySum(3, DecisionSum(0.5, 0.5))
    runner = AccuracyRunner(session, 2, total, tail=Tail.SIGMOID)
    runner.add((logits + 1)[:, None, None], None, logits)
    found = runner.total.result()
    assert found.agreement == 1 and found.rel_l2_max is not None and found.rel_l2_max < 1e-8
