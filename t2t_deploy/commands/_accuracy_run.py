"""Sessions that take the same pictures side by side, and what their logits add up to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2t_deploy._progress import Progress
from t2t_deploy.pictures import LabelledSet
from t2t_deploy.runtime import Session, fill_batch
from t2t_deploy.types import INDICES_NAME, Tail, softmax
from t2t_deploy.verify import AccuracySum


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
        source = self.session.inputs[0].name
        fixed = self.session.inputs[0].shape[0]
        results = []
        for start in range(0, len(pictures), self.batch):
            chunk = pictures[start : start + self.batch]
            count = len(chunk)
            fed = np.ascontiguousarray(fill_batch(chunk, fixed))
            found = self.session.run({source: fed})
            results.append(self._rows(found)[:count])
        return np.concatenate(results)

    def add(
        self, pictures: np.ndarray, labels: np.ndarray | None, reference: np.ndarray | None
    ) -> None:
        """Add up a batch; reference: its logits, turned into what the session gives."""
        found = self.logits(pictures)
        if reference is None or self.tail is Tail.LOGITS:
            self.total.add(found, labels, reference)
            return
        wanted = softmax(reference)
        if self.tail is Tail.TOPK:
            # what the session does not tell counts for nothing, but for the reference's class
            kept = found > 0
            kept[np.arange(len(wanted)), wanted.argmax(axis=1)] = True
            wanted = np.where(kept, wanted, 0)
        self.total.add(found, labels, wanted)

    def _rows(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        first = outputs[self.session.outputs[0].name]
        if self.tail is not Tail.TOPK:
            return first
        dense = np.zeros((len(first), self.total.num_classes), first.dtype)
        np.put_along_axis(dense, outputs[INDICES_NAME], first, axis=1)
        return dense


def run_pictures(
    runners: Sequence[AccuracyRunner],
    reference: AccuracyRunner | None,
    images: LabelledSet,
    size: int,
    unreadable: dict[Path, str],
    progress: Progress,
) -> None:
    """Take every picture through every session, reading it once.

    size: pixels. unreadable: files that cannot be read are added to it.
    """
    # A common multiple, so that only the last batch of each session is short.
    everyone = [*runners, reference] if reference is not None else list(runners)
    step = math.lcm(*(runner.batch for runner in runners or everyone))
    done = 0
    for batch in images.batches(size, step, everyone[0].total.num_classes):
        unreadable.update(batch.unreadable)
        if len(batch.pictures):
            wanted = None
            if reference is not None:
                wanted = reference.logits(batch.pictures)
                reference.total.add(wanted, batch.labels, wanted)
            for runner in runners:
                runner.add(batch.pictures, batch.labels, wanted)
        done += len(batch.pictures) + len(batch.unreadable)
        progress.progress("evaluating", done, len(images.paths))
