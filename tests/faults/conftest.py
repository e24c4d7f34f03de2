"""A folder with pictures, exports and a model repository, made once; commands in forks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import t2t_deploy

TINY = """\
tokens_type = "performer"
embed_dim = 16
depth = 2
num_heads = 2
mlp_ratio = 2.0
token_dim = 16
image_size = 32
num_classes = 10
"""
ZYGOTE = Path(__file__).with_name("zygote.py")


@dataclass(frozen=True)
class Ran:
    """What a command left. changes: how many there were below the folder it ran in."""

    status: int
    out: str
    err: str
    changes: int
    seconds: float
    pid: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Zygote:
    """The warm process; see `zygote.py`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __call__(
        self,
        folder: Path,
        *words: object,
        at: int | None = None,
        after_s: float | None = None,
        number: int = signal.SIGKILL,
        environment: dict[str, str | None] | None = None,
    ) -> Ran:
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {
            "words": [str(word) for word in words],
            "cwd": str(folder),
            "root": str(folder),
            "at": at,
            "after_s": after_s,
            "signal": int(number),
            "environment": environment or {},
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ran(**json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def process_environment() -> dict[str, str]:
    """For processes of our own: the package is importable, installed or not."""
    root = Path(t2t_deploy.__file__).parents[1]
    kept = {name: value for name, value in os.environ.items() if name != "T2T_DEPLOY_WORKSPACE"}
    return kept | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def command(process_environment: dict[str, str]) -> Iterator[Zygote]:
    """Run a command line in a folder, to its end or to a signal."""
    if not hasattr(os, "fork") or sys.platform == "darwin":
        pytest.skip("commands run in forks, which are safe on Linux")
    zygote = Zygote(process_environment)
    yield zygote
    zygote.end()


@pytest.fixture(scope="session")
def site(command: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`artifacts` with an export, and what was written elsewhere: to be copied, not changed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "tiny.toml").write_text(TINY)
    stream = np.random.default_rng(0)
    for number in range(6):
        path = folder / "pictures" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    for words in (
        ("export", "--config", "tiny.toml", "--batch", 1),
        ("export", "--config", "tiny.toml", "-o", "model.onnx"),
        ("package", "model.onnx", "--triton", "repository", "--name", "m"),
        ("predict", "model.onnx", "pictures", "--csv", "classes.csv", "--top", 1),
    ):
        done = command(folder, *words)
        assert done.status == 0, done.err
    return folder


@pytest.fixture
def copied(site: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the site each time."""
    count = 0

    def copy() -> Path:
        nonlocal count
        count += 1
        return Path(shutil.copytree(site, tmp_path / str(count)))

    return copy
