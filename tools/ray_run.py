"""20,000 made pictures on 2 workers of a Ray cluster of this machine, one of them killed.

    python tools/ray_run.py
    python tools/ray_run.py --pictures 2000 --folder /tmp/run --plot run.png

Predicts the same pictures in one process and across the cluster, compares every class, counts how
often each picture is in the output, samples the memory of all processes every second, and sets the
throughput of both side by side. Writes FOLDER/figures.json and the plot.
Exit status: 0; 3 where a check fell short.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray_runs as runs

MODEL = """\
name = "small_64"
tokens_type = "performer"
embed_dim = 128
depth = 6
num_heads = 4
mlp_ratio = 2.0
image_size = 64
num_classes = 100
"""
MOST_GROWTH = 0.05
LEAST_SHARE = 0.8
SIDE = 96


@dataclass
class Watch:
    """Samples a process and all below it once a second, in a thread.

    samples: seconds, and bytes resident of the driver, of a worker (their mean) and of the rest of
    Ray together, where memory that processes share counts once for each.
    """

    output: Path | None = None
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    blocks: list[tuple[float, int]] = field(default_factory=list)
    _cpu: dict[tuple[int, float], float] = field(default_factory=dict)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes, those that ended included."""
        return sum(self._cpu.values())

    def follow(self, driver: psutil.Process) -> threading.Thread:
        """Begin; the thread ends with the process."""
        thread = threading.Thread(target=self._sample_until_end, args=(driver,), daemon=True)
        thread.start()
        return thread

    def _sample_until_end(self, driver: psutil.Process) -> None:
        begun = time.monotonic()
        while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
            now = time.monotonic() - begun
            try:
                processes = [driver, *driver.children(recursive=True)]
            except psutil.Error:
                return
            sums, workers = [0, 0, 0], 0
            for process in processes:
                try:
                    with process.oneshot():
                        name = (process.cmdline() or [""])[0]
                        times = process.cpu_times()
                        rss = process.memory_info().rss
                        self._cpu[process.pid, process.create_time()] = times.user + times.system
                except psutil.Error:
                    continue
                if process == driver:
                    sums[0] += rss
                elif name.startswith(runs.WORKER):
                    sums[1], workers = sums[1] + rss, workers + 1
                else:
                    sums[2] += rss
            sums[1] //= max(workers, 1)
            self.samples.append((now, *sums))  # type: ignore[arg-type]  # three of them
            if self.output is not None:
                self.blocks.append((now, len(runs.blocks_in(self.output))))
            time.sleep(1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, compare, write; the exit status."""
    options = _options(arguments)
    folder: Path = options.folder.resolve()
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    pictures = folder / f"pictures-{options.pictures}"
    if not pictures.is_dir():
        print(f"making {options.pictures} pictures ...", flush=True)
        runs.write_jpegs(pictures, options.pictures, side=SIDE)
    (folder / "model.toml").write_text(MODEL)
    done = runs.run(home, "export", "--config", folder / "model.toml", "-o", folder / "model.onnx")
    assert done.status == 0, done.err

    print("in one process ...", flush=True)
    first = next(pictures.rglob("*.jpg"))
    begun = time.monotonic()
    runs.run(home, "predict", folder / "model.onnx", first, "--json")
    start_s = time.monotonic() - begun
    alone = Watch()
    words = ("predict", folder / "model.onnx", pictures, "--json")
    begun = time.monotonic()
    done = runs.run(home, *words, while_running=lambda p: _ignore(alone.follow(p)))
    alone_s = time.monotonic() - begun
    assert done.status == 0, done.err
    wanted = {row["image"]: [r["index"] for r in row["top"]] for row in done.json["results"]}

    print("in one process, one thread, a quarter of them ...", flush=True)
    single = Watch()
    some = sorted(pictures.iterdir())[: max(options.pictures // 4000, 1)]
    count = sum(1 for place in some for _ in place.iterdir())
    begun = time.monotonic()
    runs.run(
        home,
        *("predict", folder / "model.onnx", *some, "--threads", 1, "--json"),
        while_running=lambda p: _ignore(single.follow(p)),
    )
    single_s = time.monotonic() - begun

    print(f"across {options.workers} workers ...", flush=True)
    output = folder / f"output-{time.time_ns()}"
    watch = Watch(output)
    kill = runs.kill_a_worker(output, after=options.pictures // 256 // 4)

    def follow(driver: psutil.Process) -> None:
        watch.follow(driver)
        kill(driver)
        print("killed a worker", flush=True)

    across = ("--ray", "local", "--workers", options.workers, "--output", output)
    begun = time.monotonic()
    done = runs.run(home, *words, *across, while_running=follow)
    across_s = time.monotonic() - begun
    assert done.status == 0, done.err

    rows = runs.rows_in(output)
    times = Counter(row["image"] for row in rows)
    same = sum(wanted.get(row["image"]) == row["index"] for row in rows)
    size = sum(path.stat().st_size for path in runs.blocks_in(output))
    working = _working(watch)
    figures = {
        "pictures": options.pictures,
        "workers": options.workers,
        "in_output": len(times),
        "in_output_twice": sum(count > 1 for count in times.values()),
        "same_classes": same,
        "parquet_bytes_per_picture": round(size / len(rows), 1),
        "parquet_files": len(runs.blocks_in(output)),
        "alone": _speed(options.pictures, alone_s, alone.cpu_s),
        "alone_one_thread": _speed(count, single_s, single.cpu_s),
        "across": _speed(options.pictures, across_s, watch.cpu_s),
        "alone_once_started_per_s": round(options.pictures / (alone_s - start_s), 1),
        "across_once_started_per_s": round(working.per_s, 1),
        "growth": {"driver": working.driver_growth, "workers": working.worker_growth},
        "peak_mib": {
            name: round(max(sample[place] for sample in watch.samples) / 2**20)
            for place, name in ((1, "driver"), (2, "a worker"), (3, "rest of Ray"))
        },
        "share_of_alone": {
            "once_started": round(working.per_s * (alone_s - start_s) / options.pictures, 3),
            "per_cpu_second": round(alone.cpu_s / watch.cpu_s, 3),
            "per_cpu_second_of_one_thread": round(
                options.pictures / watch.cpu_s / (count / single.cpu_s), 3
            ),
        },
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    _plot(watch, options.plot)
    short = [
        what
        for what, fine in (
            ("a picture is missing", len(times) == options.pictures),
            ("a picture is there twice", len(rows) == len(times)),
            ("classes differ", same == options.pictures),
            ("memory grows", max(working.driver_growth, working.worker_growth) <= MOST_GROWTH),
            ("slow", working.per_s * (alone_s - start_s) >= LEAST_SHARE * options.pictures),
        )
        if not fine
    ]
    print("; ".join(short) or "all checks hold")
    return 3 if short else 0


@dataclass(frozen=True)
class Working:
    """From the first block written to the last: pictures a second, and growth of memory.

    Growth: the mean of the last quarter over that of the second, minus 1.
    """

    per_s: float
    driver_growth: float
    worker_growth: float


def _working(watch: Watch) -> Working:
    counts = [(at, blocks) for at, blocks in watch.blocks if blocks]
    (first_at, first), last = counts[0], counts[-1][1]
    last_at = next(at for at, blocks in counts if blocks == last)
    inside = [sample for sample in watch.samples if first_at <= sample[0] <= last_at]
    quarter = len(inside) // 4
    growth = []
    for place in (1, 2):
        early = [sample[place] for sample in inside[quarter : 2 * quarter]]
        late = [sample[place] for sample in inside[-quarter:]]
        growth.append(round(sum(late) / len(late) / (sum(early) / len(early)) - 1, 4))
    return Working((last - first) * 256 / (last_at - first_at), growth[0], growth[1])


def _speed(pictures: int, seconds: float, cpu_s: float) -> dict[str, float]:
    return {
        "seconds": round(seconds, 1),
        "per_s": round(pictures / seconds, 1),
        "cpu_s": round(cpu_s, 1),
        "per_cpu_s": round(pictures / cpu_s, 1),
    }


def _plot(watch: Watch, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.2), dpi=90)
    seconds = [sample[0] for sample in watch.samples]
    for place, name in ((1, "driver"), (2, "a worker, mean of both"), (3, "the rest of Ray")):
        axes.plot(seconds, [sample[place] / 2**20 for sample in watch.samples], label=name)
    axes.set(xlabel="seconds", ylabel="resident memory, MiB", ylim=(0, None))
    pictures = axes.twinx()
    pictures.plot(
        [at for at, _ in watch.blocks], [256 * n for _, n in watch.blocks], "k:", linewidth=1
    )
    pictures.set(ylabel="pictures done (dotted)", ylim=(0, None))
    axes.legend(loc="center right", frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


def _ignore(value: Any) -> None:
    """For a callback whose result nobody takes."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/ray-run"))
    parser.add_argument("--plot", type=Path, default=Path("docs/ray-memory.png"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
