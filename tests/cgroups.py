"""Real control groups: made, joined by a child, removed; a test skips where that is not allowed."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_MOUNTS = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
_NUMBERS = itertools.count()


@contextlib.contextmanager
def control_group(
    *, processors: float | None = None, memory_bytes: int | None = None
) -> Iterator[list[str]]:
    """Words to put before a command, which then runs within the limits."""
    made: list[Path] = []
    try:
        try:
            if processors is not None:
                quota = round(processors * _PERIOD_US)
                made.append(_made("cpu"))
                _set(made[-1], "cpu.max", f"{quota} {_PERIOD_US}", "cpu.cfs_quota_us", str(quota))
                # the most: what others do on the machine takes nothing of the quota
                _set(made[-1], "cpu.weight", "10000", "cpu.shares", "262144")
            if memory_bytes is not None:
                made.append(_made("memory"))
                _set(made[-1], "memory.max", str(memory_bytes), "memory.limit_in_bytes")
        except OSError as err:
            pytest.skip(f"no control group can be made here: {err}")
        joining = "".join(f'echo $$ > "{group / "cgroup.procs"}" && ' for group in made)
        yield ["sh", "-c", joining + 'exec "$@"', "sh"]
    finally:
        for group in made:
            _remove(group)


def _made(controller: str) -> Path:
    above = _MOUNTS / controller
    group = (above if above.is_dir() else _MOUNTS) / f"t2t-test-{os.getpid()}-{next(_NUMBERS)}"
    group.mkdir()
    return group


def _set(group: Path, name: str, text: str, first_name: str, first_text: str | None = None) -> None:
    """Set a limit; ``first_name`` and ``first_text`` are those of version 1."""
    if (group / first_name).exists():
        (group / first_name).write_text(first_text or text)
    else:
        (group / name).write_text(text)


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return group.rmdir()
        except OSError:  # a process is still ending
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
