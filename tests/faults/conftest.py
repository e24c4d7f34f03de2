"""A folder with pictures, exports, a model repository and a page, made once; commands in forks."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..noise import write_noise
from ..program import Done, environment
from ..small import TINY
from ..web_runtime import write_runtime

OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")
# what only reads
READING = (
    ("workspace", "list"),
    ("workspace", "check"),
    ("inspect", "model.onnx"),
    ("predict", "model.onnx", "pictures"),
    ("evaluate", "model.onnx", "--images", "pictures"),
)
FORK_SERVER = Path(__file__).with_name("fork_server.py")


def _has_own_mounts() -> bool:
    try:
        done = subprocess.run([*OWN_MOUNTS, "true"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class Ran(Done):
    """What a command left. changes: how many there were below the folder it ran in."""

    changes: int
    seconds: float
    pid: int


class ForkServer:
    """The warm process; see `fork_server.py`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.mounts = _has_own_mounts()
        """Whether file systems can be mounted that only these processes see."""
        self._process = subprocess.Popen(
            [*(OWN_MOUNTS if self.mounts else ()), sys.executable, FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __call__(self, folder: Path, *words: object, **how: Any) -> Ran:
        """Run a command line in a folder; how: as `fork_server.py` says."""
        return self._ask({"words": [str(word) for word in words], "cwd": str(folder), **how})

    def shell(self, text: str, *words: object) -> None:
        """Run a shell command, its $1, $2 ... being ``words``, in the processes' mounts."""
        quoted = " ".join(shlex.quote(str(word)) for word in ("sh", *words))
        done = self._ask({"shell": f"sh -c {shlex.quote(text)} {quoted}"})
        assert done.status == 0, done.err

    def _ask(self, order: dict[str, Any]) -> Ran:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ran(**json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@dataclass
class Commands:
    """Runs command lines in copies of a site."""

    server: ForkServer
    site: Path
    """`artifacts` with an export, and what was written elsewhere: to be copied, not changed."""
    _folder: Path
    _copies: int = 0

    def __call__(self, folder: Path, *words: object, status: int | None = None, **how: Any) -> Ran:
        """Run one in a folder, to its end, which must have this status, or to a signal."""
        ran = self.server(folder, *words, **how)
        assert status is None or ran.status == status, (words, ran.status, ran.err)
        return ran

    def copy(self) -> Path:
        """A fresh copy of the site."""
        self._copies += 1
        return Path(shutil.copytree(self.site, self._folder / str(self._copies)))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    if not hasattr(os, "fork") or sys.platform == "darwin":
        pytest.skip("commands run in forks, which are safe on Linux")
    server = ForkServer(environment())
    yield server
    server.end()


@pytest.fixture(scope="session")
def site(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "tiny.toml").write_text(TINY)
    write_runtime(folder / "runtime")
    write_noise(*(folder / "pictures" / str(n % 3) / f"{n}.png" for n in range(6)))
    for words in (
        ("export", "--config", "tiny.toml", "--batch", 1),
        ("export", "--config", "tiny.toml", "-o", "model.onnx"),
        ("package", "model.onnx", "--triton", "repository", "--name", "m"),
        ("package", "model.onnx", "--web", "page", "--ort-web", "runtime"),
        ("predict", "model.onnx", "pictures", "--csv", "classes.csv", "--top", 1),
    ):
        done = fork_server(folder, *words)
        assert done.status == 0, done.err
    return folder


@pytest.fixture
def command(fork_server: ForkServer, site: Path, tmp_path: Path) -> Commands:
    return Commands(fork_server, site, tmp_path)


@pytest.fixture
def disk(fork_server: ForkServer, site: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the site on a disk of its own, 8 MB large, which commands alone see."""
    if not fork_server.mounts:
        pytest.skip("this machine lets no process mount what it alone sees (unshare)")
    folder = tmp_path / "disk"
    folder.mkdir()
    fork_server.shell('mount -t tmpfs -o size=8m none "$1" && cp -r "$2"/. "$1"', folder, site)
    yield folder
    fork_server.shell('umount "$1"', folder)
