"""Whether pictures' labels look as if they were in another order than the model's classes.

A float model that is right no more often than chance says nothing of accuracy: its labels may be
in another order, its pictures prepared in another way.
"""

from __future__ import annotations

import numpy as np

from t2t_deploy.errors import counted
from t2t_deploy.pictures import FolderClasses
from t2t_deploy.verify._accuracy import Accuracy

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
