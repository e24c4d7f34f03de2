"""What batches of changing sizes cost in OpenVINO, by how they could be compiled.

Usage: python tools/mixed_batches.py FILE.onnx

200 calls of 1 to 64 images with one thread, each way in a process of its own: processor time, ms,
what is compiled for them included, and by how much resident memory grows, MB.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import psutil

from t2t_deploy.runtime import SessionRequest, open_session

CALLS, TOP = 200, 64
OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "INFERENCE_NUM_THREADS": "1",
}
FREE = -1


def compiled_for(path: Path, size_of: Callable[[int], int]) -> Callable[[np.ndarray], object]:
    """A call that compiles for the sizes that ``size_of`` gives, each once."""
    core, requests = openvino.Core(), {}
    model = core.read_model(path)
    rest = list(model.inputs[0].partial_shape)[1:]

    def call(images: np.ndarray) -> object:
        size = size_of(len(images))
        if size not in requests:
            model.reshape({0: [size, *rest]})
            requests[size] = core.compile_model(model, "CPU", OPTIONS).create_infer_request()
        if len(images) < size:
            images = np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])
        return requests[size].infer([images], share_inputs=True)

    return call


def pieces(path: Path) -> Callable[[np.ndarray], object]:
    """A call of this tool's own session."""
    session = open_session(SessionRequest("openvino", path, threads=1))
    return lambda images: session.run({session.inputs[0].name: images})


WAYS: dict[str, Callable[[Path], Callable[[np.ndarray], object]]] = {
    "each size compiled before and warm": lambda path: compiled_for(path, lambda size: size),
    "each when it comes, all kept": lambda path: compiled_for(path, lambda size: size),
    "a free batch": lambda path: compiled_for(path, lambda size: FREE),
    "padded to 1, 2, 4 ... 64, each compiled": lambda path: compiled_for(
        path, lambda size: 1 << (size - 1).bit_length()
    ),
    "pieces, as sessions do": pieces,
}


def measure(path: Path, way: str) -> None:
    """Print one way's line."""
    draw, rng = random.Random(7), np.random.default_rng(0)
    sizes = [draw.randint(1, TOP) for _ in range(CALLS)]
    rest = [
        dim.get_length()
        for dim in list(openvino.Core().read_model(path).inputs[0].partial_shape)[1:]
    ]
    images = rng.standard_normal((TOP, *rest)).astype(np.float32)
    memory = psutil.Process().memory_info().rss
    started = time.process_time()
    call = WAYS[way](path)
    if way == next(iter(WAYS)):
        for size in range(1, TOP + 1):
            call(images[:size])
        started = time.process_time()
    for size in sizes:
        call(images[:size])
    spent = 1e3 * (time.process_time() - started)
    grown = (psutil.Process().memory_info().rss - memory) / 1e6
    print(f"| {way} | {spent:,.0f} | {grown:,.0f} |", flush=True)


def main() -> None:
    """One line for each way."""
    path = Path(sys.argv[1])
    if len(sys.argv) > 2:
        measure(path, sys.argv[2])
        return
    print("| way | ms | MB |\n|---|---|---|", flush=True)
    for way in WAYS:
        subprocess.run([sys.executable, __file__, str(path), way], check=True)


if __name__ == "__main__":
    main()
