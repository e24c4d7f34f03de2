"""What a figure depends on besides the code: processor, memory, versions, load."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from t2t_deploy.bench._gpus import GpuRecord
from t2t_deploy.bench._processor import read_processor

_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a bench ran.

    cpu_flags: of the processor, those that `Processor` knows; None where it cannot be told.
    usable_cores: how many of the logical cores this process may use.
    threads: the distinct settings of the cases; None is the runtime's own choice.
    load_before, load_after: 1, 5 and 15 minute averages; None where the system has none.
    gpus: NVIDIA GPUs, where NVML can be asked.
    """

    date_utc: str
    platform: str
    cpu_model: str
    cpu_flags: tuple[str, ...] | None
    logical_cores: int
    usable_cores: int
    memory_bytes: int
    governor: str | None
    python: str
    versions: dict[str, str]
    threads: tuple[int | None, ...]
    load_before: tuple[float, float, float] | None
    load_after: tuple[float, float, float] | None
    gpus: tuple[GpuRecord, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def read_environment(
    *,
    threads: Sequence[int | None],
    load_before: tuple[float, float, float] | None,
    gpus: tuple[GpuRecord, ...] = (),
) -> Environment:
    """Describe this machine now; ``load_before`` is what `load_average` said before the work."""
    processor = read_processor()
    return Environment(
        date_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        platform=platform.platform(),
        cpu_model=processor.model,
        cpu_flags=processor.flags,
        logical_cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(),
        memory_bytes=int(psutil.virtual_memory().total),
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else None,
        python=platform.python_version(),
        versions=library_versions(),
        threads=tuple(dict.fromkeys(threads)),
        load_before=load_before,
        load_after=load_average(),
        gpus=gpus,
    )


def load_average() -> tuple[float, float, float] | None:
    """1, 5 and 15 minute load averages, or None where the system has none."""
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that compute, by distribution name; none is imported."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        # a damaged install can lack its name
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in _PACKAGES or name.startswith("tensorrt"):
            # the first on the path is the one that is imported
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
