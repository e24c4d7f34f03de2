"""The reference model in eager PyTorch: what every other runtime is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime._session import ClosingSession, check_feeds
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, TensorSpec


class EagerSession(ClosingSession):
    """The reference T2T-ViT under ``inference_mode``, float32.

    weights: safetensors file of a state dict; config: the model's dimensions.
    threads: intra-op threads of the process; None leaves torch's choice.
    """

    backend = "eager"

    def __init__(
        self, weights: Path, config: Mapping[str, Any], *, threads: int | None = None
    ) -> None:
        torch = require("torch")
        from t2t_deploy.model import config_from_dict, load_reference

        if threads is not None:
            torch.set_num_threads(threads)
        self.config = config_from_dict(config)
        self._torch = torch
        self._model: Any = load_reference(weights, self.config)
        size, classes = self.config.image_size, self.config.num_classes
        self.inputs = (TensorSpec(INPUT_NAME, "float32", (None, 3, size, size)),)
        self.outputs = (TensorSpec(OUTPUT_NAME, "float32", (None, classes)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the logits. Raises InputError, or BackendError on a closed session."""
        check_feeds(self.inputs, feeds)
        if self._model is None:
            raise BackendError("the session is closed; open a new one")
        with self._torch.inference_mode():
            logits = self._model(self._torch.from_numpy(feeds[INPUT_NAME]))
        return {OUTPUT_NAME: logits.numpy()}

    def close(self) -> None:
        """Free the model."""
        self._model = None
