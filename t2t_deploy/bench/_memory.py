"""Resident memory of this process: now, and at its highest."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil


def resident_bytes() -> int:
    """Resident memory now, bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Highest resident memory since this program began, bytes.

    On Linux from VmHWM: ru_maxrss survives exec there, so a worker started by a larger parent
    would report the parent's peak as its own.
    """
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if sys.platform == "linux":
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        # the line is missing where a sandbox imitates /proc
        return int(match.group(1)) * 1024 if match else resident_bytes()
    import resource  # not on Windows

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
