"""Atomic writes: files get a temporary name first, then a rename in one step."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from t2t_deploy.errors import ArtifactError, DeployError

TEMPORARY = ".t2t-tmp-"
"""How the names of unfinished files and folders begin; they are locked while their owner lives.

Machine and process of the owner follow, for file systems without locks.
"""
# what a manifest needs, at the least
_LEAST_ROOM_BYTES = 4096
_NO_SPACE = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises ArtifactError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise _not_created(folder, err) from err


def try_to_write(folder: Path) -> OSError | None:
    """Write and lock a file in a folder, or in that in which it would be made; it is removed.

    Returns why a file there cannot be locked; None where it can. Raises ArtifactError where none
    can be written.
    """
    nearest = folder
    try:
        while not nearest.exists():
            nearest = nearest.parent
        if nearest == folder:
            make_folder(folder)  # says so where a file is there
        path = nearest / _temporary_name("")
        try:
            with path.open("xb") as file:
                file.write(bytes(_LEAST_ROOM_BYTES))
                file.flush()
                return _refusal_to_lock(file.fileno())
        finally:
            _clean(path)
    except OSError as err:
        raise (_not_written if nearest == folder else _not_created)(folder, err) from err


def check_output(path: Path, *, folder: bool = False) -> None:
    """Raise ArtifactError where a file, or a folder of files, cannot be written in the end."""
    if path.is_dir() and not folder:
        raise ArtifactError(f"{path} is a folder; name the file to write")
    try_to_write(path if folder else path.parent)


@contextlib.contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A new file's path in a folder, removed on leaving unless published.

    Raises ArtifactError where the folder takes no file, or is full.
    """
    path = folder / _temporary_name(suffix)
    try:
        with _owned(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)):
            yield path
    except OSError as err:
        raise _not_written(folder, err) from err
    finally:
        _clean(path)


def keep(finished: Path, path: Path, err: Exception) -> tuple[Path | None, str]:
    """Keep a finished file that could not be put in its place, where ``path`` is its place.

    Returns where it is now, beside its place or in the system's temporary folder, and words about
    the error and that; None where neither folder takes it.
    """
    words = str(err if isinstance(err, DeployError) else _not_written(path.parent, err))
    name = f"{path.stem}.kept-{secrets.token_hex(4)}{path.suffix}"
    with contextlib.suppress(OSError):
        kept = finished.rename(path.parent / name)
        return kept, f"{words}; the finished file is kept: {kept}"
    with contextlib.suppress(OSError):
        kept = Path(shutil.copyfile(finished, Path(tempfile.gettempdir(), name)))
        return kept, f"{words}; the finished file is kept: {kept}"
    return None, words


@contextlib.contextmanager
def temporary_folder(preferred: Path | None, *, there: bool = False) -> Iterator[Path]:
    """A new folder for temporary files, removed on leaving.

    preferred: its parent, if writable, else the system's temporary folder. there: only in
    ``preferred``. Raises ArtifactError where neither is writable, or the disk is full.
    """
    usable = preferred is not None and preferred.is_dir() and os.access(preferred, os.W_OK)
    if preferred is not None and (usable or there):
        parent = preferred
    else:
        try:
            parent = Path(tempfile.gettempdir())
        except OSError as err:
            raise ArtifactError(f"{err.strerror}; set TMPDIR to a writable folder") from err
    path = parent / _temporary_name("")
    created = False
    try:
        path.mkdir(mode=0o700)
        created = True
        with _owned(None if sys.platform == "win32" else os.open(path, os.O_RDONLY)):
            yield path
    except OSError as err:
        if created and err.errno not in _NO_SPACE:
            raise
        raise _not_written(parent, err) from err
    finally:
        _clean(path)


