"""Accuracy, agreement and error of sessions side by side: nothing is kept of a picture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._preparation import Preparation
from t2t_deploy._progress import Progress
from t2t_deploy.errors import counted
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import FolderClasses, LabelledSet
from t2t_deploy.runtime import Session
from t2t_deploy.types import INDICES_NAME, Tail, relative_errors, sigmoid, softmax
from t2t_deploy.verify._compare import outputs_of, typical_norm
from t2t_deploy.verify._decisions import Decisions, DecisionSum

TOP = 5


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What the logits of some pictures amount to; each share is of all the pictures.

    top1, top5: share whose label has the largest, or one of the five largest logits; None without
    labels. agreement: share with the reference's class; rel_l2_mean, rel_l2_max: `relative_errors`
    of pictures' logits against the reference's; None without a reference, the errors also where
    logits are NaN or infinite, which is counted in non_finite. Such pictures have no class.
    confusion: (classes, classes) int64, pictures by their class and the class found; a picture's
    class is its label, or the reference's class without labels.
    decisions: of one output or several labels, with labels; top1 and top5 are None then, agreement
    is the share of decisions that are the reference's, and confusion is of one output alone.
    """

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None
    rel_l2_mean: float | None
    rel_l2_max: float | None
    non_finite: int
    confusion: np.ndarray
    decisions: Decisions | None = None

    @property
    def measure(self) -> str:
        """What a loss of accuracy is of: top-1, AUC, average precision or agreement."""
        if self.decisions is not None:
            return "AUC" if len(self.decisions.classes) == 1 else "average precision"
        return "agreement" if self.top1 is None else "top-1"

    @property
    def score(self) -> float | None:
        """The figure of `measure`, 0..1; None where labels of one kind alone make none."""
        if self.decisions is not None:
            of_one = self.measure == "AUC"
            return self.decisions.auc if of_one else self.decisions.average_precision
        return self.agreement if self.top1 is None else self.top1

    def drop(self, reference: Accuracy | None) -> float | None:
        """Points of `measure` that are lost against the reference; None where there is no figure.

        Of agreement what is missing from all.
        """
        if self.measure == "agreement":
            return None if self.agreement is None else 100 * (1 - self.agreement)
        base = None if reference is None else reference.score
        return None if base is None or self.score is None else 100 * (base - self.score)


