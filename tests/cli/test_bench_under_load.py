"""A machine that becomes busy half-way, for real."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from t2t_deploy.bench import bench_table
from t2t_deploy.commands import DocumentedBench, benchmark

ROUNDS, FIRST_BUSY = 7, 4


class Hogs:
    """Two busy processes for each core, from a round on; it is the command's `Progress`."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def progress(self, text: str, done: int, total: int) -> None:
        if text.startswith(f"round {FIRST_BUSY} of {ROUNDS}") and not self.processes:
            for _ in range(2 * (os.cpu_count() or 1)):
                # sessions of their own: some schedulers share time between sessions first
                hog = subprocess.Popen(
                    [sys.executable, "-c", "while True: pass"], start_new_session=True
                )
                self.processes.append(hog)


@pytest.fixture
def hogs() -> Iterator[Hogs]:
    made = Hogs()
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.fixture
def disturbed(workspace: Path, hogs: Hogs) -> DocumentedBench:
    done = benchmark(
        backend=("eager", "ort-cpu"),
        threads=1,
        rounds=ROUNDS,
        report="r.html",
        csv="f.csv",
        workspace=workspace,
        progress=hogs,
    )
    assert hogs.processes and all(process.poll() is None for process in hogs.processes)
    return done


@pytest.mark.slow
def test_cases_are_unstable_in_every_output(disturbed: DocumentedBench) -> None:
    eager, ours = disturbed.report.results
    for result in (eager, ours):
        means = np.array([np.mean(one.samples_ms) for one in result.rounds])
        quiet, busy = means[: FIRST_BUSY - 1], means[FIRST_BUSY - 1 :]
        # it is the hogs that are seen, not what else goes on
        assert np.median(busy) > 1.2 * np.median(quiet), means
        assert result.unstable, means
    assert [row["unstable"] for row in disturbed.to_dict()["results"]] == [True, True]

    lines = csv.DictReader(Path("f.csv").read_text().splitlines())
    assert [line["unstable"] for line in lines] == ["true", "true"]

    console = Console(width=300, record=True, file=io.StringIO())
    console.print(bench_table(disturbed.report))
    assert console.export_text().count("unstable: rounds spread by ") == 2

    page = Path("r.html").read_text()
    assert "2 of 2 cases are unstable" in page
    assert page.count('class="warn">unstable, ') == 2