def settle(temporary: Path) -> None:
    """Give a finished file the usual permissions, and wait until it is on the disk."""
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished temporary file in one step, its content on disk first."""
    settle(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk too, where the system supports it."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_write(path: Path, *, kept: bool = False) -> Iterator[Path]:
    """A new file's path to write to; it replaces ``path`` at the end, or nothing does.

    kept: under another name where that fails. Creates missing folders. Raises ArtifactError.
    """
    make_folder(path.parent)
    with temporary_file(path.parent, path.suffix) as temporary:
        yield temporary
        try:
            publish(temporary, path)
        except OSError as err:
            if not kept:
                raise
            raise ArtifactError(keep(temporary, path, err)[1]) from err


def write_text(path: Path, text: str, *, kept: bool = False) -> None:
    """Write a text file atomically; kept: as for `atomic_write`. Raises ArtifactError."""
    with atomic_write(path, kept=kept) as temporary:
        temporary.write_text(text, encoding="utf-8")


def abandoned(folder: Path, *, below: bool = True, sure: bool = True) -> list[Path]:
    """Temporary files and folders whose owner is gone. below: in its folders too.

    sure: else those of which nobody can know here, as another machine's where nothing is locked.
    """
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder):
        names = [name for name in (*folders, *files) if name.startswith(TEMPORARY)]
        paths += [Path(parent, name) for name in names]
        folders[:] = [name for name in folders if below and name not in names]
    wanted = False if sure else None
    return sorted(path for path in paths if _is_owned(path) is wanted)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for moments, so that no other process changes a pair of files in it."""
    with _owned(None if sys.platform == "win32" else os.open(folder, os.O_RDONLY)):
        yield


if sys.platform == "win32":

    def _refusal_to_lock(handle: int) -> OSError | None:
        return None

    @contextlib.contextmanager
    def _owned(handle: int | None) -> Iterator[None]:
        if handle is not None:
            os.close(handle)  # an open file cannot be renamed
        yield

    def _is_owned(path: Path) -> bool | None:
        return False  # no such locks: all count as leftovers, to be removed when no command runs

else:
    import fcntl

    def _refusal_to_lock(handle: int) -> OSError | None:
        """Why a file that nobody else knows cannot be locked."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            return err
        return None

    @contextlib.contextmanager
    def _owned(handle: int | None) -> Iterator[None]:
        """Lock an open file or folder; the system frees the lock when the process dies."""
        assert handle is not None
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _is_owned(path: Path) -> bool | None:
        """Whether a process has it locked; None where nobody can know."""
        try:
            # NFS locks for writing only what is open for writing
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        except OSError:
            return _is_owner_alive(path)
        try:
            refusal = _refusal_to_lock(handle)
        finally:
            os.close(handle)
        if refusal is None:
            return False
        return True if isinstance(refusal, BlockingIOError) else _is_owner_alive(path)


@functools.cache
def machine_id() -> str:
    """What tells this machine, or container, from others that write to the same disk."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):  # only Linux has them
            parts.append(os.readlink(path) if "ns" in path else Path(path).read_text())
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:8]


def is_alive(pid: int) -> bool:
    """Whether a process of this machine may be there."""
    if sys.platform == "win32":
        return True  # os.kill asks nothing there, it kills
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _temporary_name(suffix: str) -> str:
    return f"{TEMPORARY}{machine_id()}-{os.getpid()}-{secrets.token_hex(8)}{suffix}"


def _is_owner_alive(path: Path) -> bool | None:
    """Whether the process named in a temporary name is there; None on another machine."""
    machine, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    pid = rest.partition("-")[0]
    if machine != machine_id() or not pid.isdecimal() or int(pid) == 0:
        return None
    return is_alive(int(pid))


def _clean(path: Path) -> None:
    """Remove a temporary file or folder if the disk lets it, also when a signal interrupts it."""
    try:
        with contextlib.suppress(OSError):
            remove(path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise


def _not_created(folder: Path, err: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot create {folder}: {err.strerror}; choose another (options workspace, output)"
    )


def _not_written(folder: Path, err: Exception) -> ArtifactError:
    return ArtifactError(
        f"cannot write in {folder}: {getattr(err, 'strerror', None) or err}; free some space or "
        "choose another folder (options workspace, output)"
    )
