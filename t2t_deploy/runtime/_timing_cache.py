"""Kernel times that TensorRT measured once, kept for the next build of the same graph."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2t_deploy._files import written_whole
from t2t_deploy.runtime._engine_device import device_name
from t2t_deploy.runtime._trt_module import to_bytes

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True, slots=True)
class TimingCache:
    """One file of times, for one graph on one kind of device in one version of TensorRT.

    TensorRT-RTX measures nothing when it builds, and its cache is empty.
    """

    path: Path

    @classmethod
    def open(cls, folder: Path, onnx_path: Path, version: str) -> TimingCache:
        """The cache of this graph on this machine's device; nothing is read yet."""
        graph = hashlib.sha256(onnx_path.read_bytes()).hexdigest()
        key = "\n".join((graph, device_name() or "no device", version))
        return cls(folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.timing")

    def give_to(self, config: tensorrt.IBuilderConfig) -> None:
        """Let the builder use what is known, and add to it."""
        known = self.path.read_bytes() if self.path.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)

    def keep(self, config: tensorrt.IBuilderConfig) -> None:
        """Write the cache back, whole or not at all."""
        times = to_bytes(config.get_timing_cache().serialize())
        with written_whole(self.path) as temporary:
            temporary.write_bytes(times)
