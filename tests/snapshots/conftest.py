"""The command line in process, beside a tiny model, pictures and names of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..noise import write_noise
from ..program import called
from ..small import TINY_FOR_8_BITS


def json_of(wanted: int, *words: object) -> Any:
    """What a command prints with --json; its exit status is the one wanted."""
    return called(*words, "--json", status=wanted).json


@pytest.fixture(scope="session")
def all_tools() -> None:
    """Skip, with the reason, where a tool is missing, or a GPU lets engines run too."""
    told = called("doctor", "--json").json
    backends = {one["name"]: one["runs"] for one in told["backends"]}
    lacking = [name for name, can in told["can"].items() if not can["ok"]]
    lacking += [name for name in ("eager", "ort-cpu", "openvino") if not backends[name]]
    if told["cuda_device"] is not None:
        pytest.skip("the snapshots are of a machine without a GPU")
    if lacking:
        pytest.skip(f"cannot run here: {', '.join(lacking)}")


@pytest.fixture
def here(empty_folder: Path, all_tools: None) -> Path:
    """The current folder: a model's description, `train`, `val` with classes, their names."""
    (empty_folder / "tiny.toml").write_text(TINY_FOR_8_BITS)
    (empty_folder / "labels.txt").write_text("cat\ndog\n")
    for seed in range(8):
        write_noise(empty_folder / "train" / f"{seed}.png", seed=seed)
    for seed in range(4):
        write_noise(empty_folder / "val" / "ab"[seed % 2] / f"{seed}.png", seed=100 + seed)
    return empty_folder
