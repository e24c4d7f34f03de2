"""What is wrong with a tail's outputs, told of the logits they were made from."""

from __future__ import annotations

import numpy as np
import pytest

from t2t_deploy.types import INDICES_NAME, PROBABILITIES_NAME, softmax
from t2t_deploy.verify._graph_io import tail_fault

LOGITS = np.array([[0.0, 3.0, 1.0, 2.0], [2.0, 2.0, 0.0, -1.0]], np.float32)
BEST = softmax(LOGITS)


def largest(indices: list[list[int]], values: np.ndarray | None = None) -> dict[str, np.ndarray]:
    places = np.array(indices, np.int64)
    found = np.take_along_axis(BEST, np.clip(places, 0, 3), axis=1) if values is None else values
    return {PROBABILITIES_NAME: found.astype(np.float32), INDICES_NAME: places}


def test_right_ones_have_none_and_ties_stand_in_any_order() -> None:
    assert tail_fault({PROBABILITIES_NAME: BEST.astype(np.float32)}, LOGITS) is None
    assert tail_fault(largest([[1, 3], [0, 1]]), LOGITS) is None
    assert tail_fault(largest([[1, 3], [1, 0]]), LOGITS) is None


@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        (largest([[1, 2], [0, 1]], -np.sort(-BEST, axis=1)[:, :2]), "less probable than those"),
        (largest([[3, 1], [0, 1]], -np.sort(-BEST, axis=1)[:, :2]), "less probable than those"),
        (largest([[1, 1], [0, 1]]), "name a class twice"),
        (largest([[1, 4], [0, 1]]), "not all of them classes"),
        (largest([[1, -1], [0, 1]]), "not all of them classes"),
        (largest([[1, 3], [0, 1]], np.full((2, 2), 0.5)), "off the softmax of the logits"),
        ({PROBABILITIES_NAME: BEST[:, :3]}, r"probabilities are \(2, 3\), expected \(2, 4\)"),
        ({PROBABILITIES_NAME: BEST * np.nan}, "off the softmax of the logits"),
    ],
)
def test_wrong_ones_are_told(outputs: dict[str, np.ndarray], fault: str) -> None:
    found = tail_fault(outputs, LOGITS)
    assert found is not None
    with pytest.raises(ValueError, match=fault):
        raise ValueError(found)
