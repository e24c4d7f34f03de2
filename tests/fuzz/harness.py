"""Feeds a reader with variants of files, and notes what is neither read nor cleanly refused."""

from __future__ import annotations

import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType

from t2t_deploy.errors import DeployError

from .mutator import mutations

LIMIT_S = 20
"""For one input, by the processor's clock: far more than any takes, since it is not to measure."""


class Hang(BaseException):
    """An input takes for ever. Nothing that catches Exception may swallow it."""


@dataclass(frozen=True)
class Target:
    """A reader under test. seeds: whole files of its format. read: what a command does with one.

    words: of the format, see `mutations`. suffix: of the file's name.
    """

    name: str
    seeds: Callable[[Path], Sequence[bytes]]
    read: Callable[[Path], object]
    suffix: str
    words: Sequence[bytes] = ()


@dataclass
class Outcome:
    """What became of the inputs. broken: those that ended otherwise, and how."""

    read: int = 0
    refused: int = 0
    broken: list[tuple[bytes, str]] = field(default_factory=list)
    grown_kib: int = 0


def fuzz(target: Target, count: int, folder: Path, seed: int = 0) -> Outcome:
    """Read that many variants, one after the other, in this process."""
    outcome = Outcome()
    path = folder / f"input{target.suffix}"
    before = _peak_kib()
    stream = random.Random(f"{target.name} {seed}")
    for content in islice(mutations(target.seeds(folder), stream, target.words), count):
        path.write_bytes(content)
        try:
            with _time_limit():
                target.read(path)
            outcome.read += 1
        except DeployError as err:
            if "\n" in str(err):
                outcome.broken.append((content, f"more than one line: {err}"))
            outcome.refused += 1
        except (Exception, Hang):
            outcome.broken.append((content, traceback.format_exc()))
    outcome.grown_kib = _peak_kib() - before
    return outcome


@contextmanager
def _time_limit() -> Iterator[None]:
    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hang

    kept = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, kept)


def _peak_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak
