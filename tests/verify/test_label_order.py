"""Accuracy that is no better than chance, and orders of labels that would be better."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from t2t_deploy.pictures import ClassOrder, FolderClasses
from t2t_deploy.verify import Accuracy, AccuracySum, labels_in_doubt
from t2t_deploy.verify._accuracy import near_chance


def accuracy(labels: np.ndarray, found: np.ndarray, classes: int) -> Accuracy:
    total = AccuracySum(classes)
    total.add(np.eye(classes, dtype=np.float32)[found], labels, None)
    return total.result()


@pytest.mark.parametrize(
    ("right", "judged", "classes", "near"),
    [
        (24, 240, 10, True),
        (31, 240, 10, True),  # P(X >= 31) is 8.5 %
        (33, 240, 10, False),  # 3.9 %
        (0, 240, 10, True),
        (240, 240, 10, False),
        (0, 3, 10, False),  # too few to say so
        (0, 5, 10, True),
        (2, 4, 2, False),
        (10, 20, 2, True),
        (1, 50, 1000, False),
        (50, 50_000, 1000, True),
        (40_000, 50_000, 1000, False),
        (0, 0, 10, False),
        (5, 5, 1, False),
    ],
)
def test_chance_is_told_from_skill_at_95_percent(
    right: int, judged: int, classes: int, near: bool
) -> None:
    assert near_chance(right, judged, classes) is near


def test_the_tail_is_that_of_the_binomial_distribution() -> None:
    for right in range(21):
        tail = sum(comb(20, k) * 0.25**k * 0.75 ** (20 - k) for k in range(right, 21))
        skill = sum(comb(20, k) * 0.625**k * 0.375 ** (20 - k) for k in range(right + 1))
        assert near_chance(right, 20, 4) is (tail > 0.05 > skill)


def test_labels_in_another_order_are_found() -> None:
    """The text order of 0 to 11 where the natural one is right: 17 % agree, more than chance."""
    names = sorted(map(str, range(12)))
    text, natural = tuple(range(12)), tuple(map(int, names))
    folder = np.repeat(np.arange(12), 20)
    found = np.array(natural)[folder]
    orders = {ClassOrder.TEXT: text, ClassOrder.NATURAL: natural}
    wrong = FolderClasses(text, {ClassOrder.NATURAL: natural})
    doubt = labels_in_doubt(accuracy(np.array(text)[folder], found, 12), wrong)
    assert doubt is not None
    assert "right on 40 of 240 pictures (16.67%), and on 240 with class folders in natural" in doubt
    assert "give class order natural" in doubt
    right = FolderClasses(natural, orders)
    assert labels_in_doubt(accuracy(found, found, 12), right) is None


def test_chance_without_a_better_order() -> None:
    stream = np.random.default_rng(0)
    labels, found = stream.integers(0, 10, (2, 300))
    doubt = labels_in_doubt(accuracy(labels, found, 10), FolderClasses(tuple(range(10)), {}))
    assert doubt is not None and "which is not above chance (10.00%) at 95 %: the labels" in doubt


def test_nothing_is_doubted_without_labels_or_numbers() -> None:
    known = FolderClasses((0, 1), {})
    ones = np.ones(40, np.int64)
    assert labels_in_doubt(accuracy(ones, 1 - ones, 2), known) is not None
    assert labels_in_doubt(accuracy(ones, 1 - ones, 2), None) is None
    total = AccuracySum(2)
    total.add(np.full((40, 2), np.nan), ones, None)
    assert labels_in_doubt(total.result(), known) is None
