"""Accuracy, agreement and error of logits, summed over batches: nothing is kept of a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

TOP = 5


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What the logits of some pictures amount to; each share is of all the pictures.

    top1, top5: share whose label has the largest, or one of the five largest logits; None without
    labels. agreement: share with the reference's class; rel_l2_mean, rel_l2_max: ||a - b|| / ||b||
    of a picture's logits against the reference's; None without a reference, the errors also where
    logits are NaN or infinite, which is counted in non_finite. Such pictures have no class.
    confusion: (classes, classes) int64, pictures by their class and the class found; a picture's
    class is its label, or the reference's class without labels.
    """

    images: int
    top1: float | None
    top5: float | None
    agreement: float | None
    rel_l2_mean: float | None
    rel_l2_max: float | None
    non_finite: int
    confusion: np.ndarray


_COUNTED = (
    *("_images", "_labelled", "_compared", "_top1", "_top5", "_agreeing"),
    *("_error", "_non_finite"),
)


@dataclass(slots=True)
class AccuracySum:
    """Adds up batches; its size depends on the number of classes alone."""

    num_classes: int
    _images: int = 0
    _labelled: int = 0
    _compared: int = 0
    _top1: int = 0
    _top5: int = 0
    _agreeing: int = 0
    _error: float = 0.0
    _largest: float = 0.0
    _non_finite: int = 0
    _confusion: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._confusion = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(
        self, logits: np.ndarray, labels: np.ndarray | None, reference: np.ndarray | None
    ) -> None:
        """Add a batch: logits and the reference's (n, classes), labels (n,).

        Labels, and the reference, are given with every batch or with none.
        """
        finite = np.isfinite(logits).all(axis=1)
        found = predicted(logits)
        self._images += len(logits)
        self._non_finite += int((~finite).sum())
        truth = labels
        if labels is not None:
            places = ranks(logits, labels)
            self._labelled += len(labels)
            self._top1 += int(((places < 1) & finite).sum())
            self._top5 += int(((places < TOP) & finite).sum())
        if reference is not None:
            wanted = predicted(reference)
            truth = wanted if labels is None else labels
            self._compared += len(reference)
            self._agreeing += int(((found == wanted) & finite).sum())
            errors = relative_errors(logits, reference)
            self._error += float(errors.sum())
            self._largest = max(self._largest, float(errors.max(initial=0.0)))
        if truth is not None:
            known = finite & (truth >= 0)
            np.add.at(self._confusion, (truth[known], found[known]), 1)

    def merge(self, other: AccuracySum) -> None:
        """Add what another sum, of other pictures, has added up."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._largest = max(self._largest, other._largest)
        self._confusion += other._confusion

    def __getstate__(self) -> dict[str, Any]:
        """Small where few pictures were added: of a thousand classes most pairs were not met."""
        met = np.nonzero(self._confusion)
        state = {name: getattr(self, name) for name in ("num_classes", "_largest", *_COUNTED)}
        return state | {"met": met, "times": self._confusion[met]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("num_classes", "_largest", *_COUNTED):
            setattr(self, name, state[name])
        self._confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        self._confusion[state["met"]] = state["times"]

    def result(self) -> Accuracy:
        """The figures of all batches so far."""
        error = _share(self._error, self._compared)
        sound = error is not None and np.isfinite(error)
        return Accuracy(
            images=self._images,
            top1=_share(self._top1, self._labelled),
            top5=_share(self._top5, self._labelled),
            agreement=_share(self._agreeing, self._compared),
            rel_l2_mean=error if sound else None,
            rel_l2_max=self._largest if sound else None,
            non_finite=self._non_finite,
            confusion=self._confusion.copy(),
        )


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


def relative_errors(logits: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """||a - b|| / ||b|| of each row, (n,) float64; infinite where one of both is not finite."""
    a, b = logits.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    errors = np.full(len(a), np.inf)
    norms = np.linalg.norm(b[finite], axis=1)
    errors[finite] = np.linalg.norm(a[finite] - b[finite], axis=1) / np.maximum(
        norms, np.finfo(np.float64).tiny
    )
    return errors


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
