"""Who stays in a race, and that it ends with the fastest on a noisy machine."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from t2t_deploy.bench import (
    BenchStatus,
    CaseResult,
    Round,
    standings,
    still_racing,
    times_per_image,
)

from .conftest import MakeCase, bench

RECORDED = Path(__file__).parents[1] / "data" / "recorded_rounds.json"


def test_standings_are_of_the_same_rounds() -> None:
    slow_minute = np.array([1.0, 1.0, 3.0, 3.0, 1.0])
    found = standings([2 * slow_minute, slow_minute, np.array([9.0])])
    assert list(found) == [1, 0], "the leader first, and nothing of one that left"
    assert (found[1].ratio, found[0].ratio) == (1.0, 2.0)
    assert (found[0].low, found[0].high) == (2.0, 2.0), "what slows all cancels"


def test_nobody_leaves_before_there_is_an_interval() -> None:
    times = [np.full(4, 1.0), np.full(4, 50.0)]
    assert still_racing(times) == [0, 1]
    assert still_racing([np.append(one, one[0]) for one in times]) == []


def test_one_noisy_round_makes_nobody_leave() -> None:
    noisy = np.array([1.0, 1.0, 40.0, 1.0, 1.0, 1.0])
    steady = np.full(6, 1.03)
    far = np.full(6, 2.0)
    found = standings([noisy, steady, far])
    assert next(iter(found)) == 0
    assert still_racing([noisy, steady, far]) == [], "the others are behind, and near enough"
    close = np.array([1.0, 1.2, 0.9, 1.3, 1.0, 1.0])
    assert still_racing([noisy, close, far]) == [0, 1]
    # behind by the median, and not surely
    half = np.array([1.0, 1.0, 1.0, 1.3, 1.3, 1.3, 1.3])
    assert still_racing([np.full(7, 1.0), half, np.full(7, 2.0)]) == [0, 1]


def test_what_is_alike_ends_a_race() -> None:
    assert still_racing([np.full(5, 1.0), np.full(5, 1.019)]) == []
    unsure = np.array([0.9, 1.2, 1.0, 1.3, 0.95])
    assert still_racing([np.full(5, 1.0), unsure]) == [0, 1]


def test_times_are_of_the_goal() -> None:
    row = CaseResult(
        *("ort-cpu", "a", "fp32", 4, BenchStatus.OK),
        streams=2,
        rounds=(Round(1, 1, (8.0, 8.0, 10.0), 12.0),),
    )
    assert times_per_image(row, throughput=False).tolist() == [2.0]
    assert times_per_image(row, throughput=True).tolist() == [1.0]


def test_what_leaves_is_timed_no_more(fake_case: MakeCase) -> None:
    cases = [fake_case("a", model="m"), fake_case("b", "eager", model="m")]
    seen = []

    def after_round(rows: object) -> list[int]:
        seen.append([len(row.rounds) for row in rows])  # type: ignore[attr-defined]
        return [1] if len(seen) >= 5 else [0, 1]

    report = bench(*cases, rounds=7, after_round=after_round)
    assert [len(row.rounds) for row in report.results] == [5, 7]
    assert seen[-1] == [5, 7]
    assert all(row.status is BenchStatus.OK for row in report.results)
    left, base = report.results
    assert left.speedup_vs_eager is not None and base.speedup_vs_eager is None


def test_a_race_ends_where_nobody_goes_on_and_goes_on_from_its_rows(fake_case: MakeCase) -> None:
    cases = [fake_case("a"), fake_case("b")]
    nobody = Mock(return_value=[])
    first = bench(*cases, rounds=7, after_round=nobody)
    nobody.assert_called_once()
    assert [len(row.rounds) for row in first.results] == [1, 1]
    more = bench(*cases, before=first.results)
    for before, after in zip(first.results, more.results, strict=True):
        assert [one.number for one in after.rounds] == [1, 2, 3, 4, 5]
        assert after.rounds[0] == before.rounds[0]


def _raced(table: np.ndarray) -> int:
    """The winner of a race over the rounds of a table, (cases, rounds) ms."""
    rounds = np.zeros(len(table), int)
    racing = list(range(len(table)))
    for _ in range(15):
        rounds[racing] += 1
        racing = still_racing([one[:count] for one, count in zip(table, rounds, strict=True)])
        if not racing:
            break
    times = [one[:count] for one, count in zip(table, rounds, strict=True)]
    return next(iter(standings(times)))


@pytest.mark.parametrize("name", json.loads(RECORDED.read_text())["models"])
def test_the_winner_is_within_5_percent_of_the_best_in_9_of_10_races(name: str) -> None:
    recorded = np.array(json.loads(RECORDED.read_text())["models"][name]["rounds_ms"])
    # the truth: medians over all rounds of what was timed side by side
    best = recorded[int(np.argmin(np.median(recorded, axis=1)))]
    truth = np.median(recorded / best, axis=1)
    rng = np.random.default_rng(0)
    good, races = 0, 200
    for _ in range(races):
        # rounds that were measured one after another, as slow minutes last for several of them
        starts = rng.integers(0, recorded.shape[1], 5)
        drawn = np.concatenate([np.arange(at, at + 3) for at in starts]) % recorded.shape[1]
        table = recorded[:, drawn].copy()
        # and what hits the turn of one case alone, three times as long
        hit = rng.random(table.shape) < 0.05
        table[hit] *= 3
        good += truth[_raced(table)] <= 1.05 * truth.min()
    assert good >= 0.9 * races, f"{good} of {races}"