@dataclass(slots=True)
class AccuracySum:
    """Adds up batches; its size depends on the number of classes alone, but for ``decisions``.

    decisions: of one output or several labels; None where a picture has one class. _counts: of
    pictures, by what is counted. _error, _largest: sum and largest of their errors.
    """

    num_classes: int
    decisions: DecisionSum | None = None
    _counts: Counter[str] = field(default_factory=Counter)
    _error: float = 0.0
    _largest: float = 0.0
    _confusion: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        size = self.num_classes
        if self.decisions is not None:
            size = 2 if size == 1 else 0
        self._confusion = np.zeros((size, size), np.int64)

    def add(
        self,
        logits: np.ndarray,
        labels: np.ndarray | None,
        reference: np.ndarray | None,
        typical: float = 0.0,
    ) -> None:
        """Add a batch: logits and the reference's (n, classes), labels (n,), or 0 and 1 likewise.

        Labels, and the reference, are given with every batch or with none. typical: of the
        reference's, as of `relative_errors`.
        """
        finite = np.isfinite(logits).all(axis=1)
        self._counts.update(images=len(logits), non_finite=int((~finite).sum()))
        if reference is not None:
            self._counts.update(compared=len(reference))
            errors = relative_errors(logits, reference, typical)
            self._error += float(errors.sum())
            self._largest = max(self._largest, float(errors.max(initial=0.0)))
        if self.decisions is not None:
            self._add_decisions(self.decisions, logits, labels, reference, finite)
            return
        found, truth = predicted(logits), labels
        if labels is not None:
            before = ranks(logits, labels)
            best, near = (int(((before < most) & finite).sum()) for most in (1, TOP))
            self._counts.update(labelled=len(labels), top1=best, top5=near)
        if reference is not None:
            expected = predicted(reference)
            truth = expected if labels is None else labels
            self._counts.update(agreeing=int(((found == expected) & finite).sum()))
        if truth is not None:
            known = finite & (truth >= 0)
            np.add.at(self._confusion, (truth[known], found[known]), 1)

    def _add_decisions(
        self,
        decisions: DecisionSum,
        logits: np.ndarray,
        labels: np.ndarray | None,
        reference: np.ndarray | None,
        finite: np.ndarray,
    ) -> None:
        found = decisions.decide(logits)
        truth = None if labels is None else labels.reshape(len(logits), -1)
        if truth is not None:
            decisions.add(logits, truth)
        if reference is not None:
            expected = decisions.decide(reference)
            agreeing = int(((found == expected) & finite[:, None]).sum())
            self._counts.update(decided=expected.size, agreeing=agreeing)
            truth = expected if truth is None else truth
        if truth is not None and self.num_classes == 1:
            pairs = truth[finite, 0].astype(int), found[finite, 0].astype(int)
            np.add.at(self._confusion, pairs, 1)

    def emptied(self) -> AccuracySum:
        """A sum of the same kind, of no pictures."""
        kept = self.decisions
        return AccuracySum(
            self.num_classes, None if kept is None else DecisionSum(kept.threshold, kept.cut)
        )

    def merge(self, other: AccuracySum) -> None:
        """Add what another sum, of other pictures, has added up."""
        self._counts.update(other._counts)
        self._error += other._error
        self._largest = max(self._largest, other._largest)
        self._confusion += other._confusion
        if self.decisions is not None and other.decisions is not None:
            self.decisions.merge(other.decisions)

    def __getstate__(self) -> tuple[Any, ...]:
        """Small where few pictures were added: of a thousand classes most pairs were not met."""
        met = np.nonzero(self._confusion)
        sums = self.num_classes, self.decisions, self._counts, self._error, self._largest
        return (*sums, met, self._confusion[met])

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.num_classes, self.decisions, *sums, met, times = state
        self._counts, self._error, self._largest = sums
        self.__post_init__()
        self._confusion[met] = times

    def result(self) -> Accuracy:
        """The figures of all batches so far."""
        counts = self._counts
        error = _share(self._error, counts["compared"])
        sound = error is not None and np.isfinite(error)
        return Accuracy(
            images=counts["images"],
            top1=_share(counts["top1"], counts["labelled"]),
            top5=_share(counts["top5"], counts["labelled"]),
            agreement=_share(counts["agreeing"], counts["decided"] or counts["compared"]),
            rel_l2_mean=error if sound else None,
            rel_l2_max=self._largest if sound else None,
            non_finite=counts["non_finite"],
            confusion=self._confusion.copy(),
            decisions=None if self.decisions is None else self.decisions.result(),
        )


@dataclass(slots=True)
class AccuracyRunner:
    """An open session and what its logits add up to.

    batch: pictures at a time. tail: what the session gives; figures are of probabilities where it
    does not give logits.
    """

    session: Session
    batch: int
    total: AccuracySum
    remark: str | None = None
    tail: Tail = Tail.LOGITS

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        """Logits, or probabilities, (n, classes) of pictures (n, 3, S, S).

        Those of a top-k tail are zero but for the k largest. A fixed batch is filled by repeating.
        """
        outputs = outputs_of(self.session, pictures, self.batch)
        first = outputs[self.session.outputs[0].name]
        if self.tail is not Tail.TOPK:
            return first
        dense = np.zeros((len(first), self.total.num_classes), first.dtype)
        np.put_along_axis(dense, outputs[INDICES_NAME], first, axis=1)
        return dense

    def add(
        self,
        pictures: np.ndarray,
        labels: np.ndarray | None,
        reference: np.ndarray | None,
        typical: float = 0.0,
    ) -> None:
        """Add up a batch; reference: its logits, turned into what the session gives.

        typical: the norm of these logits, as of `relative_errors`.
        """
        found = self.logits(pictures)
        if reference is None or self.tail is Tail.LOGITS:
            self.total.add(found, labels, reference, typical)
            return
        if self.tail is Tail.SIGMOID:
            # where no class is likely all are near zero: undecided ones have this norm
            undecided = 0.5 * math.sqrt(reference.shape[1])
            self.total.add(found, labels, sigmoid(reference), undecided)
            return
        expected = softmax(reference)
        if self.tail is Tail.TOPK:
            # what the session leaves out counts for nothing, but for the reference's class
            kept = found > 0
            kept[np.arange(len(expected)), expected.argmax(axis=1)] = True
            expected = np.where(kept, expected, 0)
        self.total.add(found, labels, expected)


