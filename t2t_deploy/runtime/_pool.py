"""A bounded pool of items for one thread at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from t2t_deploy.errors import BackendError

_T = TypeVar("_T")


class Pool(Generic[_T]):
    """Creates items on demand, at most ``limit``; the last one returned is lent first.

    make, free: called outside the pool's lock. An item whose block raised is freed, not lent again:
    its state is unknown.
    """

    def __init__(self, make: Callable[[], _T], free: Callable[[_T], None], limit: int) -> None:
        self._make, self._free = make, free
        self._idle: list[_T] = []
        self._closed = False
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(limit)

    @contextlib.contextmanager
    def lend(self) -> Iterator[_T]:
        """One item, for the block; waits while all are lent. Raises BackendError once closed."""
        with self._slots:
            item, sound = self._take(), False
            try:
                yield item
                sound = True
            finally:
                with self._lock:
                    kept = sound and not self._closed
                    if kept:
                        self._idle.append(item)
                if not kept:
                    self._free(item)

    def close(self) -> None:
        """Free the idle items; those lent are freed when they come back. Twice is harmless."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        self._slots.release()  # wakes one of those that wait, which is refused and wakes the next
        with contextlib.ExitStack() as stack:  # frees the others if one raises
            for item in idle:
                stack.callback(self._free, item)

    def _take(self) -> _T:
        with self._lock:
            if self._closed:
                raise BackendError("the session is closed; open a new one")
            if self._idle:
                return self._idle.pop()
        return self._make()
