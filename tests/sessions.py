"""Sessions without a runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from t2t_deploy.runtime import Session, check_feeds
from t2t_deploy.types import TensorSpec


class FakeSession(Session):
    """Checks what it is fed as real sessions do, keeps it, and answers by a function of it."""

    backend = "fake"

    def __init__(
        self,
        answer: Callable[[np.ndarray], dict[str, np.ndarray]],
        taken: TensorSpec,
        *given: TensorSpec,
    ) -> None:
        self.inputs, self.outputs, self._answer = (taken,), given, answer
        self.fed: list[np.ndarray] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        (array,) = feeds.values()
        self.fed.append(array)
        return self._answer(array)

    def close(self) -> None:
        """Nothing is held."""
