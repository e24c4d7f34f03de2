"""Comparison of a session with the reference, and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from t2t_deploy.runtime import Session, fill_batch
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, Status, Tolerance
from t2t_deploy.verify._pictures import PictureSet

_BATCH = 4


@dataclass(frozen=True, slots=True)
class Verification:
    """How far a model's logits are from the reference's, and whether that is near enough.

    rel_l2: largest ||a - b|| / ||b|| of one picture; max_abs: largest difference of one logit;
    cosine: smallest cosine similarity; top1_agreement: share of pictures with the same class.
    All None where nothing was run.
    """

    status: Status
    tolerance: float
    rel_l2: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    reason: str | None = None
    pictures: Mapping[str, float] = field(default_factory=dict)
    """picture -> its rel_l2"""

    def to_dict(self) -> dict[str, Any]:
        """The ``verification`` object of the JSON contract."""
        return {
            "status": self.status.value,
            "rel_l2": self.rel_l2,
            "max_abs": self.max_abs,
            "cosine": self.cosine,
            "top1_agreement": self.top1_agreement,
            "tolerance": self.tolerance,
            "reason": self.reason,
            "pictures": dict(self.pictures),
        }


def not_verified(tolerance: Tolerance, reason: str) -> Verification:
    """A verification that could not be run, which is not one that passed."""
    return Verification(Status.NOT_RUN, tolerance.rel_l2, reason=reason)


def verify_session(
    reference: Session, candidate: Session, pictures: PictureSet, tolerance: Tolerance
) -> Verification:
    """Compare logits picture by picture.

    A dynamic batch is run at 1, then at 4; a fixed one in its own size, the last batch repeated
    full. The verdict is on the worst picture.
    """
    wanted = logits_of(reference, pictures.pictures)
    found = logits_of(candidate, pictures.pictures)
    return compare_logits(wanted, found, pictures.names, tolerance)


def compare_logits(
    wanted: np.ndarray, found: np.ndarray, names: tuple[str, ...], tolerance: Tolerance
) -> Verification:
    """Verdict on (n, classes) logits against the reference's; ``names`` are the n pictures."""
    if wanted.shape != found.shape:
        return Verification(
            Status.FAILED,
            tolerance.rel_l2,
            reason=f"logits are {found.shape}, the reference's {wanted.shape}",
        )
    for what, logits in (("reference", wanted), ("artifact", found)):
        bad = ~np.isfinite(logits)
        if bad.any():
            first = names[int(np.argmax(bad.any(axis=1)))]
            return Verification(
                Status.FAILED,
                tolerance.rel_l2,
                reason=f"{int(bad.sum())} of {bad.size} logits of the {what} are NaN or infinite, "
                f"first on {first}",
            )
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    tiny = np.finfo(np.float64).tiny
    errors = np.linalg.norm(a - b, axis=1) / np.maximum(norms[1], tiny)
    cosines = (a * b).sum(axis=1) / np.maximum(norms[0] * norms[1], tiny)
    worst = int(np.argmax(errors))
    passed = bool(errors[worst] <= tolerance.rel_l2)
    return Verification(
        status=Status.PASSED if passed else Status.FAILED,
        tolerance=tolerance.rel_l2,
        rel_l2=float(errors[worst]),
        max_abs=float(np.abs(a - b).max()),
        cosine=float(cosines.min()),
        top1_agreement=float((a.argmax(axis=1) == b.argmax(axis=1)).mean()),
        reason=None
        if passed
        else f"relative error {errors[worst]:.2e} on {names[worst]}, tolerance "
        f"{tolerance.rel_l2:.0e}",
        pictures=dict(zip(names, errors.tolist(), strict=True)),
    )


def logits_of(session: Session, pictures: np.ndarray) -> np.ndarray:
    """Logits (n, classes) of pictures (n, 3, S, S), in batches the session takes."""
    return outputs_of(session, pictures)[OUTPUT_NAME]


def outputs_of(session: Session, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Every output for pictures (n, 3, S, S), in batches the session takes."""
    fixed = session.inputs[0].shape[0]
    starts = range(0, len(pictures), fixed) if fixed else (0, *range(1, len(pictures), _BATCH))
    size = fixed or _BATCH
    results = []
    for start in starts:
        chunk = pictures[start : start + (1 if fixed is None and start == 0 else size)]
        count = len(chunk)
        feeds = {INPUT_NAME: np.ascontiguousarray(fill_batch(chunk, fixed))}
        results.append({name: out[:count] for name, out in session.run(feeds).items()})
    return {name: np.concatenate([found[name] for found in results]) for name in results[0]}
