"""Workers that fail, die, chatter or outlive their parent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from t2t_deploy._child import child_environment, ended_how
from t2t_deploy._codec import to_plain
from t2t_deploy.bench import BenchStatus, _run
from t2t_deploy.bench._run import Worker, WorkerError

from ..children import wait_until_ended
from .conftest import MakeCase, bench


def test_an_error_fails_one_case_and_the_thread_count_reaches_the_worker(
    fake_case: MakeCase,
) -> None:
    bad, good = bench(
        fake_case(threads=3, fail="{OMP_NUM_THREADS} of {MKL_NUM_THREADS}\nthreads"), fake_case()
    ).results
    assert (bad.status, bad.reason) == (BenchStatus.FAILED, "RuntimeError: 3 of 3 threads")
    assert good.status is BenchStatus.OK


@pytest.mark.parametrize(
    "hold_pipe", [False, True], ids=["alone", "while a forked child holds its pipe"]
)
def test_a_worker_killed_mid_run_fails_one_case(fake_case: MakeCase, hold_pipe: bool) -> None:
    dead, good = bench(fake_case(die_at=2, hold_pipe=hold_pipe), fake_case()).results
    assert dead.status is BenchStatus.FAILED
    assert dead.reason == f"the worker {ended_how(-signal.SIGKILL)}; stderr ends: last words"
    assert dead.latency_ms is None and dead.rounds == ()
    assert good.status is BenchStatus.OK


@pytest.fixture
def three_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven calls until a case is warm; four in each round, of which three are recorded."""
    monkeypatch.setattr(_run, "MAX_ITERATIONS", _run.MIN_ITERATIONS)
    monkeypatch.setattr(_run, "WARM_UP_CHUNK_S", 0.0)
    monkeypatch.setattr(_run, "WARM_UP_LIMIT_S", 60.0)
    monkeypatch.setattr(_run, "WARM_UP_AGREEMENT", 1e9)


@pytest.mark.usefixtures("three_calls")
def test_a_worker_killed_in_a_round_keeps_the_rounds_before(fake_case: MakeCase) -> None:
    dead, good = bench(fake_case(die_at=17), fake_case()).results
    assert dead.status is BenchStatus.FAILED
    assert dead.reason is not None and dead.reason.endswith("last words (after 2 complete rounds)")
    assert dead.latency_ms is not None and len(dead.latency_ms.samples) == 6
    assert dead.images_per_s and [one.number for one in dead.rounds] == [1, 2]
    assert dead.speedup_vs_eager is None
    assert [one.number for one in good.rounds] == [1, 2, 3, 4, 5]


def interrupt_at(step: object, error: BaseException) -> Callable[[str, int, int], None]:
    """A progress that raises at a step, by its number or its first words."""

    def interrupt(what: str, done: int, total: int) -> None:
        if done == step or what.startswith(f"{step}"):
            raise error

    return interrupt


@pytest.mark.parametrize(("round_", "speedup"), [(3, False), (7, True)])
def test_an_interrupted_bench_has_its_complete_rounds(
    fake_case: MakeCase, round_: int, speedup: bool
) -> None:
    interruptions: list[BaseException] = []
    report = bench(
        *(fake_case("base", "eager", model="14"), fake_case(model="14")),
        rounds=9,
        progress=interrupt_at(f"round {round_} of 9: ort-cpu", SystemExit(143)),
        interrupted=interruptions.append,
    )
    assert [type(one) for one in interruptions] == [SystemExit]
    assert report.cut_short == f"interrupted after {round_ - 1} of 9 rounds"
    base, other = report.results
    for row in (base, other):
        assert row.status is BenchStatus.OK
        assert [one.number for one in row.rounds] == list(range(1, round_))
    # of too few rounds there is no interval
    assert (other.speedup_vs_eager is not None) is speedup
    assert (other.throughput_vs_eager is not None) is speedup


@pytest.mark.parametrize("step", [1, 3], ids=["while loading", "in the first round"])
def test_an_interruption_before_a_complete_round_is_raised(fake_case: MakeCase, step: int) -> None:
    cases = fake_case("a"), fake_case("b")
    nothing = Mock(side_effect=AssertionError("there is nothing to keep"))
    with pytest.raises(SystemExit):
        bench(*cases, progress=interrupt_at(step, SystemExit(143)), interrupted=nothing)


@pytest.mark.parametrize("loads", [1, 4])
def test_models_loaded_side_by_side_are_warmed_up_afterwards(
    fake_case: MakeCase, tmp_path: Path, loads: int
) -> None:
    log = tmp_path / "calls"
    cases = [fake_case(name, log=str(log)) for name in "abc"]
    report = bench(*cases, fake_case(fail="no"), loads=loads)
    found = [row.status for row in report.results]
    assert found == [*[BenchStatus.OK] * 3, BenchStatus.FAILED]
    first = {line.split()[0] for line in log.read_text().splitlines()[:3]}
    assert first == ({"a"} if loads == 1 else {*"abc"})


