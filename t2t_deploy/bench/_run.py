"""Measure cases side by side: one worker each, warmed up, then in interleaved rounds."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from t2t_deploy.bench import _case_run
from t2t_deploy.bench._case_run import CaseRun, Worker
from t2t_deploy.bench._environment import load_average, read_environment, watch_gpus
from t2t_deploy.bench._results import BenchCase, BenchReport, BenchSettings, BenchStatus, CaseResult
from t2t_deploy.bench._statistics import Speedup, speedup_of
from t2t_deploy.errors import UsageError
from t2t_deploy.runtime import REFERENCE_BACKEND
from t2t_deploy.types import Precision

DEFAULT_ROUNDS = 7
MIN_ROUNDS = 5
"""The range of n rounds holds the true median with probability 1 - 2^(1-n): 0.94 at 5, 0.75 at 3.
Fewer rounds cannot give a 95 % interval."""
DEFAULT_ROUND_SECONDS = 0.5


def run_bench(
    cases: Sequence[BenchCase],
    *,
    rounds: int = DEFAULT_ROUNDS,
    round_seconds: float = DEFAULT_ROUND_SECONDS,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> BenchReport:
    """Measure all cases; a failure becomes a failed result and the others go on.

    Rounds are interleaved because machines drift: the cases of one round are seconds apart.
    round_seconds: about the time of one case in one round. seed: of the inputs, the order of turns
    and the bootstrap. progress: called with the next step, the steps done and the steps in all. All
    models are in memory at once, one process each; all processes end on return, and on errors.
    Raises UsageError.
    """
    _check_request(cases, rounds, round_seconds)
    load_before = load_average()
    steps = len(cases) * (1 + rounds)
    with ExitStack() as stack:
        gpus = stack.enter_context(watch_gpus())

        def announce(what: str, done: int) -> None:
            if progress is not None:
                progress(what, done, steps)

        case_runs: list[CaseRun] = []
        for case in cases:
            announce(f"loading and warming up {_label(case)}", len(case_runs))
            case_run = CaseRun(case, stack.enter_context(Worker(case.request.threads)))
            case_run.prepare(seed)
            case_runs.append(case_run)
        done = len(case_runs)
        for number, order in enumerate(turn_orders(len(case_runs), rounds, seed), start=1):
            for turn, index in enumerate(order, start=1):
                announce(f"round {number} of {rounds}: {_label(case_runs[index].case)}", done)
                case_runs[index].take_turn(number, turn, round_seconds)
                done += 1
            gpus.look()
        announce("done", done)
    environment = read_environment(
        threads=[case.request.threads for case in cases],
        load_before=load_before,
        gpus=gpus.records(),
    )
    settings = BenchSettings(
        rounds=rounds,
        round_seconds=round_seconds,
        warm_up_limit_s=_case_run.WARM_UP_LIMIT_S,
        seed=seed,
        devices=tuple(dict.fromkeys(case.request.device for case in cases)),
    )
    results = [case_run.result() for case_run in case_runs]
    bases = {_group(case): row for case, row in zip(cases, results, strict=True) if _is_base(case)}
    compared = (
        _with_speedup(row, bases.get(_group(case)), seed)
        for case, row in zip(cases, results, strict=True)
    )
    return BenchReport(environment, tuple(compared), settings)


def turn_orders(cases: int, rounds: int, seed: int) -> list[list[int]]:
    """The order of the cases in each round, shuffled so that their neighbours vary."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(cases).tolist() for _ in range(rounds)]


def speedup_between(base: CaseResult, other: CaseResult, *, seed: int = 0) -> Speedup:
    """How many times faster ``other`` is than ``base``; both measured in one bench."""
    return speedup_of(base.round_medians_ms(), other.round_medians_ms(), seed=seed)


def _check_request(cases: Sequence[BenchCase], rounds: int, round_seconds: float) -> None:
    if not cases:
        raise UsageError("no case to bench; expected at least one: name a backend or an artifact")
    if rounds < MIN_ROUNDS:
        raise UsageError(
            f"rounds is {rounds}; a 95 % interval takes at least {MIN_ROUNDS}: set "
            f"rounds to {MIN_ROUNDS} or more"
        )
    if not (math.isfinite(round_seconds) and round_seconds > 0):
        raise UsageError(
            f"round_seconds is {round_seconds}; expected a positive number, such as "
            f"{DEFAULT_ROUND_SECONDS}"
        )
    eager = Counter(_group(case) for case in cases if _is_base(case))
    for (model, batch), count in eager.items():
        if count > 1:
            raise UsageError(
                f"{count} eager cases of {model or 'one model'} at batch {batch}; speedups need "
                "one: leave the others out"
            )


def _with_speedup(row: CaseResult, base: CaseResult | None, seed: int) -> CaseResult:
    if base is None or base is row or {base.status, row.status} != {BenchStatus.OK}:
        return row
    return dataclasses.replace(row, speedup_vs_eager=speedup_between(base, row, seed=seed))


def _group(case: BenchCase) -> tuple[str | None, int]:
    """The cases of one group are compared."""
    return (case.model, case.batch)


def _is_base(case: BenchCase) -> bool:
    # eager under autocast is a case like others
    return (case.backend, case.precision) == (REFERENCE_BACKEND, Precision.FP32.value)


def _label(case: BenchCase) -> str:
    return f"{case.backend} {case.artifact or case.request.path.name}, batch {case.batch}"
