"""Run `predict --ray` as a process of its own, look at its processes and at what it wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

import t2t_deploy

TIMEOUT_S = 300
WORKER = "ray::MapWorker"


@dataclass(frozen=True)
class Done:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


def environment(home: Path, *paths: Path) -> dict[str, str]:
    """The package, and modules in ``paths``, are importable, in workers too; home is ``home``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "T2T_DEPLOY_"))}
    found = os.pathsep.join(map(str, (*paths, Path(t2t_deploy.__file__).parents[1])))
    return kept | {"PYTHONPATH": found, "HOME": str(home), "OMP_NUM_THREADS": "1"}


def run(
    home: Path, *words: object, while_running: Callable[[psutil.Process], None] | None = None
) -> Done:
    """Run a command line; ``while_running`` is handed its process."""
    with subprocess.Popen(
        [sys.executable, "-m", "t2t_deploy", *map(str, words)],
        env=environment(home),
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            if while_running is not None:
                while_running(psutil.Process(process.pid))
            out, err = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.terminate()
            raise
    return Done(process.returncode, out, err)


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """The actors below a driver, by the titles that Ray gives its processes."""
    found = []
    for process in driver.children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(happened: Callable[[], Any], driver: psutil.Process) -> Any:
    """Wait for it; fails where the driver ends before, or it takes too long."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if found := happened():
            return found
        if not driver.is_running() or driver.status() == psutil.STATUS_ZOMBIE:
            raise AssertionError("the driver ended")
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def kill_a_worker(output: Path, after: int) -> Callable[[psutil.Process], None]:
    """SIGKILL one of the actors once so many blocks are written."""

    def kill(driver: psutil.Process) -> None:
        until(lambda: len(blocks_in(output)) >= after, driver)
        victims = until(lambda: workers_of(driver), driver)
        victims[0].send_signal(signal.SIGKILL)

    return kill


def blocks_in(output: Path) -> list[Path]:
    """Files of predictions, whole ones only."""
    return _whole(output / "predictions")


def rows_in(output: Path, table: str = "predictions") -> list[dict[str, Any]]:
    """All rows of a table, in the order of the blocks' names."""
    return [row for path in _whole(output / table) for row in pq.read_table(path).to_pylist()]


def _whole(folder: Path) -> list[Path]:
    """Unfinished files begin with a dot."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def write_jpegs(folder: Path, count: int, *, side: int = 40, seed: int = 0) -> Path:
    """Distinct pictures: smooth noise, in folders of 1,000."""
    stream = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(stream.integers(0, 256, (6, 6, 3), np.uint8))
        place = folder / f"{index // 1000:03}" / f"{index:06}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(place, quality=90)
    return folder
