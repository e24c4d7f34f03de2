"""Processes that this one has started and that still run."""

from __future__ import annotations

import psutil


def children() -> set[int]:
    """Their ids; some fixtures keep one for the whole session, so compare with those before."""
    return {child.pid for child in psutil.Process().children()}