def run_pictures(
    runners: Sequence[AccuracyRunner],
    reference: AccuracyRunner | None,
    images: LabelledSet,
    preparation: Preparation,
    unreadable: dict[Path, str],
    progress: Progress,
) -> Assumed:
    """Take every picture through every session, reading it once; what was assumed of them.

    images: as of `LabelledSet.for_model`. preparation: of their input. unreadable: files that
    cannot be read are added to it.
    """
    # A common multiple, so that only the last batch of each session is short.
    everyone = [*runners, reference] if reference is not None else list(runners)
    step = math.lcm(*(runner.batch for runner in runners or everyone))
    done, assumed = 0, Assumed()
    typical = 0.0 if reference is None else typical_norm(reference.session)
    for batch in images.batches(preparation, step, assumed):
        unreadable.update(batch.unreadable)
        if len(batch.pictures):
            expected = None
            if reference is not None:
                expected = reference.logits(batch.pictures)
                reference.total.add(expected, batch.labels, expected, typical)
            for runner in runners:
                runner.add(batch.pictures, batch.labels, expected, typical)
        done += len(batch.pictures) + len(batch.unreadable)
        progress.progress("evaluating", done, len(images.paths))
    return assumed


def predicted(logits: np.ndarray) -> np.ndarray:
    """The class of each row of (n, classes), (n,) int64; -1 where a logit is NaN or infinite."""
    found = logits.argmax(axis=1)
    return np.where(np.isfinite(logits).all(axis=1), found, -1)


def ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes stand before the label's, (n,); among equal logits the lower class does."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    lower = np.arange(logits.shape[1]) < labels[:, None]
    before: np.ndarray = (logits > own) | ((logits == own) & lower)
    return np.asarray(before.sum(axis=1))


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


_LEVEL = 0.05


def near_chance(right: int, judged: int, classes: int) -> bool:
    """Whether top-1 is no better than chance at 95 %, on enough pictures to say so.

    Chance is a share of 1 / classes. No better: as many right ones come about by chance in more
    than 5 % of cases. Enough: a model halfway between chance and always right would have so few in
    less than 5 %.
    """
    if judged < 1 or classes < 2:
        return False
    chance = 1 / classes
    by_chance = _binomial(judged, chance)[right:].sum()
    by_skill = _binomial(judged, (1 + chance) / 2)[: right + 1].sum()
    return bool(by_chance > _LEVEL > by_skill)


def labels_in_doubt(accuracy: Accuracy, known: FolderClasses | None) -> str | None:
    """Why the float model's accuracy may be that of labels in another order, or None.

    known: how the pictures' folders are labelled.
    """
    if accuracy.top1 is None or known is None or accuracy.non_finite:
        return None
    right, classes = round(accuracy.top1 * accuracy.images), len(accuracy.confusion)
    better = [
        (int(accuracy.confusion[list(known.indices), list(other)].sum()), order)
        for order, other in known.others.items()
    ]
    most, order = max(better, key=lambda pair: pair[0], default=(0, None))
    # so many more, of those that are right in one order alone, is no chance at 95 %
    beaten = most - right > 2 * np.sqrt(most + right)
    shown = (
        f"the float model is right on {right} of {counted(accuracy.images, 'picture')} "
        f"({accuracy.top1:.2%})"
    )
    if beaten and order is not None:
        return (
            f"{shown}, and on {most} with class folders in {order.value} order: the labels may be "
            f"in another order than its classes; give class order {order.value}, or a file such as "
            "class_to_idx.json"
        )
    if not near_chance(right, accuracy.images, classes):
        return None
    return (
        f"{shown}, which is not above chance ({1 / classes:.2%}) at 95 %: the labels may be in "
        "another order than its classes, or the pictures prepared otherwise than in training; give "
        "the class order (text, natural, number or a file such as class_to_idx.json), or export "
        "with labels"
    )


def _binomial(trials: int, share: float) -> np.ndarray:
    """The probability of each number of successes from 0 to ``trials``, (trials + 1,) float64."""
    log_factorials = np.concatenate([[0.0], np.log(np.arange(1, trials + 1)).cumsum()])
    successes = np.arange(trials + 1)
    ways = log_factorials[-1] - log_factorials - log_factorials[::-1]
    found = np.exp(ways + successes * np.log(share) + (trials - successes) * np.log1p(-share))
    return np.asarray(found)
