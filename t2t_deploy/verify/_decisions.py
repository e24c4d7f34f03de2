"""How well scores answer questions with yes or no: of one output, or of several labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t2t_deploy._codec import to_plain


@dataclass(frozen=True, slots=True)
class ClassDecisions:
    """Figures of one class. positives: pictures that have it.

    auc: the share of pairs of a picture with the class and one without that stand in the right
    order; average_precision: precision, averaged over the recall of every threshold; None where no
    picture, or for auc every picture, has the class. f1: of the decisions, None likewise.
    """

    positives: int
    accuracy: float
    auc: float | None
    average_precision: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class Decisions:
    """Figures of yes-or-no decisions, of several classes their mean over those that have one.

    threshold: the least probability that is a yes. accuracy: share of right decisions, over all
    pictures and classes. classes: each of them.
    """

    threshold: float
    accuracy: float
    auc: float | None
    average_precision: float | None
    f1: float | None
    classes: tuple[ClassDecisions, ...]

    def to_dict(self) -> dict[str, Any]:
        """The ``decisions`` object of the JSON output."""
        values: dict[str, Any] = to_plain(self)
        return values


@dataclass(slots=True)
class DecisionSum:
    """Keeps the scores of all pictures, which their order needs: 5 bytes a picture and class.

    threshold: the least probability that is a yes. cut: the score of it, a logit or a probability.
    """

    threshold: float
    cut: float
    _scores: list[np.ndarray] = field(default_factory=list)
    _truth: list[np.ndarray] = field(default_factory=list)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Which of the scores, (n, classes), are a yes; those that are no numbers are none."""
        return np.asarray(scores >= self.cut)

    def add(self, scores: np.ndarray, truth: np.ndarray) -> None:
        """Add scores and truth, 0 or 1, (n, classes) both."""
        self._scores.append(scores.astype(np.float32))
        self._truth.append(truth.astype(np.int8))

    def merge(self, other: DecisionSum) -> None:
        """Add what another sum, of other pictures, has."""
        self._scores += other._scores
        self._truth += other._truth

    def result(self) -> Decisions | None:
        """The figures so far; None without any.

        A picture whose scores are not all finite is wrong in each decision, and in every pair.
        """
        if not self._scores:
            return None
        scores, truth = np.concatenate(self._scores), np.concatenate(self._truth).astype(bool)
        broken = ~np.isfinite(scores).all(axis=1)
        scores[broken] = np.where(truth[broken], -np.inf, np.inf)
        right = self.decide(scores) == truth
        classes = tuple(
            ClassDecisions(
                int(own.sum()),
                float(correct.mean()),
                area_under_curve(some, own),
                average_precision(some, own),
                f1_score(self.decide(some), own),
            )
            for some, own, correct in zip(scores.T, truth.T, right.T, strict=True)
        )
        return Decisions(
            self.threshold,
            float(right.mean()),
            _mean(one.auc for one in classes),
            _mean(one.average_precision for one in classes),
            _mean(one.f1 for one in classes),
            classes,
        )


def cut_of_logits(threshold: float) -> float:
    """The logit whose sigmoid is a threshold between 0 and 1."""
    return math.log(threshold / (1 - threshold))


def area_under_curve(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve of (n,) scores and booleans; equal scores are half in order."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which]  # from 1, equal scores their mean
    least = positives * (positives + 1) / 2
    return float((ranks[truth].sum() - least) / (positives * negatives))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Precision at each threshold, weighed by the recall it adds, of (n,) scores and booleans."""
    positives = int(truth.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    ends = np.append(np.nonzero(np.diff(scores[order]))[0], len(scores) - 1)  # of equal scores
    recall = hits[ends] / positives
    return float((np.diff(recall, prepend=0.0) * hits[ends] / (ends + 1)).sum())


def f1_score(decided: np.ndarray, truth: np.ndarray) -> float | None:
    """Harmonic mean of precision and recall of (n,) booleans; None where nothing is true."""
    if not truth.any():
        return None
    return float(2 * (decided & truth).sum() / (decided.sum() + truth.sum()))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
