"""Sessions that take the same pictures side by side, and what their logits add up to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2t_deploy.calibration import LabelledSet
from t2t_deploy.pipeline._progress import Report
from t2t_deploy.runtime import Session
from t2t_deploy.verify import AccuracySum


@dataclass(slots=True)
class AccuracyRunner:
    """An open session and what its logits add up to. batch: pictures at a time."""

    session: Session
    batch: int
    total: AccuracySum
    remark: str | None = None

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of pictures (n, 3, S, S); a fixed batch is filled by repeating."""
        source, target = self.session.inputs[0].name, self.session.outputs[0].name
        fixed = self.session.inputs[0].shape[0]
        results = []
        for start in range(0, len(pictures), self.batch):
            chunk = pictures[start : start + self.batch]
            count = len(chunk)
            if fixed is not None and count < fixed:
                chunk = np.concatenate((chunk, np.repeat(chunk[-1:], fixed - count, axis=0)))
            found = self.session.run({source: np.ascontiguousarray(chunk)})[target]
            results.append(found[:count])
        return np.concatenate(results)


def run_pictures(
    runners: Sequence[AccuracyRunner],
    reference: AccuracyRunner | None,
    images: LabelledSet,
    size: int,
    unreadable: dict[Path, str],
    report: Report,
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
                runner.total.add(runner.logits(batch.pictures), batch.labels, wanted)
        done += len(batch.pictures) + len(batch.unreadable)
        report.progress("evaluating", done, len(images.paths))
