"""Sessions of graphs that take pixels or give probabilities, held against logits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from t2t_deploy.images import pixels_of
from t2t_deploy.runtime import ClosingSession, Session
from t2t_deploy.types import INDICES_NAME, PROBABILITIES_NAME, TensorSpec, softmax

# float32 softmaxes of two libraries over 1000 classes; no probability is above 1
TAIL_TOLERANCE = 1e-5


class PixelSession(ClosingSession):
    """A session that takes pixels, given normalised pictures (n, 3, S, S) float32.

    The pictures must have been made of pixels: these are what it is fed, bit for bit.
    """

    def __init__(self, session: Session) -> None:
        self.backend = session.backend
        self._session = session
        self.outputs = session.outputs
        (taken,) = session.inputs
        batch, size, width, _ = taken.shape
        self.inputs = (TensorSpec(taken.name, "float32", (batch, 3, size, width)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Session.run`."""
        return self._session.run({name: pixels_of(array) for name, array in feeds.items()})

    def close(self) -> None:
        """Free the session inside."""
        self._session.close()


def takes_pixels(session: Session) -> bool:
    """Whether a session's one input is (batch, S, S, 3) uint8."""
    (taken,) = session.inputs if len(session.inputs) == 1 else (None,)
    return (
        taken is not None
        and taken.dtype == "uint8"
        and len(taken.shape) == 4
        and taken.shape[-1] == 3
    )


def tail_fault(outputs: Mapping[str, np.ndarray], logits: np.ndarray) -> str | None:
    """What is wrong with probabilities, all or the largest, of (n, classes) logits, or None.

    Equal probabilities may be told in any order.
    """
    wanted = softmax(logits)
    found = outputs[PROBABILITIES_NAME].astype(np.float64)
    indices = outputs.get(INDICES_NAME)
    if indices is None:
        if found.shape != wanted.shape:
            return f"probabilities are {found.shape}, expected {wanted.shape}"
    else:
        k = found.shape[1]
        if indices.shape != found.shape or indices.min() < 0 or indices.max() >= wanted.shape[1]:
            return f"indices are {indices.shape}, not all of them classes"
        if any(len(set(row)) < k for row in indices.tolist()):
            return "indices name a class twice"
        best = -np.sort(-wanted, axis=1)[:, :k]
        off = np.abs(np.take_along_axis(wanted, indices, axis=1) - best).max()
        if not off <= TAIL_TOLERANCE:
            return f"indices name classes {off:.1e} less probable than those of the logits"
        wanted = best
    off = np.abs(found - wanted).max()
    if not off <= TAIL_TOLERANCE:
        return f"probabilities are {off:.1e} off the softmax of the logits"
    return None
