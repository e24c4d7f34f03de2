"""A folder of pictures as a set with an identity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2t_deploy.errors import ImageError
from t2t_deploy.images import SUFFIXES, preprocess, read_image


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
        """Identity of the set: the hash over the contents of its files, whatever their names."""
        digests = sorted(hashlib.sha256(path.read_bytes()).digest() for path in self.paths)
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def batches(self, size: int, batch: int) -> Iterator[np.ndarray]:
        """Preprocessed pictures, (n, 3, size, size) float32 with n <= batch.

        Raises ImageError naming the first picture that cannot be read.
        """
        for start in range(0, len(self.paths), batch):
            chosen = self.paths[start : start + batch]
            yield np.stack([preprocess(read_image(path), size) for path in chosen])


def image_set_from_folder(folder: Path, *, count: int | None = None) -> ImageSet:
    """All pictures below a folder, the first ``count`` by name; None takes all.

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
    return ImageSet(folder, tuple(kept), left_out=len(found) - len(kept))
