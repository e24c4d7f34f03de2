"""Damaged and hostile variants of files: a stream of them from a seed, the same in every run.

`mutations` knows no format. What a format's own structure allows is told by its seeds: a value of
one is spliced into another, and a number that stands before as many bytes is changed with them or
without them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

_INTERESTING = (
    b"\x00", b"\xff", b"\x80", b"\x7f", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80", b"\xff" * 8, b"\x80" * 9 + b"\x01", b"\xff" * 9 + b"\x01",
    b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"99999999999999999999", b"null", b"true", b"[]",
    b"{}", b'""', b"[" * 40, b"{\"a\":" * 40, b"../", b"/etc/passwd", b"\\u0000", b"<script>",
    b"\xc0\xaf", b"\xed\xa0\x80", b"\r\n", b"\x1b[31m", b"cos\nsystem\n", b"(S'x'\ntR.",
)  # fmt: skip
_WORD = re.compile(rb'"[^"\n]*"|[\w.-]+|\[+\w+\]+')
_STEPS = (1, 1, 1, 1, 2, 2, 3, 6)
_LONGEST_RUN = 4096

_KINDS = ("flip", "overwrite", "insert", "delete", "cut", "repeat", "splice", "count", "length")


def mutations(
    seeds: Sequence[bytes], stream: random.Random, words: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """Endless variants of the seeds, first the seeds themselves.

    words: keys, names and numbers of the format, that are put in and exchanged for each other;
    without any, those of the seeds, whose format is a text.
    """
    yield from seeds
    words = words or sorted({*_WORD.findall(b"\n".join(seeds)), *_INTERESTING})
    while True:
        content = bytearray(stream.choice(seeds))
        for _ in range(stream.choice(_STEPS)):
            if stream.random() < 0.4:
                _exchange_words(content, words, stream)
            else:
                _mutate(content, stream.choice(_KINDS), seeds, stream)
        yield bytes(content)


def _mutate(content: bytearray, kind: str, seeds: Sequence[bytes], stream: random.Random) -> None:
    """Change the content at one index. count: by a little, as where a byte is a length."""
    at = stream.randrange(len(content) + 1)
    if kind == "overwrite":
        what = stream.choice(_INTERESTING)
        content[at : at + len(what)] = what
    elif kind == "insert":
        content[at:at] = stream.choice(_INTERESTING) * stream.choice((1, 1, 1, 2, 50))
    elif kind == "delete":
        del content[at : at + stream.choice((1, 2, 4, 16, 256))]
    elif kind == "cut":
        del content[at:]
    elif kind == "repeat":
        piece = content[at : at + stream.randint(1, 64)]
        times = min(stream.choice((1, 2, 10, 1000)), _LONGEST_RUN // max(len(piece), 1))
        content[at:at] = piece * times
    elif kind == "splice":
        other = stream.choice(seeds)
        start = stream.randrange(len(other) + 1)
        piece = bytearray(other[start : start + stream.randint(1, 256)])
        content[at : at + stream.choice((0, len(piece)))] = piece
    elif kind == "length":
        _change_a_length(content, stream)
    elif at < len(content):
        step = stream.choice((-2, -1, 1, 2, 64, 128))
        flipped = content[at] ^ 1 << stream.randrange(8)
        content[at] = flipped if kind == "flip" else (content[at] + step) % 256


def _change_a_length(content: bytearray, stream: random.Random) -> None:
    """Find a byte that counts those behind it, and take one of them out or put some in."""
    for _ in range(50 if content else 0):
        at = stream.randrange(len(content))
        count, change = content[at], stream.choice((-1, 1, 3))
        if 0 < count < len(content) - at and count + change < 128:
            content[at] = count + change
            content[at + count : at + count + (change < 0)] = bytes(max(change, 0))
            return


def _exchange_words(content: bytearray, words: Sequence[bytes], stream: random.Random) -> None:
    old, new = stream.choice(words), stream.choice(words)
    start = stream.randrange(len(content) + 1)
    found = max(content.find(old, start), content.find(old))
    if found < 0:
        content[start:start] = new
    else:
        content[found : found + len(old)] = new
