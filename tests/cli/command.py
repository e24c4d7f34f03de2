"""The command line in this process: what a test calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.workspace import manifest_path_for

from ..program import Done, exit_status

Change = Callable[..., None]
"""The fixtures `change_manifest` and `alter`."""
Temporaries = Callable[[], list[Path]]
"""The fixture that finds unfinished files."""


@dataclass(frozen=True)
class Run:
    """Runs a command line; what compiled code prints is seen as well."""

    capfd: pytest.CaptureFixture[str]

    def __call__(self, *words: object, status: int | None = None) -> Done:
        """Return what it left; `status` is the one that it must exit with."""
        self.capfd.readouterr()
        left = exit_status(*words)
        done = Done(left, *self.capfd.readouterr())
        assert status is None or left == status, f"exit status {left}, not {status}: {done.err}"
        return done

    def json(self, *words: object, status: int | None = None) -> Any:
        """Return what it prints with `--json`."""
        return self(*words, "--json", status=status).json

    def fails(self, kind: str, *words: object, status: int = 1) -> str:
        """Return the message of its error, which is of this kind, as `--json` prints it."""
        found = self.json(*words, status=status)
        assert set(found) == {"error"} and set(found["error"]) == {"kind", "message"}
        assert found["error"]["kind"] == kind
        return str(found["error"]["message"])


def flip(path: Path, position: int = -1) -> None:
    """Flip a bit of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def manifest_of(artifact: Path) -> Any:
    """The manifest beside an artifact, as JSON."""
    return json.loads(manifest_path_for(artifact).read_text())
