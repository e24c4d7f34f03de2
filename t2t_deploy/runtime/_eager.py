"""The reference model in eager PyTorch: what every other runtime is compared with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime._session import ClosingSession, check_feeds
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, Precision, TensorSpec


def torch_has_cuda() -> bool:
    """Whether the installed torch was built with CUDA."""
    return bool(require("torch").backends.cuda.is_built())


class EagerSession(ClosingSession):
    """The reference T2T-ViT under ``inference_mode``, float32.

    weights: safetensors file of a state dict; config: the model's dimensions.
    threads: intra-op threads of the process; None leaves torch's choice.
    device: ordinal of the CUDA device; None is the CPU.
    autocast: fp16 or bf16 lets torch choose which operations to do in it; fp32 and None do not.
    compiled: through ``torch.compile``, each batch size for itself.
    cache: folder for what is compiled; None leaves torch's choice.
    """

    def __init__(
        self,
        weights: Path,
        config: Mapping[str, Any],
        *,
        threads: int | None = None,
        device: int | None = None,
        autocast: Precision | None = None,
        compiled: bool = False,
        cache: Path | None = None,
    ) -> None:
        torch = require("torch")
        self.backend = "compile" if compiled else "eager"
        from t2t_deploy.model import config_from_dict, load_reference

        if threads is not None:
            torch.set_num_threads(threads)
        self.config = config_from_dict(config)
        self._torch = torch
        self._device = "cpu" if device is None else f"cuda:{device}"
        self._autocast = (
            {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}.get(autocast)
            if autocast is not None
            else None
        )
        if device is not None:
            # float32 is float32 here: convolutions would round to TensorFloat-32 by default
            torch.backends.cudnn.allow_tf32 = False
        self._model: Any = load_reference(weights, self.config).to(self._device)
        if compiled:
            if cache is not None:
                # torch asks the environment alone; what stands there may be of a parent process,
                # whose torch writes its own default down
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache.absolute())
            self._model = torch.compile(self._model, dynamic=False)
        size, classes = self.config.image_size, self.config.num_classes
        self.inputs = (TensorSpec(INPUT_NAME, "float32", (None, 3, size, size)),)
        self.outputs = (TensorSpec(OUTPUT_NAME, "float32", (None, classes)),)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the logits. Raises InputError, or BackendError on a closed session."""
        check_feeds(self.inputs, feeds)
        model = self._model  # stays until the call is done, whatever closes the session meanwhile
        if model is None:
            raise BackendError("the session is closed; open a new one")
        image = self._torch.from_numpy(feeds[INPUT_NAME]).to(self._device)
        with self._torch.inference_mode(), self._precision():
            logits = model(image)
        return {OUTPUT_NAME: logits.float().cpu().numpy()}

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        kind = self._device.partition(":")[0]
        return self._torch.autocast(kind, dtype=self._autocast)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Free the model."""
        self._model = None
