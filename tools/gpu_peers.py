"""What PyTorch has for a GPU: the reference as it is, compiled in each mode, and compiled ahead.

`bench_gpu.py` runs this file as the processes that are timed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t2t_deploy.bench._worker import serve_bench
from t2t_deploy.runtime import REFERENCE_BACKEND, Session, SessionRequest, open_session
from t2t_deploy.runtime._eager import EagerSession
from t2t_deploy.types import INPUT_NAME

AHEAD = "aot-inductor"
MODES = {f"compile-{mode}": mode for mode in ("default", "reduce-overhead", "max-autotune")}
"""The last two replay CUDA graphs."""


class TorchPeer(EagerSession):
    """A peer at its best: at one batch, its weights folded, fed through page-locked memory.

    Without a device, in a dry run, nothing is compiled, which takes minutes: it is traced.
    """

    def __init__(self, request: SessionRequest) -> None:
        # torch reads them when it compiles; freezing casts weights once, not in each call
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(request.cache)
        os.environ["TORCHINDUCTOR_FREEZING"] = "1"
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "4"  # many are loaded side by side
        super().__init__(dataclasses.replace(request, backend=REFERENCE_BACKEND))
        self.backend = request.backend
        shape = (request.batch or 1, *self.config.input_shape)
        self._fed = self._torch.empty(shape, pin_memory=request.device is not None)
        if request.backend in MODES:
            dry = request.device is None
            how = {"backend": "eager"} if dry else {"mode": MODES[request.backend]}
            self._model = self._torch.compile(self._model, dynamic=False, **how)
        elif request.backend == AHEAD:
            self._model = self._compiled_ahead(request)

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._fed.copy_(self._torch.from_numpy(feeds[INPUT_NAME]))
        return super()._compute({INPUT_NAME: self._fed.numpy()})

    def _compiled_ahead(self, request: SessionRequest) -> Any:
        torch, compute, precision = self._torch, self._model, self._precision

        class Whole(torch.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.reference = compute.__self__

            def forward(self, image: Any) -> Any:
                with precision():
                    return compute(image)

        package = str(Path(str(request.cache)) / f"{request.path.stem}-{request.batch}.pt2")
        if not Path(package).is_file():
            with torch.no_grad():
                program = torch.export.export(Whole(), (self._fed.to(self._device),))
                if request.device is None:
                    return program.module()
                torch._inductor.aoti_compile_and_package(program, package_path=package)
        return torch._inductor.aoti_load_package(package)


def open_timed(request: SessionRequest) -> Session:
    """A peer's session, or one of ours."""
    peers = (REFERENCE_BACKEND, AHEAD, *MODES)
    return TorchPeer(request) if request.backend in peers else open_session(request)


if __name__ == "__main__":
    serve_bench(open_timed)
