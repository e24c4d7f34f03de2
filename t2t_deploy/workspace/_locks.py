"""One command at a time for what two must not do at once; the lock of a dead one is free.

Where the file system has no locks, a marker file stands in: what is there is taken.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy._files import is_alive, machine_id, make_folder, try_to_write
from t2t_deploy.errors import ArtifactError, BusyError

if TYPE_CHECKING:
    from filelock import BaseFileLock

FOLDER = ".locks"
CHANGES = "workspace"
"""The lock around the moments in which manifests change."""
# Changes take milliseconds: nobody learns of a wait, or is refused, before this.
_GRACE_S = 1.0
# how file systems say that they have no locks; other errors are of a disk that fails
_WITHOUT_LOCKS = frozenset(
    {
        *(errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS),
        *(errno.EACCES, errno.EPERM),
    }
)


@dataclass(frozen=True, slots=True)
class LockPolicy:
    """How a command waits for another one.

    wait: or raise BusyError instead. command: its name, for those that wait for it. say: how the
    user learns of a wait, and of a workspace without locks.
    """

    wait: bool = True
    command: str = "a Python program"
    say: Callable[[str], None] = lambda text: None
    _told: set[Path] = field(default_factory=set, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Lock:
    """A lock, or the marker that stands in for it. note: the file that says whose it is."""

    lock: BaseFileLock
    path: Path
    note: Path
    is_marker: bool

    @classmethod
    def of(cls, root: Path, name: str, *, is_marker: bool) -> _Lock:
        from filelock import FileLock, SoftFileLock

        folder = root / FOLDER
        path = folder / f"{name}.{'marker' if is_marker else 'lock'}"
        lock = SoftFileLock(path) if is_marker else FileLock(path)
        # Windows lets nobody write or read what another process has locked
        beside = is_marker or sys.platform == "win32"
        return cls(lock, path, folder / f"{name}.json" if beside else path, is_marker)

    def sign(self, command: str) -> None:
        """Say whose it is, once it is held. It is for messages alone."""
        values = {"pid": os.getpid(), "host": socket.gethostname(), "machine": machine_id()}
        with contextlib.suppress(OSError):
            self.note.write_text(json.dumps(values | {"command": command}))

    def holder(self) -> tuple[str, bool]:
        """Whose it is in words, and whether that process of this machine is gone."""
        signed = _signature(self.note)
        if self.is_marker:
            made = self._made_by()
            if made is None or (signed.get("pid"), signed.get("host")) != made:
                signed = {} if made is None else dict(zip(("pid", "host"), made, strict=True))
        gone = signed.get("machine") == machine_id() and not is_alive(signed["pid"])
        if not signed or (gone and not self.is_marker):
            # a lock of a dead one is free: another one has it and has not signed yet
            return "its pid is unknown", False
        words = f"pid {signed['pid']}"
        if signed["host"] != socket.gethostname():
            words += f" on {signed['host']}"
        return words + (f", {signed['command']}" if "command" in signed else ""), gone

    def _made_by(self) -> tuple[int, str] | None:
        """Process and machine that filelock wrote when it made the marker."""
        try:
            pid, host = self.path.read_text().splitlines()[:2]
            return int(pid), host.partition("?")[0]
        except (OSError, ValueError):
            return None


def _signature(note: Path) -> dict[str, Any]:
    """Who signed a note; empty where that cannot be read."""
    try:
        values = json.loads(note.read_text())
        types = {"pid": int, "host": str, "machine": str, "command": str}
        return values if all(isinstance(values[n], t) for n, t in types.items()) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def has_locks(
    root: Path, lock_policy: LockPolicy, say: Callable[[str], None] | None = None
) -> bool:
    """Whether files of a workspace can be locked; where not, what that means is said once.

    say: by whom, default the policy. Nothing is left there. Raises ArtifactError where nothing can
    be written, or the disk fails.
    """
    refusal = try_to_write(root / FOLDER)
    if refusal is None:
        return True
    if refusal.errno not in _WITHOUT_LOCKS:
        raise _not_lockable(root, refusal) from refusal
    if root not in lock_policy._told:
        lock_policy._told.add(root)
        (say or lock_policy.say)(
            f"workspace {root} is where files cannot be locked ({refusal.strerror}): marker files "
            f"in {root / FOLDER} stand in. One that a killed command leaves there may have to be "
            "removed by hand; on several machines, run one command at a time"
        )
    return False


@contextlib.contextmanager
def locked(root: Path, name: str, lock_policy: LockPolicy) -> Iterator[None]:
    """Hold a lock of a workspace. Raises BusyError, or ArtifactError where none can be made."""
    make_folder(root / FOLDER)
    held = _Lock.of(root, name, is_marker=not has_locks(root, lock_policy))
    try:
        _acquire(held, root, lock_policy)
    except OSError as err:
        raise _not_lockable(root, err) from err
    try:
        held.sign(lock_policy.command)
        yield
    finally:
        held.lock.release()


def _acquire(wanted: _Lock, root: Path, lock_policy: LockPolicy) -> None:
    from filelock import Timeout

    try:
        wanted.lock.acquire(timeout=_GRACE_S)
    except Timeout:
        whose, gone = wanted.holder()
        if gone:
            raise BusyError(
                f"{wanted.path} is of a command that was killed ({whose}): remove that file, and "
                "run this again"
            ) from None
        who = f"another t2t-deploy ({whose}) on workspace {root}"
        left = f"; should that one be gone, remove {wanted.path}" if wanted.is_marker else ""
        if not lock_policy.wait:
            raise BusyError(
                f"{who} is busy with what this command needs; try again when it is done, or leave "
                f"--no-wait out to wait for it{left}"
            ) from None
        lock_policy.say(f"waiting for {who}; --no-wait to fail instead{left}")
        wanted.lock.acquire()


def is_locked(root: Path, name: str) -> bool:
    """Whether another process holds a lock, or that is unknown."""
    from filelock import Timeout

    if not any((root / FOLDER / f"{name}.{suffix}").exists() for suffix in ("lock", "marker")):
        return False
    try:
        silent = LockPolicy()
        with _Lock.of(root, name, is_marker=not has_locks(root, silent)).lock.acquire(timeout=0):
            return False
    except (Timeout, OSError, ArtifactError):
        return True


def _not_lockable(root: Path, err: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot lock workspace {root}: {err.strerror}; choose another with --workspace"
    )
