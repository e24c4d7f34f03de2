"""Atomic writes: files get a temporary name first, then a rename in one step."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from t2t_deploy.errors import ArtifactError

TEMPORARY = ".t2t-tmp-"
"""How the names of unfinished files and folders begin; they are locked while their owner lives."""
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
        raise ArtifactError(
            f"cannot create {folder}: {err.strerror}; choose another (options workspace, output)"
        ) from err


@contextlib.contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A new file's path in a folder, removed on leaving unless published.

    Raises ArtifactError where the folder takes no file, or is full.
    """
    path = folder / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}"
    try:
        with _owned(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)):
            yield path
    except OSError as err:
        raise _not_written(folder, err) from err
    finally:
        _clean(path)


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
    path = parent / f"{TEMPORARY}{secrets.token_hex(8)}"
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
def atomic_write(path: Path) -> Iterator[Path]:
    """A new file's path to write to; it replaces ``path`` at the end, or nothing does.

    Creates missing folders. Raises ArtifactError.
    """
    make_folder(path.parent)
    with temporary_file(path.parent, path.suffix) as temporary:
        yield temporary
        publish(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises ArtifactError."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def abandoned(folder: Path, *, below: bool = True) -> list[Path]:
    """Temporary files and folders whose owner is gone. below: in its folders too."""
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder):
        names = [name for name in (*folders, *files) if name.startswith(TEMPORARY)]
        paths += [Path(parent, name) for name in names]
        folders[:] = [name for name in folders if below and name not in names]
    return sorted(path for path in paths if not _is_owned(path))


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

    @contextlib.contextmanager
    def _owned(handle: int | None) -> Iterator[None]:
        if handle is not None:
            os.close(handle)  # an open file cannot be renamed
        yield

    def _is_owned(path: Path) -> bool:
        return False  # no such locks: all count as leftovers, to be removed when no command runs

else:
    import fcntl

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

    def _is_owned(path: Path) -> bool:
        """Whether a process has it locked, or may have."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False


def _clean(path: Path) -> None:
    """Remove a temporary file or folder, also when a signal interrupts it."""
    try:
        remove(path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(path)
        raise


def _not_written(folder: Path, err: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot write in {folder}: {err.strerror or err}; free some space or choose another "
        "folder (options workspace, output)"
    )
