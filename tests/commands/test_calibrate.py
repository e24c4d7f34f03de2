"""Calibration: sums of an interrupted one, and two at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save

from t2t_deploy._preparation import USUAL
from t2t_deploy._progress import silent
from t2t_deploy.calibration import (
    Calibration,
    CalibrationKey,
    Equalisation,
    Observation,
    RangeMethod,
)
from t2t_deploy.calibration._observe import MagnitudeHistogram, TensorSum
from t2t_deploy.commands import _calibrate
from t2t_deploy.errors import BusyError
from t2t_deploy.types import Target
from t2t_deploy.workspace import LockPolicy, Workspace, _locks

KEY = CalibrationKey("a" * 64, "b" * 64, 12, 224, RangeMethod.MSE, True)
SUMS = Observation.of([]).to_arrays()
OTHER = Observation({"other": TensorSum(MagnitudeHistogram(), np.zeros((2, 2), np.float32))}, 4)
NO_LAYERS: Any = SimpleNamespace(observed=(), written=())
TOLD = {"key": KEY.digest(), "done": "4", "unreadable": "[]", "counter": "{}"}


def sums_told(**told: str) -> bytes:
    """Sums with other words about them."""
    return save(SUMS, metadata=TOLD | told)


def sums_file(header: bytes | None = None, **tensors: Any) -> bytes:
    """A file of sums, some tensors of its header exchanged or all of it."""
    whole = save(SUMS, metadata=TOLD)
    length = int.from_bytes(whole[:8], "little")
    if header is None:
        header = json.dumps(json.loads(whole[8 : 8 + length]) | tensors).encode()
    return len(header).to_bytes(8, "little") + header + whole[8 + length :]


OTHERS = {
    "absent": None,
    "half a file": b"half",
    "nothing told": save(SUMS, metadata={}),
    "another key": sums_told(key="of another one"),
    "no number": sums_told(done="four"),
    "no list": sums_told(unreadable="5"),
    "no counts": sums_told(counter='{"flat": -1}'),
    "no JSON": sums_told(unreadable="{"),
    "nested": sums_told(unreadable="[" * 100_000),
    "the key alone": save(SUMS, metadata={"key": KEY.digest()}),
    "another file": sums_file(b"no JSON"),
    "a type numpy lacks": sums_file(
        pictures={"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}
    ),
    "a vast header": sums_file(save(SUMS, metadata=TOLD)[8:-8] + b" " * (9 << 20)),
    "another layer's": save(OTHER.to_arrays(), metadata=TOLD),
}


def work_on(partial: Path, report: Any = silent) -> _calibrate._Work:
    nothing: Any = None
    return _calibrate._Work(nothing, NO_LAYERS, nothing, KEY, USUAL, partial, report)


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_sums_that_do_not_fit_are_taken_again(tmp_path: Path, content: bytes | None) -> None:
    partial = tmp_path / "a.partial"
    notes: list[str] = []
    work = work_on(partial, SimpleNamespace(note=notes.append))
    partial.write_bytes(save(SUMS, metadata=TOLD))
    assert work.resume() == (Observation.of([]), 4)
    assert notes == ["going on after 4 pictures, where a calibration was interrupted"]
    partial.unlink() if content is None else partial.write_bytes(content)
    assert work.resume() == (Observation.of([]), 0)
    assert (len(notes), work.unreadable) == (1, [])


def test_counts_go_on_with_the_sums(tmp_path: Path) -> None:
    first, second = (work_on(tmp_path / "a.partial") for _ in range(2))
    first.counter.add((9, 9), np.zeros((*USUAL.size, 3), np.uint8), USUAL)
    first.save(Observation.of([]), 1)
    assert second.resume() == (Observation.of([]), 1)
    assert second.counter == first.counter and second.counter.flat == 1


def test_two_calibrations_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def run_once(work: _calibrate._Work, digests: Sequence[str]) -> Calibration:
        taken.append(work.key)
        return Calibration(work.key, {}, {}, {}, Equalisation(), tuple(digests), ())

    monkeypatch.setattr(_calibrate._Work, "run", run_once)
    monkeypatch.setattr(_locks, "_GRACE_S", 0)
    source: Any = SimpleNamespace(preparation=USUAL, size_text="224", variant="tiny")
    graph: Any = SimpleNamespace(sha256="a" * 64, observed=(), written=(), target=Target.CPU)
    images: Any = SimpleNamespace(digests=lambda: ["c" * 64])

    def calibrated(lock_policy: LockPolicy) -> _calibrate.CalibratedRanges:
        workspace = Workspace(tmp_path / "artifacts", lock_policy)
        return _calibrate.calibrated(workspace, source, graph, images)

    path = calibrated(LockPolicy()).path
    content = path.read_bytes()
    path.unlink()
    lock = FileLock(tmp_path / "artifacts" / _locks.FOLDER / f"{path.stem}.lock")
    lock.acquire()
    with pytest.raises(BusyError):
        calibrated(LockPolicy(wait=False))

    def finish(text: str) -> None:
        path.write_bytes(content)
        lock.release()

    assert calibrated(LockPolicy(say=finish)).reused
    assert len(taken) == 1
