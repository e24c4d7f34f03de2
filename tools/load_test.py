"""Drive a real Triton server with a small uint8 model, and check every answer.

    make load-test                        20,000 requests, closed and open loop, then SIGTERM
    make load-test ARGS='--requests 2000'

The server gets a Python-backend model of one ONNX Runtime thread; this process is the client.
Closed loop: so many requests are always under way. Open loop: requests are sent on a clock of
random gaps, whether or not answers came, at a share of what the closed loop reached. Every answer
is compared with the one computed offline. CPU seconds are those of the server's process and of its
models; the offline ones are measured in this process before and after each phase, by batch size, as
a machine that others use too is not the same all the time.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from triton_server import CpuSeconds, ServerProcess

from t2t_deploy.commands import export_onnx, package_artifact
from t2t_deploy.runtime import SessionRequest, open_session
from t2t_deploy.serving.triton import ServingFormat
from t2t_deploy.workspace import Workspace

CONFIG = """\
tokens_type = "performer"
embed_dim = 192
depth = 4
num_heads = 3
mlp_ratio = 2.0
token_dim = 64
image_size = 64
num_classes = 100
"""
NAME = "load"
PICTURES = 512
CLOSED = (1, 4, 16, 64)
OPEN_SHARE = 0.8
TOLERANCE = 1e-5
TIMEOUT_S = 60.0
ROUNDS, TIMED = 5, 64


@dataclass
class Answers:
    """What came back of a phase. latencies_ms: of answers; sent at the time the clock said."""

    latencies_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0

    @property
    def answered(self) -> int:
        """Right and wrong ones."""
        return len(self.latencies_ms)


class Client:
    """Sends pictures and compares what comes back with the offline logits."""

    def __init__(self, url: str, pictures: np.ndarray, wanted: np.ndarray, names: Sequence[str]):
        self._client = triton.InferenceServerClient(url)
        self._wanted = wanted
        self._scale = np.linalg.norm(wanted, axis=1)
        self._output = names[1]
        self._inputs = []
        for picture in pictures:
            tensor = triton.InferInput(names[0], [1, *picture.shape], "UINT8")
            tensor.set_data_from_numpy(picture[None])
            self._inputs.append([tensor])

    def send(self, number: int, done: Any) -> None:
        """Ask for a picture; ``done(number, result, error)`` is called in another thread."""
        place = number % len(self._inputs)
        self._client.async_infer(
            NAME,
            self._inputs[place],
            callback=lambda result, error: done(number, result, error),
            client_timeout=TIMEOUT_S,
        )

    def check(self, answers: Answers, number: int, result: Any, error: Any) -> None:
        """Count an answer."""
        if error is not None:
            answers.errors[str(error)[:90]] += 1
            return
        place = number % len(self._inputs)
        off = result.as_numpy(self._output)[0] - self._wanted[place]
        relative = float(np.linalg.norm(off) / self._scale[place])
        answers.worst = max(answers.worst, relative)
        if not relative <= TOLERANCE:
            answers.wrong += 1

    def close(self) -> None:
        """End the connection."""
        self._client.close()


def run_phase(
    client: Client, count: int, concurrency: int | None, gaps_s: np.ndarray | None
) -> tuple[Answers, float]:
    """Send ``count`` requests; answers, and the seconds until the last came.

    concurrency: so many under way at a time. gaps_s: seconds between sends instead.
    """
    answers = Answers()
    arrived: queue.SimpleQueue[tuple[int, Any, Any, float]] = queue.SimpleQueue()
    started = [0.0] * count

    def done(number: int, result: Any, error: Any) -> None:
        arrived.put((number, result, error, time.perf_counter()))

    def take() -> None:
        number, result, error, at = arrived.get(timeout=2 * TIMEOUT_S)
        client.check(answers, number, result, error)
        if error is None:
            answers.latencies_ms.append((at - started[number]) * 1e3)

    begin = time.perf_counter()
    if gaps_s is None:
        assert concurrency is not None
        for number in range(count):
            if number >= concurrency:
                take()
            started[number] = time.perf_counter()
            client.send(number, done)
        for _ in range(min(concurrency, count)):
            take()
    else:
        due = begin + np.cumsum(gaps_s)
        sender = threading.Thread(target=_send_on_time, args=(client, due, started, done))
        sender.start()
        for _ in range(count):
            take()
        sender.join()
    return answers, time.perf_counter() - begin


def _send_on_time(client: Client, due: np.ndarray, started: list[float], done: Any) -> None:
    for number, moment in enumerate(due):
        pause = moment - time.perf_counter()
        if pause > 0:
            time.sleep(pause)
        # from when it was due: a sender that is late must not make latencies look better
        started[number] = float(moment)
        client.send(number, done)


def batch_sizes(before: dict[str, Any], after: dict[str, Any]) -> dict[int, int]:
    """Executions by batch size between two statistics of the server."""
    counts = Counter(
        {row["batch_size"]: row["compute_infer"]["count"] for row in after["batch_stats"]}
    )
    counts.subtract(
        {row["batch_size"]: row["compute_infer"]["count"] for row in before["batch_stats"]}
    )
    return {size: number for size, number in sorted(counts.items()) if number}


class Offline:
    """The model in this process, one thread: CPU milliseconds a picture takes, by batch size."""

    def __init__(self, path: Path, pictures: np.ndarray, sizes: Sequence[int]) -> None:
        self._path, self._pictures, self._sizes = path, pictures, sizes
        self.times: list[dict[int, list[float]]] = []

    def measure(self) -> None:
        """Time all sizes, in turns."""
        times: dict[int, list[float]] = {size: [] for size in self._sizes}
        with open_session(SessionRequest("ort-cpu", self._path, threads=1)) as session:
            name = session.inputs[0].name
            for size in self._sizes:
                session.run({name: self._pictures[:size]})
            for _ in range(ROUNDS):
                for size in self._sizes:
                    begin = time.process_time_ns()
                    for start in range(0, TIMED, size):
                        session.run({name: self._pictures[start : start + size]})
                    times[size].append((time.process_time_ns() - begin) / TIMED / 1e6)
        self.times.append(times)

    def around_last_phase(self) -> dict[int, float]:
        """Medians of what was measured before and after it."""
        before, after = self.times[-2:]
        return {size: float(np.median(before[size] + after[size])) for size in self._sizes}


def under_sigterm(server: ServerProcess, client: Client, waiting: int) -> dict[str, int]:
    """End the server while requests are under way: what was accepted must be answered."""
    answers = Answers()
    arrived: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    before = server.statistics(NAME)["inference_count"]
    for number in range(waiting):
        client.send(number, lambda *found: arrived.put(found))
    while server.statistics(NAME)["inference_count"] == before:
        time.sleep(0.001)
    server.terminate()
    # and some more while it ends: they are refused in words, or answered
    late = waiting // 4
    for number in range(waiting, waiting + late):
        client.send(number, lambda *found: arrived.put(found))
    right = refused = lost = 0
    for _ in range(waiting + late):
        number, result, error = arrived.get(timeout=2 * TIMEOUT_S)
        client.check(answers, number, result, error)
        right += error is None
        if error is not None and number < waiting:
            lost += 1
        elif error is not None:
            refused += 1
    status = server.wait()
    return {
        "under_way": waiting,
        "sent_after": late,
        "answered": right,
        "wrong": answers.wrong,
        "refused_of_those_sent_after": refused,
        "lost": lost,
        "exit_status": status,
    }


def main() -> int:
    """Run all phases and print a table; 1 where an answer was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="in all phases together")
    parser.add_argument("--queue-delay", type=int, default=2000, help="microseconds")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-test-") as folder:
        return _measure(Path(folder), arguments)


