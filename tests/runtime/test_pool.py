"""Lending among threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from t2t_deploy.errors import BackendError
from t2t_deploy.runtime._trt_session import Pool


class Shelf:
    """Makes numbered items and remembers what became of them."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.freed: list[int] = []

    def make(self) -> int:
        self.made.append(len(self.made))
        return self.made[-1]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def pool_of(shelf: Shelf, limit: int) -> Pool[int]:
    return Pool(shelf.make, shelf.freed.append, limit)


def test_one_thread_makes_one_item(shelf: Shelf) -> None:
    pool = pool_of(shelf, 3)
    for _ in range(5):
        with pool.lend() as item:
            assert item == 0
    assert shelf.made == [0]


def test_an_item_has_one_borrower_and_there_are_no_more_than_the_limit(shelf: Shelf) -> None:
    pool, lent, most = pool_of(shelf, 3), set[int](), [0]
    lock = threading.Lock()

    def borrow(_: int) -> None:
        with pool.lend() as item:
            with lock:
                assert item not in lent
                lent.add(item)
                most[0] = max(most[0], len(lent))
            time.sleep(0.002)
            with lock:
                lent.remove(item)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(borrow, range(60)))
    assert most == [3] and shelf.made == [0, 1, 2]
    pool.close()
    assert sorted(shelf.freed) == [0, 1, 2]


def test_the_last_returned_is_lent_first(shelf: Shelf) -> None:
    pool = pool_of(shelf, 2)
    with pool.lend() as first, pool.lend():
        pass
    with pool.lend() as again:
        assert again == first


def test_an_item_whose_borrower_failed_is_not_lent_again(shelf: Shelf) -> None:
    pool = pool_of(shelf, 1)
    with pytest.raises(KeyboardInterrupt), pool.lend():
        raise KeyboardInterrupt
    assert shelf.freed == [0]
    with pool.lend() as item:
        assert item == 1


def test_a_failed_making_does_not_count(shelf: Shelf) -> None:
    def fail() -> int:
        raise BackendError("no memory")

    pool = Pool(fail, shelf.freed.append, 1)
    for _ in range(2):  # the second would wait for ever
        with pytest.raises(BackendError, match="no memory"), pool.lend():
            pass


def test_closing(shelf: Shelf) -> None:
    pool = pool_of(shelf, 2)
    with pool.lend() as lent:
        with pool.lend():
            pass
        pool.close()
        assert shelf.freed == [1], "what is lent is freed when it comes back"
    assert shelf.freed == [1, lent]
    pool.close()
    assert shelf.freed == [1, lent]
    with pytest.raises(BackendError, match="the session is closed"), pool.lend():
        pass


def test_closing_wakes_who_waits(shelf: Shelf) -> None:
    pool = pool_of(shelf, 1)
    with ThreadPoolExecutor(1) as threads, pool.lend():
        waiting = threads.submit(lambda: pool.lend().__enter__())
        time.sleep(0.05)
        assert not waiting.done()
        pool.close()
        with pytest.raises(BackendError, match="the session is closed"):
            waiting.result(timeout=5)


def test_one_that_does_not_free_keeps_no_other_from_it() -> None:
    freed = []

    def free(item: int) -> None:
        freed.append(item)
        if item == 1:
            raise BackendError("stuck")

    items = iter(range(3))
    pool = Pool(lambda: next(items), free, 3)
    with pool.lend(), pool.lend(), pool.lend():
        pass
    with pytest.raises(BackendError, match="stuck"):
        pool.close()
    assert sorted(freed) == [0, 1, 2]
