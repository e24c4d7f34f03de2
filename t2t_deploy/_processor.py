"""The processor, and which of its instructions decide what is fast and exact."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FLAGS_OF_INTEREST = ("avx2", "avx_vnni", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Processor:
    """flags: those of `FLAGS_OF_INTEREST` it has; None if unknown."""

    model: str
    flags: tuple[str, ...] | None

    @property
    def has_vnni(self) -> bool | None:
        """Whether it multiplies 8-bit codes without widening them; None if unknown."""
        return self._any("avx_vnni", "avx512_vnni", "amx_int8")

    @property
    def has_bf16(self) -> bool | None:
        """Whether it multiplies bfloat16; None if unknown."""
        return self._any("avx512_bf16", "amx_bf16")

    def _any(self, *names: str) -> bool | None:
        return None if self.flags is None else any(name in self.flags for name in names)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self) | {"vnni": self.has_vnni, "bf16": self.has_bf16}


def read_processor() -> Processor:
    """The processor of this machine; flags are read on Linux."""
    first = _CPUINFO.read_text().split("\n\n", 1)[0] if _CPUINFO.is_file() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    info = {key.strip().lower(): value.strip() for key, _, value in pairs}
    flags = None
    if "flags" in info:
        present = set(info["flags"].split())
        flags = tuple(flag for flag in FLAGS_OF_INTEREST if flag in present)
    model = info.get("model name") or platform.processor() or platform.machine()
    return Processor(model, flags)
