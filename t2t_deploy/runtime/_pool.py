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
        self._make, self._free, self._limit = make, free, limit
        self._idle: list[_T] = []
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lend(self) -> Iterator[_T]:
        """One item, for the block; waits while all are lent. Raises BackendError once closed."""
        item, sound = self._take(), False
        try:
            yield item
            sound = True
        finally:
            self._give_back(item, sound)

    def close(self) -> None:
        """Free the idle items; those lent are freed when they come back. Twice is harmless."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._count -= len(idle)
            self._changed.notify_all()
        with contextlib.ExitStack() as stack:  # frees the others if one raises
            for item in idle:
                stack.callback(self._free, item)

    def _take(self) -> _T:
        with self._changed:
            while True:
                if self._closed:
                    raise BackendError("the session is closed; open a new one")
                if self._idle:
                    return self._idle.pop()
                if self._count < self._limit:
                    self._count += 1
                    break
                self._changed.wait()
        try:
            return self._make()
        except BaseException:
            self._forget()
            raise

    def _give_back(self, item: _T, sound: bool) -> None:
        with self._changed:
            if sound and not self._closed:
                self._idle.append(item)
                self._changed.notify()
                return
        try:
            self._free(item)
        finally:
            self._forget()

    def _forget(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify()
