"""Many pictures through a classifier, a batch at a time, read while it computes."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from t2t_deploy.errors import ImageError
from t2t_deploy.serving._classifier import Classifier

NOT_FINITE = "the artifact gives NaN or infinity for this picture"
_BATCHES_AHEAD = 2

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True, slots=True)
class PictureClasses:
    """A picture's classes, best first, or why it has none.

    image: its path, as a string in which undecodable bytes are surrogates. unreadable: whether it
    could not be read; else what the artifact gave are no numbers.
    """

    image: str
    indices: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    unreadable: bool = False


def classify_pictures(
    classifier: Classifier, images: Iterable[str], read: Read, *, top: int, readers: int
) -> Generator[PictureClasses, None, None]:
    """The classes of each picture, in order; a few batches are held at any time.

    read: makes (S, S, 3) uint8 of a picture, or raises ImageError. readers: threads that do so
    while the session computes; 0 reads in this one.
    """
    with contextlib.ExitStack() as stack:
        chunks = _chunks(images, classifier.batch)
        if readers == 0:
            for chunk in chunks:
                yield from _classified(classifier, chunk, [_read(read, n) for n in chunk], top)
            return
        pool = ThreadPoolExecutor(readers, thread_name_prefix="t2t-read")
        stack.callback(pool.shutdown, cancel_futures=True)
        ahead: deque[tuple[list[str], list[Future[np.ndarray | ImageError]]]] = deque()
        for chunk in chunks:
            ahead.append((chunk, [pool.submit(_read, read, name) for name in chunk]))
            if len(ahead) > _BATCHES_AHEAD:
                names, reading = ahead.popleft()
                yield from _classified(classifier, names, [r.result() for r in reading], top)
        for names, reading in ahead:
            yield from _classified(classifier, names, [r.result() for r in reading], top)


def _read(read: Read, name: str) -> np.ndarray | ImageError:
    try:
        return read(name)
    except ImageError as err:
        return err


def _classified(
    classifier: Classifier, names: list[str], found: list[np.ndarray | ImageError], top: int
) -> Iterator[PictureClasses]:
    pictures = [pixels for pixels in found if not isinstance(pixels, ImageError)]
    classes = classifier.classify(np.stack(pictures), top) if pictures else None
    place = 0
    for name, pixels in zip(names, found, strict=True):
        if isinstance(pixels, ImageError):
            yield PictureClasses(name, error=str(pixels), unreadable=True)
            continue
        assert classes is not None
        if classes.finite[place]:
            yield PictureClasses(
                name,
                tuple(classes.indices[place].tolist()),
                # through text: the shortest decimals that mean this float32
                tuple(float(str(share)) for share in classes.probabilities[place]),
            )
        else:
            yield PictureClasses(name, error=NOT_FINITE)
        place += 1


def _chunks(images: Iterable[str], count: int) -> Iterator[list[str]]:
    names = iter(images)
    while chunk := list(itertools.islice(names, count)):
        yield chunk
