"""Opens, runs and closes a session again and again, in a process of its own, and counts.

    python -c 'from tests.runtime.cycles import main; main()' REQUEST CYCLES [refused|file|mixed]
        -> {"rss": [bytes after each cycle], "files": [...], "threads": [...]} as JSON

refused: opening is expected to fail. file: the file of weights is read and nothing else done.
mixed: one session stays open and a cycle is ten calls with 1 to 64 pictures.
"""

from __future__ import annotations

import gc
import json
import os
import sys

import numpy as np
import psutil
from safetensors.torch import load_file

from t2t_deploy._codec import from_plain
from t2t_deploy.errors import DeployError
from t2t_deploy.runtime import Session, SessionRequest, open_session


def cycle(request: SessionRequest, refused: bool, file_alone: bool) -> None:
    if file_alone:
        load_file(request.path)
        return
    try:
        session = open_session(request)
    except DeployError:
        assert refused
        return
    assert not refused
    with session:
        session.run(zeros(session, 1))


def zeros(session: Session, batch: int) -> dict[str, np.ndarray]:
    (spec,) = session.inputs
    return {spec.name: np.zeros((batch, *(int(dim or 1) for dim in spec.shape[1:])), spec.dtype)}


def main() -> None:
    request = from_plain(SessionRequest, json.loads(sys.argv[1]))
    process = psutil.Process()
    counts: dict[str, list[int]] = {"rss": [], "files": [], "threads": []}
    sizes = np.random.default_rng(0)
    mixed = open_session(request) if "mixed" in sys.argv[3:] else None
    for _ in range(int(sys.argv[2])):
        if mixed is not None:
            for size in sizes.integers(1, 65, 10).tolist():
                mixed.run(zeros(mixed, size))
        else:
            cycle(request, "refused" in sys.argv[3:], "file" in sys.argv[3:])
        gc.collect()
        counts["rss"].append(process.memory_info().rss)
        counts["files"].append(len(os.listdir("/proc/self/fd")))
        counts["threads"].append(process.num_threads())
    print(json.dumps(counts))
