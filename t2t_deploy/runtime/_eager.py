"""The reference model in eager PyTorch, the baseline of every other runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from t2t_deploy._forks import check_torch
from t2t_deploy._optional import require
from t2t_deploy.engine import Unavailable, why_no_device
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime._session import (
    Backend,
    RuntimeSession,
    SessionRequest,
    check_feeds,
    session_threads,
    still_open,
)
from t2t_deploy.types import INPUT_NAME, Precision, TensorSpec


class TorchBackend(Backend):
    """PyTorch, with or without its compiler, on the CPU unless a device is given."""

    def _missing(self, device: int | None) -> Iterator[Unavailable | None]:
        if device is not None:
            yield why_no_device(device)
        yield from super()._missing(device)
        if device is not None:
            yield _torch_without_cuda()
        elif self is COMPILE:
            yield _no_compiler()


def _no_compiler() -> Unavailable | None:
    """torch.compile writes C++ for a CPU and calls the platform's usual compiler."""
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", usual)
    if shutil.which(compiler) is not None:
        return None
    return Unavailable(
        f"torch.compile needs a C++ compiler ({compiler} not found)",
        "install it (Debian, Ubuntu: apt install g++), or name another in CXX",
    )


def _torch_without_cuda() -> Unavailable | None:
    if require("torch").backends.cuda.is_built():
        return None
    return Unavailable(
        "this build of torch has no CUDA",
        "install one that has: https://pytorch.org/get-started/locally",
    )


class EagerSession(RuntimeSession):
    """The reference T2T-ViT under ``inference_mode``, float32.

    Of the request, ``path`` is a safetensors file of a state dict. precision: fp16 or bf16
    lets torch choose which operations use it; fp32 and None do not. ``torch.compile`` compiles for
    the first batch size, for 1, and for a free batch once there is another. Each thread that calls
    it computes with the threads of one stream.
    """

    def __init__(self, request: SessionRequest) -> None:
        if request.config is None:
            raise BackendError("an eager session needs the model's dimensions: pass a config")
        torch = require("torch")
        from t2t_deploy.model import config_from_dict, load_reference

        self.backend = request.backend
        threads = session_threads(request.threads_each)
        if request.threads is None and threads is not None:
            # fewer were chosen by the environment, or by the program that torch belongs to
            threads = min(threads, torch.get_num_threads())
        if threads is not None:
            check_torch(torch, threads)
            torch.set_num_threads(threads)
        self.config = config_from_dict(request.config)
        self._torch = torch
        self._device = "cpu" if request.device is None else f"cuda:{request.device}"
        halves = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
        self._autocast = halves.get(request.precision or Precision.FP32)
        if request.device is not None:
            # float32 is float32 here: convolutions would round to TensorFloat-32 by default
            torch.backends.cudnn.allow_tf32 = False
        reference = load_reference(request.path, self.config).to(self._device)
        self.typical_norm = reference.typical_norm()
        self._model: Any = reference.outputs
        if request.backend == COMPILE.name:
            if request.cache is not None:
                # torch reads the environment only, where the torch of a parent process may have
                # written its own default
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(request.cache.absolute())
            self._model = torch.compile(self._model)
        self.inputs = (TensorSpec(INPUT_NAME, "float32", (None, *self.config.input_shape)),)
        self.outputs = tuple(
            TensorSpec(name, "float32", (None, *shape))
            for name, shape in self.config.output_shapes.items()
        )

    def _compute(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_feeds(self.inputs, feeds)
        model = still_open(self._model)  # kept until the call is done, if others close
        image = self._torch.from_numpy(feeds[INPUT_NAME]).to(self._device)
        with self._torch.inference_mode(), self._precision():
            found = model(image)
        return {
            spec.name: one.float().cpu().numpy()
            for spec, one in zip(self.outputs, found, strict=True)
        }

    def _precision(self) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        kind = self._device.partition(":")[0]
        return self._torch.autocast(kind, dtype=self._autocast)  # type: ignore[no-any-return]

    def _close(self) -> None:
        self._model = None


EAGER = TorchBackend("eager", "the reference in eager PyTorch", "weights", "torch", EagerSession)
COMPILE = TorchBackend(
    *("compile", "the reference under torch.compile", "weights", "torch", EagerSession),
    compiles=True,
)
