"""Pictures in blocks that are the same in every run, so that a run can be taken up again."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

DEFAULT_BLOCK = 256


@dataclass(frozen=True, slots=True)
class PictureBlock:
    """Some pictures in a row. ordinal: its place among all blocks, from 0."""

    ordinal: int
    images: tuple[str, ...]

    def name(self, identity: str) -> str:
        """A file name that tells the block's place, and whether it is still the same.

        identity: of what is done with the pictures.
        """
        digest = hashlib.sha256(identity.encode())
        for image in self.images:
            digest.update(b"\0" + os.fsencode(image))
        return f"{self.ordinal:08d}-{digest.hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class SkippedBlocks:
    """What a listing found: how many blocks there are, and which of them were done before."""

    blocks: int
    names: tuple[str, ...]


def blocks_of(images: Iterable[str], size: int) -> Iterator[PictureBlock]:
    """Cut pictures into blocks of ``size``, the last one shorter; one block is held at a time."""
    names = iter(images)
    for ordinal in itertools.count():
        block = tuple(itertools.islice(names, size))
        if not block:
            return
        yield PictureBlock(ordinal, block)


def blocks_to_do(
    images: Iterable[str], size: int, identity: str, done: Collection[str]
) -> Iterator[PictureBlock | SkippedBlocks]:
    """The blocks whose name is not among ``done``; at the end, what was skipped."""
    skipped = []
    count = 0
    for block in blocks_of(images, size):
        count += 1
        name = block.name(identity)
        if name in done:
            skipped.append(name)
        else:
            yield block
    yield SkippedBlocks(count, tuple(skipped))
