"""No file that a reader gets ends in anything but what it says or a clean refusal."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from . import harness
from .harness import LIMIT_S, Outcome, Target, fuzz
from .mutator import mutations
from .targets import TARGETS

FEW, MANY = 300, 100_000
MOST_GROWTH_KIB = 1 << 20
"""Of this process, the libraries that a reader loads included; the files have a few kB."""

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.name))


def assert_clean(outcome: Outcome, count: int) -> None:
    assert not outcome.broken, f"{len(outcome.broken)}, the first: {outcome.broken[0]}"
    assert outcome.read + outcome.refused == count
    assert outcome.read > 0 and outcome.refused > 0
    assert outcome.grown_kib < MOST_GROWTH_KIB


@every_target
def test_few(target: Target, tmp_path: Path) -> None:
    assert_clean(fuzz(target, FEW, tmp_path), FEW)


@pytest.mark.slow
@every_target
def test_many(target: Target, tmp_path: Path) -> None:
    assert_clean(fuzz(target, MANY, tmp_path, seed=1), MANY)


def test_every_seed_is_read(tmp_path: Path) -> None:
    """Fuzzing what is refused at its first byte would prove nothing."""
    for target in TARGETS:
        path = tmp_path / f"seed{target.suffix}"
        refused = 0
        for content in target.seeds(tmp_path):
            path.write_bytes(content)
            one = replace(target, seeds=lambda _, c=content: [c])  # type: ignore[misc]
            outcome = fuzz(one, 1, tmp_path)
            assert not outcome.broken, outcome.broken
            refused += outcome.refused
        assert refused < len(target.seeds(tmp_path)), target.name


@pytest.mark.parametrize(
    "read",
    [
        lambda path: path.read_bytes()[1000],  # IndexError
        lambda path: any(False for _ in iter(int, 1)),  # for ever
    ],
    ids=["raises", "hangs"],
)
def test_the_harness_notices(read: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "LIMIT_S", 1)
    target = Target("bad", lambda folder: [b"seed"], read, ".bin")  # type: ignore[arg-type]
    outcome = fuzz(target, 1, tmp_path)
    assert [content for content, _ in outcome.broken] == [b"seed"]
    assert LIMIT_S > 0


def test_the_stream_is_the_same_in_every_run() -> None:
    def first(seed: int) -> list[bytes]:
        return list(itertools.islice(mutations([b"abc", b"12345"], random.Random(seed)), 50))

    assert first(0) == first(0) != first(1)
    assert first(0)[:2] == [b"abc", b"12345"]
    assert len(set(first(0))) > 30