def test_an_interrupt_ends_loads_that_run_side_by_side(fake_case: MakeCase) -> None:
    def interrupt(*_: object) -> None:
        raise SystemExit(143)

    usual = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    started = time.monotonic()
    try:
        with pytest.raises(SystemExit):
            bench(*(fake_case(name, sleep_s=60) for name in "abc"), loads=2)
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert time.monotonic() - started < 30


def test_a_worker_that_hangs_is_ended(fake_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "LOAD_TIMEOUT_S", 1.0)
    (hung,) = bench(fake_case(sleep_s=60)).results
    assert (hung.status, hung.reason) == (
        BenchStatus.FAILED,
        "no answer from the worker within 1 s; it was ended",
    )


def test_what_a_library_prints_does_not_reach_the_protocol(fake_case: MakeCase) -> None:
    (result,) = bench(fake_case(noise=True)).results
    assert (result.status, result.reason) == (BenchStatus.OK, None)


def test_a_crash_while_closing_keeps_the_measurement(fake_case: MakeCase) -> None:
    (result,) = bench(fake_case(crash_at_close=True)).results
    assert result.status is BenchStatus.OK


def test_peak_memory_is_the_workers_own(fake_case: MakeCase) -> None:
    ballast = np.ones(400 << 20, np.uint8)
    (result,) = bench(fake_case()).results
    assert result.peak_rss_bytes is not None
    assert result.peak_rss_bytes < ballast.nbytes


def test_a_command_that_is_no_command(fake_case: MakeCase) -> None:
    fake_case()
    with Worker(None) as worker:
        with pytest.raises(WorkerError, match="ValueError: run came before load"):
            worker.run(1, expected_ns=0)
        with pytest.raises(WorkerError, match="ValueError: command is 'jump'"):
            worker._ask({"command": "jump"}, 10)


@pytest.mark.parametrize("step", [0, 1, 3], ids=["first", "second load", "in a round"])
def test_no_process_is_left_after_an_interrupt(
    fake_case: MakeCase, tmp_path: Path, step: int
) -> None:
    pids = tmp_path / "pids"
    pids.touch()

    cases = [fake_case(str(index), pids=str(pids), detach=True) for index in range(2)]
    with pytest.raises(KeyboardInterrupt):
        bench(*cases, progress=interrupt_at(step, KeyboardInterrupt()))
    left = [int(line) for line in pids.read_text().split()]
    assert len(left) == 3 * min(step, 2)  # each worker has two children
    wait_until_ended(*left, timeout_s=5)


def test_no_process_is_left_after_a_bench(fake_case: MakeCase, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    bench(fake_case(pids=str(pids)), fake_case(pids=str(pids), die_at=10))
    left = [int(line) for line in pids.read_text().split()]
    assert len(left) == 4
    wait_until_ended(*left, timeout_s=5)


def test_a_worker_ends_with_its_parent_even_in_a_call(fake_case: MakeCase, tmp_path: Path) -> None:
    log, pids = tmp_path / "log", tmp_path / "pids"
    case = fake_case("a", sleep_s=60, log=str(log), pids=str(pids))
    message = {"command": "load", "request": to_plain(case.request), "batch": 1, "seed": 0}
    worker = subprocess.Popen(
        _run.WORKER_COMMAND, stdin=subprocess.PIPE, env=child_environment(None)
    )
    assert worker.stdin
    try:
        worker.stdin.write(json.dumps(message).encode() + b"\n")
        worker.stdin.flush()
        deadline = time.monotonic() + 20
        while not log.exists():  # the call that takes a minute has begun
            assert time.monotonic() < deadline and worker.poll() is None
            time.sleep(0.02)
        worker.stdin.close()
        assert worker.wait(timeout=10) == 0
    finally:
        worker.kill()
        worker.wait()
        subprocess.run(["kill", pids.read_text().split()[1]], check=True)


def test_environment_leaves_threads_alone_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert child_environment(None)["OMP_NUM_THREADS"] == "7"
    assert child_environment(2)["OMP_NUM_THREADS"] == "2"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is new in Python 3.11")
def test_a_file_in_the_working_folder_is_not_imported(empty_folder: Path) -> None:
    (empty_folder / "psutil.py").write_text("raise RuntimeError('the wrong psutil')")
    with Worker(None) as worker:
        assert worker._ask({"command": "close"}, 20) == {"ok": True}
