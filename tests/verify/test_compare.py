"""The verdict on logits, and how they are got from a session."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import pytest

from t2t_deploy.types import TOLERANCES, Precision, Status, TensorSpec, Tolerance
from t2t_deploy.verify import PictureSet, compare_logits, logits_of, not_verified, verify_session

TOLERANCE = Tolerance(1e-2, "a test")
NAMES = ("one", "two", "three")
WANTED = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)


def test_the_tolerances_of_the_contract() -> None:
    assert {p.value: TOLERANCES[p].rel_l2 for p in Precision} == {
        **{"fp32": 1e-5, "fp16": 5e-3, "bf16": 4e-2},
        **{"int8": 6e-2, "fp8": 6e-2, "int8-weights": 6e-2, "fp8-weights": 6e-2},
    }


def test_equal_logits_pass() -> None:
    found = compare_logits(WANTED, WANTED.copy(), NAMES, TOLERANCE)
    assert found.status is Status.PASSED
    assert (found.rel_l2, found.max_abs, found.top1_agreement) == (0, 0, 1)
    assert found.cosine == pytest.approx(1)
    assert found.reason is None
    assert found.pictures == dict.fromkeys(NAMES, 0.0)


def test_the_worst_picture_decides() -> None:
    wrong = WANTED.copy()
    wrong[0] *= 1.001
    wrong[1] *= 1.02
    found = compare_logits(WANTED, wrong, NAMES, TOLERANCE)
    assert found.status is Status.FAILED
    assert found.rel_l2 == pytest.approx(0.02, rel=1e-4)
    assert found.max_abs == pytest.approx(0.02 * np.abs(WANTED[1]).max(), rel=1e-4)
    assert found.pictures["one"] == pytest.approx(0.001, rel=1e-3)
    assert found.reason == "relative error 2.00e-02 on two, tolerance 1e-02"


@pytest.mark.parametrize(("scale", "status"), [(1.009, "passed"), (1.011, "failed")])
def test_the_tolerance_is_the_line(scale: float, status: str) -> None:
    assert compare_logits(WANTED, WANTED * scale, NAMES, TOLERANCE).status.value == status


def test_classes_and_direction_are_compared() -> None:
    wrong = WANTED.copy()
    wrong[2] = -WANTED[2]
    found = compare_logits(WANTED, wrong, NAMES, TOLERANCE)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert found.cosine == pytest.approx(-1)
    assert found.rel_l2 == pytest.approx(2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails(value: float) -> None:
    wrong = WANTED.copy()
    wrong[1, 3] = wrong[2, 4] = value
    found = compare_logits(WANTED, wrong, NAMES, TOLERANCE)
    assert (found.status, found.rel_l2) == (Status.FAILED, None)
    assert found.reason == "2 of 30 logits of the artifact are NaN or infinite, first on two"
    found = compare_logits(wrong, WANTED, NAMES, TOLERANCE)
    assert found.status is Status.FAILED
    assert found.reason is not None and "logits of the reference are NaN" in found.reason


def test_another_shape_fails() -> None:
    found = compare_logits(WANTED, WANTED[:, :7], NAMES, TOLERANCE)
    assert found.status is Status.FAILED
    assert found.reason == "logits are (3, 7), the reference's (3, 10)"


def test_logits_of_zero() -> None:
    """A classifier that was never trained starts at zero."""
    zero = np.zeros_like(WANTED)
    assert compare_logits(zero, zero, NAMES, TOLERANCE).status is Status.PASSED
    assert compare_logits(zero, WANTED, NAMES, TOLERANCE).status is Status.FAILED


def test_not_run_is_not_passed() -> None:
    found = not_verified(TOLERANCE, "no device")
    assert found.to_dict() == {
        **{"status": "not_run", "reason": "no device", "tolerance": 1e-2, "pictures": {}},
        **dict.fromkeys(("rel_l2", "max_abs", "cosine", "top1_agreement")),
    }


class FakeSession:
    """Logits that name their picture; remembers the batches it was given."""

    backend = "fake"
    outputs = (TensorSpec("logits", "float32", (None, 2)),)

    def __init__(self, batch: int | None = None, scale: float = 1) -> None:
        self.inputs = (TensorSpec("image", "float32", (batch, 3, 4, 4)),)
        self.batches: list[int] = []
        self.scale = scale

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        (image,) = feeds.values()
        assert list(feeds) == ["image"] and image.flags.c_contiguous
        assert self.inputs[0].accepts(image)
        self.batches.append(len(image))
        values = image[:, 0, 0, 0] * self.scale
        return {"logits": np.stack((values, values + 1), axis=1)}

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


@pytest.mark.parametrize(
    ("batch", "batches"), [(None, [1, 4, 2]), (1, [1] * 7), (3, [3, 3, 3]), (16, [16])]
)
def test_every_picture_is_run_once_in_batches_the_session_takes(
    batch: int | None, batches: list[int]
) -> None:
    pictures = np.zeros((7, 3, 4, 4), np.float32)
    pictures[:, 0, 0, 0] = np.arange(7)
    session = FakeSession(batch)
    np.testing.assert_array_equal(logits_of(session, pictures)[:, 0], np.arange(7))
    assert session.batches == batches


def test_verify_session() -> None:
    pictures = PictureSet(("a", "b"), np.ones((2, 3, 4, 4), np.float32))
    assert verify_session(FakeSession(), FakeSession(1), pictures, TOLERANCE).status is (
        Status.PASSED
    )
    wrong = verify_session(FakeSession(), FakeSession(2, scale=1.5), pictures, TOLERANCE)
    assert wrong.status is Status.FAILED
    assert set(wrong.pictures) == {"a", "b"}