def _measure(folder: Path, arguments: argparse.Namespace) -> int:
    (folder / "load.toml").write_text(CONFIG)
    workspace = Workspace(folder / "artifacts")
    form: dict[str, Any] = {"config": folder / "load.toml", "embed_preprocess": True}
    graph = export_onnx(**form, workspace=workspace).path
    package_artifact(
        triton=folder / "models",
        artifact=graph,
        format=ServingFormat.PYTHON,
        name=NAME,
        max_batch=arguments.max_batch,
        queue_delay=arguments.queue_delay,
        threads=1,
        workspace=workspace,
    )
    pictures = np.random.RandomState(0).randint(0, 256, (PICTURES, 64, 64, 3)).astype(np.uint8)
    with open_session(SessionRequest("ort-cpu", graph, threads=1)) as session:
        names = (session.inputs[0].name, session.outputs[0].name)
        parts = np.split(pictures, PICTURES // 32)
        wanted = np.concatenate([session.run({names[0]: part})[names[1]] for part in parts])
    sizes = sorted({1, 4, 8, 16, arguments.max_batch})
    offline = Offline(graph, pictures, sizes)
    share = arguments.requests // 5
    rows: list[dict[str, Any]] = []
    with ServerProcess(folder / "models", folder / "server.log") as server:
        client = Client(server.grpc_url, pictures, wanted, names)
        run_phase(client, 64, 16, None)  # connections and memory are there
        offline.measure()
        rows += [
            _phase(server, client, offline, share, concurrency=number, gaps_s=None)
            for number in CLOSED
        ]
        rate = OPEN_SHARE * max(row["throughput"] for row in rows)
        gaps = np.random.RandomState(1).exponential(1 / rate, share)
        rows.append(_phase(server, client, offline, share, concurrency=None, gaps_s=gaps))
        ending = under_sigterm(server, client, 256)
        client.close()
    _show(rows, ending)
    if arguments.json is not None:
        values = {"offline_ms": offline.times, "phases": rows, "sigterm": ending}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")
    bad = sum(row["wrong"] + row["lost"] for row in rows) + ending["wrong"] + ending["lost"]
    return 1 if bad else 0


def _phase(
    server: ServerProcess,
    client: Client,
    offline: Offline,
    count: int,
    *,
    concurrency: int | None,
    gaps_s: np.ndarray | None,
) -> dict[str, Any]:
    statistics, cpu = server.statistics(NAME), server.cpu_seconds()
    answers, seconds = run_phase(client, count, concurrency, gaps_s)
    used: CpuSeconds = server.cpu_seconds().since(cpu)
    batches = batch_sizes(statistics, server.statistics(NAME))
    offline.measure()
    executions = sum(batches.values())
    served = sum(size * number for size, number in batches.items())
    mean = served / executions
    # offline at the sizes that were reached, between the sizes that were measured
    base = _weighted(offline.around_last_phase(), batches)
    p50, p99 = np.percentile(answers.latencies_ms, (50, 99))
    return {
        "loop": "open" if concurrency is None else f"closed {concurrency}",
        "requests": count,
        "throughput": count / seconds,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "mean_batch": mean,
        "batches": batches,
        "server_ms": used.server / served * 1e3,
        "model_ms": used.models / served * 1e3,
        "offline_ms": base,
        "ratio": used.total / served * 1e3 / base,
        "wrong": answers.wrong,
        "lost": count - answers.answered,
        "errors": dict(answers.errors),
        "worst_rel_l2": answers.worst,
    }


def _weighted(table: dict[int, float], batches: dict[int, int]) -> float:
    """Offline milliseconds a picture at the sizes that were reached, between those measured."""
    sizes = sorted(table)
    times = [table[size] for size in sizes]
    each = [
        size * number * float(np.interp(size, sizes, times)) for size, number in batches.items()
    ]
    return sum(each) / sum(size * number for size, number in batches.items())


def _show(rows: Sequence[dict[str, Any]], ending: dict[str, int]) -> None:
    print(
        f"{'loop':>10} {'requests':>8} {'per s':>6} {'p50 ms':>7} {'p99 ms':>7} {'batch':>6} "
        f"{'server':>7} {'model':>7} {'offline':>7} {'ratio':>6} {'wrong':>5} {'lost':>5}"
    )
    for row in rows:
        print(
            f"{row['loop']:>10} {row['requests']:>8} {row['throughput']:>6.0f} "
            f"{row['p50_ms']:>7.1f} {row['p99_ms']:>7.1f} {row['mean_batch']:>6.1f} "
            f"{row['server_ms']:>7.3f} {row['model_ms']:>7.3f} {row['offline_ms']:>7.3f} "
            f"{row['ratio']:>6.2f} {row['wrong']:>5} {row['lost']:>5}"
        )
        if row["errors"]:
            print(f"{'':>10} {row['errors']}")
    print("server, model, offline: CPU ms a picture; ratio: (server + model) / offline")
    for row in rows:
        print(f"batches, {row['loop']}: {_listed(row['batches'])}")
    total = sum(row["requests"] for row in rows)
    worst = max(row["worst_rel_l2"] for row in rows)
    print(f"{total} requests, worst relative error {worst:.1e}; SIGTERM under load: {ending}")


def _listed(values: dict[int, Any]) -> str:
    return ", ".join(
        f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}"
        for key, value in values.items()
    )


if __name__ == "__main__":
    sys.exit(main())
