"""What libraries need around `os.fork`: none of a process's threads comes along to the child."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from typing import Any

from t2t_deploy.errors import BackendError

_PAUSE, _SOFT = "omp_pause_resource_all", 1  # OpenMP 5.0
_MAPS = "/proc/self/maps"


class _Torch:
    """PyTorch's threads in this process.

    GNU's OpenMP, which PyTorch computes with, waits for ever for the threads that it had before a
    fork. So they end before each, and both processes start new ones with their next operation;
    other systems' OpenMP does that by itself.
    """

    def __init__(self) -> None:
        self._ended = True
        self._inherited = False
        self._lost = False

    def before_fork(self) -> None:
        self._ended = not any(pause(_SOFT) for pause in _pauses())

    def in_child(self) -> None:
        if "torch" in sys.modules:
            self._inherited = True
            self._lost = self._lost or not self._ended

    def check(self, torch: Any, threads: int | None) -> None:
        if self._lost and (threads or torch.get_num_threads()) > 1:
            raise BackendError(
                "PyTorch was loaded before this process was forked, and its threads did not come "
                "along: start the process with spawn, or call torch.set_num_threads(1) in it"
            )
        if self._inherited:
            # makes it leave its second pool to the parent; else the end of this process may wait
            # for threads of the parent's
            torch.set_num_threads(torch.get_num_threads())
            self._inherited = False


_torch = _Torch()


def check_torch(torch: Any, threads: int | None = None) -> None:
    """Before PyTorch computes. threads: how many it will be told to use; None as it is.

    Raises BackendError in a forked process where it would wait for ever.
    """
    _torch.check(torch, threads)


def _pauses() -> Iterator[Any]:
    """What ends the threads of GNU's OpenMP, of each copy in this process if PyTorch is in it."""
    if "torch" not in sys.modules:
        return
    try:
        with open(_MAPS) as maps:
            paths = {line.split(maxsplit=5)[5].strip() for line in maps if "/libgomp" in line}
    except OSError:  # not Linux
        return
    for path in paths:
        yield getattr(ctypes.CDLL(path), _PAUSE, lambda kind: -1)


def leak(held: object) -> None:
    """Never free an object, not even at the end of this process.

    What runs threads waits in its destructor for those that did not come along.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_torch.before_fork, after_in_child=_torch.in_child)
