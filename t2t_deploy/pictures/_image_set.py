"""A folder of pictures as a set with an identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2t_deploy.errors import ImageError
from t2t_deploy.images import SUFFIXES, preprocess, read_image


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """Some pictures of a set and what became of them.

    pictures: (n, 3, S, S) float32; labels: (n,) int64, None where the set has none;
    unreadable: the reason for each picture that is not among them.
    """

    pictures: np.ndarray
    labels: np.ndarray | None
    unreadable: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pictures of a folder in a fixed order.

    paths: sorted by name; left_out: how many further pictures the folder holds.
    """

    folder: Path
    paths: tuple[Path, ...]
    left_out: int = 0

    @property
    def sha256(self) -> str:
        """Identity of the set: see `identity_of`."""
        return identity_of(self.digests())

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each file's content, in the order of ``paths``."""
        return file_digests(self.paths)

    def readable_batches(self, size: int, batch: int) -> Iterator[PictureBatch]:
        """As `batches`, ``batch`` files at a time; one that cannot be read is told, not raised."""
        for start in range(0, len(self.paths), batch):
            pictures, unreadable = read_pictures(self.paths[start : start + batch], size)
            yield PictureBatch(
                stacked([picture for picture in pictures if picture is not None], size),
                None,
                unreadable,
            )

    def batches(self, size: int, batch: int) -> Iterator[np.ndarray]:
        """Preprocessed pictures, (n, 3, size, size) float32 with n <= batch.

        Raises ImageError naming the first picture that cannot be read.
        """
        for start in range(0, len(self.paths), batch):
            chosen = self.paths[start : start + batch]
            yield np.stack([preprocess(read_image(path), size) for path in chosen])


def file_digests(paths: Iterable[Path]) -> tuple[str, ...]:
    """SHA-256 of each file's content, in hexadecimal."""
    return tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)


def identity_of(digests: Iterable[str]) -> str:
    """Identity of a set of pictures: a hash over their contents, whatever their names and order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def read_pictures(
    paths: Sequence[Path], size: int
) -> tuple[list[np.ndarray | None], tuple[tuple[Path, str], ...]]:
    """Each picture preprocessed, or None and the reason why it cannot be read."""
    pictures: list[np.ndarray | None] = []
    unreadable = []
    for path in paths:
        try:
            pictures.append(preprocess(read_image(path), size))
        except ImageError as err:
            pictures.append(None)
            unreadable.append((path, str(err)))
    return pictures, tuple(unreadable)


def stacked(pictures: Sequence[np.ndarray], size: int) -> np.ndarray:
    """(n, 3, size, size) float32, also of no picture."""
    return np.stack(pictures) if pictures else np.empty((0, 3, size, size), np.float32)


def image_set_from_folder(
    folder: Path, *, count: int | None = None, spread: bool = False
) -> ImageSet:
    """All pictures below a folder, ``count`` of them; None takes all.

    spread: take them from the whole of the folder at even steps, as of class folders, instead of
    the first by name.

    Raises ImageError where there is no folder or no picture in it.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder; give one with pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = [path for path in found if path.is_file()]
    if not found:
        raise ImageError(
            f"{folder} holds no picture ({', '.join(sorted(SUFFIXES))}); give a folder with some"
        )
    kept = found if count is None else found[:count]
    if spread and len(kept) < len(found):
        kept = [found[place * len(found) // len(kept)] for place in range(len(kept))]
    return ImageSet(folder, tuple(kept), left_out=len(found) - len(kept))
