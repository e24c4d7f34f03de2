"""The verdict on logits and on a tail, and how logits are got from a session."""

from __future__ import annotations

import re

import numpy as np
import pytest

from t2t_deploy.types import (
    INDICES_NAME,
    PROBABILITIES_NAME,
    TOLERANCES,
    Precision,
    Status,
    Tail,
    TensorSpec,
    Tolerance,
    sigmoid,
    softmax,
)
from t2t_deploy.verify import PictureSet, compare_logits, logits_of, not_verified, verify_session
from t2t_deploy.verify._compare import tail_fault

from ..sessions import FakeSession

TOLERANCE = Tolerance(1e-2, "a test")
NAMES = ("one", "two", "three")
EXPECTED = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)


def test_the_tolerances_of_the_contract() -> None:
    assert {p.value: TOLERANCES[p].rel_l2 for p in Precision} == {
        **{"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2},
        **{"int8": 6e-2, "fp8": 6e-2, "int8-weights": 6e-2, "fp8-weights": 6e-2},
    }


def test_the_worst_picture_decides() -> None:
    wrong = EXPECTED.copy()
    wrong[0] *= 1.001
    wrong[1] *= 1.02
    found = compare_logits(EXPECTED, wrong, NAMES, TOLERANCE)
    assert found.status is Status.FAILED
    assert found.rel_l2 == pytest.approx(0.02, rel=1e-4)
    assert found.max_abs == pytest.approx(0.02 * np.abs(EXPECTED[1]).max(), rel=1e-4)
    assert found.pictures["one"] == pytest.approx(0.001, rel=1e-3)
    assert found.reason == "relative error 2.00e-02 on two, tolerance 1e-02"


@pytest.mark.parametrize(
    ("expected", "found", "status"),
    [
        (EXPECTED, EXPECTED * 1.009, Status.PASSED),
        (EXPECTED, EXPECTED * 1.011, Status.FAILED),
        # a classifier that was never trained starts at zero
        (EXPECTED * 0, EXPECTED * 0, Status.PASSED),
        (EXPECTED * 0, EXPECTED, Status.FAILED),
        (EXPECTED, EXPECTED[:, :7], Status.FAILED),
    ],
)
def test_the_tolerance_is_the_line(expected: np.ndarray, found: np.ndarray, status: Status) -> None:
    assert compare_logits(expected, found, NAMES, TOLERANCE).status is status


def test_equal_logits_pass() -> None:
    found = compare_logits(EXPECTED, EXPECTED.copy(), NAMES, TOLERANCE)
    assert (found.status, found.reason) == (Status.PASSED, None)
    assert (found.rel_l2, found.max_abs, found.top1_agreement) == (0, 0, 1)
    assert found.cosine == pytest.approx(1)
    assert found.pictures == dict.fromkeys(NAMES, 0.0)


def test_classes_direction_and_shape_are_compared() -> None:
    wrong = EXPECTED.copy()
    wrong[2] = -EXPECTED[2]
    found = compare_logits(EXPECTED, wrong, NAMES, TOLERANCE)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert (found.cosine, found.rel_l2) == (pytest.approx(-1), pytest.approx(2))
    found = compare_logits(EXPECTED, EXPECTED[:, :7], NAMES, TOLERANCE)
    assert found.reason == "logits are (3, 7), the reference's (3, 10)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    wrong = EXPECTED.copy()
    wrong[1, 3] = wrong[2, 4] = value
    found = compare_logits(EXPECTED, wrong, NAMES, TOLERANCE)
    assert (found.status, found.rel_l2) == (Status.FAILED, None)
    assert found.reason == "2 of 30 logits of the artifact are NaN or infinite, first on two"
    found = compare_logits(wrong, EXPECTED, NAMES, TOLERANCE)
    assert found.status is Status.FAILED
    assert found.reason is not None and "logits of the reference are NaN" in found.reason


def test_not_run_is_not_passed() -> None:
    found = not_verified(TOLERANCE, "no device")
    assert found.to_dict() == {
        **{"status": "not_run", "reason": "no device", "tolerance": 1e-2, "pictures": {}},
        **dict.fromkeys(("rel_l2", "max_abs", "cosine", "top1_agreement")),
    }


def fake_session(batch: int | None = None, scale: float = 1) -> FakeSession:
    """Logits that name their picture."""

    def answer(image: np.ndarray) -> dict[str, np.ndarray]:
        assert image.flags.c_contiguous
        values = image[:, 0, 0, 0] * scale
        return {"logits": np.stack((values, values + 1), axis=1)}

    image = TensorSpec("image", "float32", (batch, 3, 4, 4))
    return FakeSession(answer, image, TensorSpec("logits", "float32", (None, 2)))


@pytest.mark.parametrize(
    ("batch", "batches"), [(None, [1, 4, 2]), (1, [1] * 7), (3, [3, 3, 3]), (16, [16])]
)
def test_every_picture_is_run_once_in_batches_the_session_takes(
    batch: int | None, batches: list[int]
) -> None:
    pictures = np.zeros((7, 3, 4, 4), np.float32)
    pictures[:, 0, 0, 0] = np.arange(7)
    session = fake_session(batch)
    np.testing.assert_array_equal(logits_of(session, pictures)[:, 0], np.arange(7))
    assert [len(one) for one in session.fed] == batches


def test_verify_session() -> None:
    pictures = PictureSet(("a", "b"), np.ones((2, 3, 4, 4), np.float32))
    right = verify_session(fake_session(), fake_session(1), pictures, TOLERANCE)
    assert right.status is Status.PASSED
    wrong = verify_session(fake_session(), fake_session(2, scale=1.5), pictures, TOLERANCE)
    assert wrong.status is Status.FAILED
    assert set(wrong.pictures) == {"a", "b"}


# -- probabilities -------------------------------------------------------------------------------

LOGITS = np.array([[0.0, 3.0, 1.0, 2.0], [2.0, 2.0, 0.0, -1.0]], np.float32)
BEST = softmax(LOGITS)


def largest(indices: list[list[int]], values: np.ndarray | None = None) -> dict[str, np.ndarray]:
    places = np.array(indices, np.int64)
    found = np.take_along_axis(BEST, np.clip(places, 0, 3), axis=1) if values is None else values
    return {PROBABILITIES_NAME: found.astype(np.float32), INDICES_NAME: places}


def test_right_tail_has_no_fault_ties_in_any_order() -> None:
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
def test_wrong_tail_is_refused(outputs: dict[str, np.ndarray], fault: str) -> None:
    assert re.search(fault, tail_fault(outputs, LOGITS) or "")


def test_logits_near_zero_are_held_against_the_typical_norm() -> None:
    """Of one output, on the border: right by any measure but its own size."""
    expected = np.array([[1e-4], [1.0], [-0.8]])
    names = ("a", "b", "c")
    actual = expected + 2e-3
    assert compare_logits(expected, actual, names, TOLERANCE).status is Status.FAILED
    found = compare_logits(expected, actual, names, TOLERANCE, 1.0)
    assert found.status is Status.PASSED
    assert found.rel_l2 == pytest.approx(2e-3 / 1.0)
    wrong = compare_logits(expected, -expected, names, TOLERANCE, 1.0)
    assert wrong.status is Status.FAILED and wrong.rel_l2 == pytest.approx(2)
    large = compare_logits(10 * expected[1:], 10 * expected[1:] + 0.2, names[1:], TOLERANCE, 1.0)
    assert large.rel_l2 == pytest.approx(0.2 / 8)  # a larger norm of its own counts


def test_a_sigmoid_tail_is_held_against_the_sigmoid_of_its_logits() -> None:
    logits = np.array([[-200, -1, 0, 3, 200]], np.float32)
    right = sigmoid(logits)
    np.testing.assert_allclose(right[0, 1:4], 1 / (1 + np.exp(-logits[0, 1:4])), rtol=1e-6)
    assert (right[0, 0], right[0, 4]) == (0, 1)
    assert tail_fault({PROBABILITIES_NAME: right.astype(np.float32)}, logits, Tail.SIGMOID) is None
    fault = tail_fault({PROBABILITIES_NAME: softmax(logits)}, logits, Tail.SIGMOID)
    assert fault is not None and fault.endswith("off the sigmoid of the logits")
