"""Figures of sessions that give probabilities instead of logits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from t2t_deploy.commands._accuracy_run import AccuracyRunner
from t2t_deploy.runtime import ClosingSession
from t2t_deploy.types import Tail, TensorSpec, softmax
from t2t_deploy.verify import AccuracySum


class Fixed(ClosingSession):
    """Gives the same outputs for every picture."""

    backend = "fixed"

    def __init__(self, **outputs: np.ndarray) -> None:
        self._given = outputs
        self.inputs = (TensorSpec("image", "float32", (None, 3, 4, 4)),)
        self.outputs = tuple(
            TensorSpec(name, str(a.dtype), (None, a.shape[1])) for name, a in outputs.items()
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.repeat(a, len(feeds["image"]), 0) for name, a in self._given.items()}

    def close(self) -> None:
        """Nothing is held."""


REFERENCE = np.log(np.array([[0.4, 0.3, 0.15, 0.1, 0.05]], np.float32))
PICTURES = np.zeros((1, 3, 4, 4), np.float32)


def figures(tail: Tail, label: int, **outputs: np.ndarray) -> tuple[float | None, ...]:
    runner = AccuracyRunner(Fixed(**outputs), 1, AccuracySum(5), tail=tail)
    runner.add(PICTURES, np.array([label]), REFERENCE)
    found = runner.total.result()
    return found.top1, found.agreement, found.rel_l2_max


def test_all_probabilities() -> None:
    same = softmax(REFERENCE).astype(np.float32)
    assert figures(Tail.SOFTMAX, 0, probabilities=same) == (1.0, 1.0, pytest.approx(0, abs=1e-6))


def test_the_largest_probabilities() -> None:
    """What is not told counts for nothing; the reference's own class always counts."""
    two = np.array([[0.4, 0.3]], np.float32)
    found = figures(Tail.TOPK, 0, probabilities=two, indices=np.array([[0, 1]]))
    assert found == (1.0, 1.0, pytest.approx(0, abs=1e-6))
    off = figures(Tail.TOPK, 1, probabilities=two, indices=np.array([[1, 2]]))
    # (0, 0.4, 0.3) where the reference has (0.4, 0.3, 0.15)
    error = np.sqrt(0.4**2 + 0.1**2 + 0.15**2) / np.sqrt(0.4**2 + 0.3**2 + 0.15**2)
    assert off == (1.0, 0.0, pytest.approx(error, rel=1e-5))
