"""What this process may use: processors, and the memory and time that control groups grant.

A container sees the machine's cores and memory; what it may use stands in the control groups
(cgroups) of Linux, version 1, version 2 or both at once. Elsewhere only the cores are known.
"""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Where libraries read their number of threads when they are loaded."""
_COMPILERS = "TORCHINDUCTOR_COMPILE_THREADS"  # processes, by default one a core up to 32
_ROOT = Path("/")
# Version 1 writes "no limit" as the highest multiple of the page size below 2**63.
_UNLIMITED_BYTES = 2**62


@dataclass(frozen=True, slots=True)
class Limits:
    """What this process may use now.

    affinity: processors that it may run on. quota: processors' worth of time that its control
    groups grant, 0.5 for half of one; None without a quota. memory_bytes: their memory limit; None
    without one. It can exceed the machine's memory.
    """

    affinity: int
    quota: float | None = None
    memory_bytes: int | None = None

    @property
    def processors(self) -> int:
        """How many threads can compute at once, at least 1: the default of every session."""
        return max(1, min(self.affinity, math.ceil(self.quota or self.affinity)))

    @property
    def narrowed(self) -> bool:
        """Whether the quota leaves fewer processors than the affinity."""
        return self.processors < self.affinity

    @property
    def memory_words(self) -> str:
        """The memory limit as a part of a sentence; empty without one."""
        if self.memory_bytes is None:
            return ""
        return f"the control group allows {self.memory_bytes >> 20:,} MiB"

    def share(self, parts: int) -> int:
        """Threads of each of ``parts`` that compute at once, at least 1.

        0, which leaves the runtime's choice, for one alone whom no quota narrows.
        """
        return max(1, self.processors // parts) if parts > 1 or self.narrowed else 0


@dataclass(frozen=True, slots=True)
class Throttling:
    """How often and how long the quota stopped this process's control groups, since they exist.

    periods: those that began with work to do. throttled_periods: those in which the time ran out.
    throttled_s: time stopped, seconds, added over the processors. Each is the sum over the group
    and those above it.
    """

    periods: int
    throttled_periods: int
    throttled_s: float

    def since(self, before: Throttling) -> Throttling:
        """What came to pass after an earlier reading."""
        return Throttling(*map(operator.sub, astuple(self), astuple(before)))


def read_limits(root: Path = _ROOT) -> Limits:
    """The limits of this process; ``root`` holds the ``proc`` and ``sys`` that are read."""
    quotas = [_quota(group) for group in _groups(root, "cpu")]
    sizes = [_memory_bytes(group) for group in _groups(root, "memory")]
    return Limits(
        _affinity(),
        min((quota for quota in quotas if quota is not None), default=None),
        min((size for size in sizes if size is not None), default=None),
    )


def limit_threads() -> None:
    """Have libraries that are loaded later take no more threads than a quota leaves.

    For a process of our own: it changes the environment. What stands there already stays.
    """
    limits = read_limits()
    if limits.narrowed:
        for name in (*THREAD_VARIABLES, _COMPILERS):
            os.environ.setdefault(name, str(limits.processors))


def read_throttling(root: Path = _ROOT) -> Throttling | None:
    """What the quota has cost so far; None where no group counts it."""
    counters = [_numbers_by_name(group / "cpu.stat") for group in _groups(root, "cpu")]
    counters = [counter for counter in counters if "nr_periods" in counter]
    if not counters:
        return None
    # version 1 counts nanoseconds, version 2 microseconds
    seconds = [
        counter.get("throttled_time", 0) / 1e9 + counter.get("throttled_usec", 0) / 1e6
        for counter in counters
    ]
    return Throttling(
        sum(counter["nr_periods"] for counter in counters),
        sum(counter.get("nr_throttled", 0) for counter in counters),
        sum(seconds),
    )


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The process's group of a controller and those above it, as far as they are mounted."""
    path, version = _own_group(root, controller)
    if path is None:
        return
    mounts = [
        (PurePosixPath(top), point)
        for top, point, kind, options in _mounts(root)
        if kind == version and (version == "cgroup2" or controller in options)
    ]
    # In a namespace the path can lie outside what is mounted, "/../other" among them: then the
    # mount is the nearest group that can be read.
    visible = ".." not in path.parts
    holding = [(top, point) for top, point in mounts if visible and path.is_relative_to(top)]
    for top, point in holding or mounts:
        below = path.relative_to(top) if holding else PurePosixPath()
        for group in (below, *below.parents):
            yield root / point.lstrip("/") / group


def _own_group(root: Path, controller: str) -> tuple[PurePosixPath | None, str]:
    unified = None
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return PurePosixPath(path), "cgroup"
        if number == "0" and not controllers:
            unified = PurePosixPath(path)
    return unified, "cgroup2"


def _mounts(root: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """Root within the file system, mount point, kind and options of each mount.

    Source: proc_pid_mountinfo(5); a lone hyphen ends the optional fields.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, system = line.partition(" - ")
        fields, kinds = place.split(" "), system.split(" ")
        if len(fields) > 4 and len(kinds) > 2:
            yield _unescaped(fields[3]), _unescaped(fields[4]), kinds[0], kinds[2].split(",")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _quota(group: Path) -> float | None:
    names = ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")  # version 2, then version 1
    words = [word for name in names for line in _lines(group / name) for word in line.split()]
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return None  # "max" and -1: no quota
    limit, period = map(int, words)
    return limit / period if limit and period else None


def _memory_bytes(group: Path) -> int | None:
    # groups above the highest visible one limit too: version 1 tells
    above = _numbers_by_name(group / "memory.stat").get("hierarchical_memory_limit")
    texts = [*_lines(group / "memory.max"), *_lines(group / "memory.limit_in_bytes"), str(above)]
    sizes = [int(text) for text in texts if text.isdecimal()]
    return min((size for size in sizes if size < _UNLIMITED_BYTES), default=None)


def _numbers_by_name(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(file))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _lines(file: Path) -> list[str]:
    """The lines of a file; none where it cannot be read, as in a sandbox or on macOS."""
    try:
        return file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
