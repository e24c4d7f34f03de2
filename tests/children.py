"""Processes that tests wait for, and those that this one has started and that still run."""

from __future__ import annotations

import time

import psutil


def children() -> set[int]:
    """Their ids; some fixtures keep one for the whole session, so compare with those before."""
    return {child.pid for child in psutil.Process().children()}


def wait_until_ended(*pids: int, timeout_s: float = 60) -> None:
    """Fail unless all end soon; a zombie that nobody collects has ended."""

    def alive(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)
