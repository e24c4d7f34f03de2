"""One command at a time for what two must not do at once; the lock of a dead one is free."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._files import make_folder
from t2t_deploy.errors import ArtifactError, BusyError

FOLDER = ".locks"
CHANGES = "workspace"
"""The lock around the moments in which manifests change."""
# Changes take milliseconds: nobody learns of a wait, or is refused, before this.
_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class LockPolicy:
    """How a command waits for another one.

    wait: or raise BusyError instead. command: its name, for those that wait for it. say: how the
    user learns of a wait.
    """

    wait: bool = True
    command: str = "a Python program"
    say: Callable[[str], None] = lambda text: None


@contextlib.contextmanager
def locked(root: Path, name: str, lock_policy: LockPolicy) -> Iterator[None]:
    """Hold a lock of a workspace. Raises BusyError, or ArtifactError where none can be made."""
    from filelock import FileLock, Timeout

    folder = root / FOLDER
    make_folder(folder)
    lock, note = FileLock(folder / f"{name}.lock"), folder / f"{name}.json"
    try:
        try:
            lock.acquire(timeout=_GRACE_S)
        except Timeout:
            who = f"another t2t-deploy ({_holder(note)}) on workspace {root}"
            if not lock_policy.wait:
                raise BusyError(
                    f"{who} is busy with what this command needs; try again when it is done, or "
                    "leave --no-wait out to wait for it"
                ) from None
            lock_policy.say(f"waiting for {who}; --no-wait to fail instead")
            lock.acquire()
    except OSError as err:
        raise ArtifactError(
            f"cannot lock workspace {root}: {err.strerror}; choose another with --workspace"
        ) from err
    try:
        with contextlib.suppress(OSError):  # it is for messages alone
            note.write_text(json.dumps({"pid": os.getpid(), "command": lock_policy.command}))
        yield
    finally:
        lock.release()


def is_locked(root: Path, name: str) -> bool:
    """Whether another process holds a lock, or that is unknown."""
    from filelock import FileLock, Timeout

    path = root / FOLDER / f"{name}.lock"
    if not path.exists():
        return False
    try:
        with FileLock(path, blocking=False):
            return False
    except (Timeout, OSError):
        return True


def _holder(note: Path) -> str:
    try:
        values = json.loads(note.read_text())
        return f"pid {values['pid']}, {values['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its pid is unknown"
