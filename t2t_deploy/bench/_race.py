"""Who stays in a bench of rivals: a case that is surely behind leaves, never on one noisy round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from t2t_deploy.bench._results import CaseResult, calls_and_ms
from t2t_deploy.bench._statistics import MIN_ROUNDS, Speedup, speedup_of

SURELY = 1.02
"""A case leaves where the lower end of its interval is above this many times the leader's time."""
ALIKE = 1.05
"""Nothing is left to find out where the upper ends of all intervals are at most this."""


def times_per_image(row: CaseResult, *, throughput: bool) -> np.ndarray:
    """Milliseconds a picture in each round: (R,) float64.

    By the median call, or for throughput by the elapsed time of all calls of all streams.
    """
    if not throughput:
        return row.round_medians_ms() / row.batch
    calls, elapsed_ms = calls_and_ms(row.rounds)
    return np.asarray(elapsed_ms / calls / row.batch)


def standings(times: Sequence[np.ndarray], *, seed: int = 0) -> Mapping[int, Speedup]:
    """How many times the leader's time each case takes, with its 95 % interval, the leader first.

    times: of each case in each round, (R,); those of fewer rounds have left and have no standing.
    The leader is the lowest by the median over rounds of its time over that of the round's middle
    case, which a slow minute of the machine moves as well; or what is still ahead of that one.
    """
    rounds = max((one.size for one in times), default=0)
    if rounds == 0:
        return {}
    racing = [index for index, one in enumerate(times) if one.size == rounds]
    table = np.array([times[index] for index in racing])
    ahead = table[int(np.argmin(np.median(table / np.median(table, axis=0), axis=1)))]
    leader = table[int(np.argmin(np.median(table / ahead, axis=1)))]
    found = {
        index: speedup_of(own, leader, seed=seed) for index, own in zip(racing, table, strict=True)
    }
    return dict(sorted(found.items(), key=lambda item: item[1].ratio))


def still_racing(times: Sequence[np.ndarray], *, seed: int = 0) -> list[int]:
    """The cases that go on; none where it is clear, to within `ALIKE`, who leads.

    times: as of `standings`. All go on until there are rounds enough for an interval.
    """
    found = standings(times, seed=seed)
    if max((one.size for one in times), default=0) < MIN_ROUNDS:
        return sorted(found)
    racing = sorted(index for index, one in found.items() if one.low <= SURELY)
    clear = all(found[index].high <= ALIKE for index in racing)
    return [] if clear else racing
