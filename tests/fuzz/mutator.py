"""Damaged and hostile variants of files: a stream of them from a seed, the same in every run.

`mutations` knows no format. What a format's own structure allows is told by its seeds: a value of
one is spliced into another, and a number that stands before as many bytes is changed with them or
without them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

_INTERESTING = (
    b"\x00", b"\xff", b"\x80", b"\x7f", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80", b"\xff" * 8, b"\x80" * 9 + b"\x01", b"\xff" * 9 + b"\x01",
    b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"99999999999999999999", b"null", b"true", b"[]",
    b"{}", b'""', b"[" * 40, b"{\"a\":" * 40, b"../", b"/etc/passwd", b"\\u0000", b"<script>",
    b"\xc0\xaf", b"\xed\xa0\x80", b"\r\n", b"\x1b[31m", b"cos\nsystem\n", b"(S'x'\ntR.",
)  # fmt: skip
_STEPS = (1, 1, 1, 1, 2, 2, 3, 6)
_LONGEST_RUN = 4096

Mutation = Callable[[bytearray, Sequence[bytes], random.Random], None]


def mutations(
    seeds: Sequence[bytes], stream: random.Random, words: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """Endless variants of the seeds, first the seeds themselves.

    words: keys, names and numbers of the format, that are put in and exchanged for each other.
    """
    yield from seeds
    while True:
        content = bytearray(stream.choice(seeds))
        for _ in range(stream.choice(_STEPS)):
            if words and stream.random() < 0.4:
                _exchange_words(content, words, stream)
            else:
                stream.choice(_MUTATIONS)(content, seeds, stream)
        yield bytes(content)


def _place(content: bytearray, stream: random.Random) -> int:
    return stream.randrange(len(content) + 1)


def _flip(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    if content:
        content[stream.randrange(len(content))] ^= 1 << stream.randrange(8)


def _overwrite(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    what = stream.choice(_INTERESTING)
    place = _place(content, stream)
    content[place : place + len(what)] = what


def _insert(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    place = _place(content, stream)
    content[place:place] = stream.choice(_INTERESTING) * stream.choice((1, 1, 1, 2, 50))


def _delete(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    place = _place(content, stream)
    del content[place : place + stream.choice((1, 2, 4, 16, 256))]


def _cut(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    del content[_place(content, stream) :]


def _repeat(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    place = _place(content, stream)
    piece = content[place : place + stream.randint(1, 64)]
    times = min(stream.choice((1, 2, 10, 1000)), _LONGEST_RUN // max(len(piece), 1))
    content[place:place] = piece * times


def _splice(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    other = stream.choice(seeds)
    if not other:
        return
    start = stream.randrange(len(other))
    piece = other[start : start + stream.randint(1, 256)]
    place = _place(content, stream)
    content[place : place + stream.choice((0, len(piece)))] = piece


def _count(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    """Change a byte by a little, as where it is a length."""
    if content:
        place = stream.randrange(len(content))
        content[place] = (content[place] + stream.choice((-2, -1, 1, 2, 64, 128))) % 256


def _length(content: bytearray, seeds: Sequence[bytes], stream: random.Random) -> None:
    """Find a byte that counts those behind it, and take some of them out or put some in."""
    for _ in range(50):
        if not content:
            return
        place = stream.randrange(len(content))
        count = content[place]
        if 0 < count <= len(content) - place - 1:
            change = stream.choice((-1, 1, 3))
            if not 0 <= count + change < 128:
                continue
            content[place] = count + change
            if change < 0:
                del content[place + count]
            else:
                content[place + count : place + count] = bytes(change)
            return


def _exchange_words(content: bytearray, words: Sequence[bytes], stream: random.Random) -> None:
    old, new = stream.choice(words), stream.choice(words)
    start = _place(content, stream)
    place = content.find(old, start)
    if place < 0:
        place = content.find(old)
    if place < 0:
        content[start:start] = new
    else:
        content[place : place + len(old)] = new


_MUTATIONS: Sequence[Mutation] = (
    *(_flip, _overwrite, _insert, _delete, _cut, _repeat, _splice, _count, _length),
)
