"""Tells an error that means too little memory from a bug: Python, compiled code and the loader."""

from __future__ import annotations

import errno
import mmap
import sys
from collections.abc import Iterator

from t2t_deploy._limits import read_limits
from t2t_deploy.errors import DeployError, MemoryShortError

# What compiled code says, each seen under a limit on address space: C++, torch, ONNX Runtime,
# the loader of shared libraries, the making of a thread.
_WORDS = (
    "std::bad_alloc",
    "bad allocation",
    "can't allocate memory",
    "Cannot allocate memory",
    "cannot allocate memory",
    "Failed to allocate memory",
    "failed to map segment from shared object",
    "can't start new thread",
)
# What the loader says of a library that another one needs and that could not be mapped before.
_LIBRARY = "cannot open shared object file"
# What oneDNN says of it, and of an operator that it does not have.
_PRIMITIVE = "could not create a primitive"
_ROOM = 1 << 30
_MIB = 1 << 20


def memory_short(err: BaseException, command: str) -> MemoryShortError | None:
    """What to say of an error that comes of too little memory; None for any other."""
    if not any(_is_memory(found) for found in _causes(err)):
        return None
    return MemoryShortError(
        f"out of memory in '{command}'{_used()}: free some or raise the limit; less is needed "
        "with a smaller --batch or --max-batch, and with fewer pictures (--count)"
    )


def _causes(err: BaseException) -> Iterator[BaseException]:
    """An error and what led to it; of one that we raised, only what it names as its cause."""
    found: BaseException | None = err
    while found is not None:
        yield found
        beside = None if found.__suppress_context__ else found.__context__
        found = found.__cause__ or (None if isinstance(found, DeployError) else beside)


def _is_memory(err: BaseException) -> bool:
    if isinstance(err, MemoryError):
        return True
    if isinstance(err, OSError) and err.errno == errno.ENOMEM:
        return True
    if isinstance(err, ImportError) and _LIBRARY in str(err):
        return _no_room()
    if type(err) is RuntimeError and str(err) == _PRIMITIVE:
        return _no_room()
    # a DeployError may quote a file's name: its cause speaks for it
    return not isinstance(err, DeployError) and any(word in str(err) for word in _WORDS)


def _no_room() -> bool:
    """Whether this process cannot have as much address space as a large library takes."""
    try:
        mmap.mmap(-1, _ROOM).close()
    except (OSError, MemoryError):
        return True
    return False


def _used() -> str:
    """How much this process took, and what it may take."""
    if sys.platform == "win32":
        return ""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak // (_MIB if sys.platform == "darwin" else 1024)
    limits = {
        name: resource.getrlimit(kind)[0]
        for name, kind in (("ulimit -v", resource.RLIMIT_AS), ("ulimit -d", resource.RLIMIT_DATA))
    }
    allowed = [
        f"{k} allows {v // _MIB} MiB" for k, v in limits.items() if v != resource.RLIM_INFINITY
    ]
    container = read_limits().memory_words
    if container:
        allowed.append(container)
    return f": {peak_mib} MiB were in use at most" + "".join(f", {text}" for text in allowed)
