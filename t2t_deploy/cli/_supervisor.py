"""The command in a child of its own, so that a crash of compiled code ends in one line as well.

PyTorch, ONNX Runtime and others answer a failed allocation with ``std::terminate`` here and there:
no handler in the same process gets to say anything then.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from typing import NoReturn

from t2t_deploy._limits import read_limits
from t2t_deploy.cli._output import Output
from t2t_deploy.errors import CrashError, DeployError, MemoryShortError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SI_KERNEL = 0x80  # asm-generic/siginfo.h: of a terminal, which the child has got as well
_WATCHED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD})
_REQUESTS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_SPEECHLESS = 70  # of a child that has not the memory to say that it has none
_FAILED = 1
_LEFT = b"\1"
_how: mmap.mmap | None = None  # a byte that both processes see


def leave() -> None:
    """Note that the command ends by itself: what compiled code ends does not come by here."""
    if _how is not None:
        _how[:] = _LEFT


def end_speechless() -> None:
    """End without the memory to say why; return where no parent is there to say it."""
    if _how is not None:
        os._exit(_SPEECHLESS)


def supervise(command: str, output: Output) -> None:
    """Return in a child process that does the work; its parent waits and ends as the child does.

    Linux only; elsewhere the work is done in this process. Call it before anything heavy is loaded.
    """
    if sys.platform != "linux":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    global _how
    try:
        _how = mmap.mmap(-1, len(_LEFT))
    except (OSError, MemoryError):  # no room for a page: do the work in this process
        return
    parent = os.getpid()
    # blocked before there is a child: none of them is lost
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        child = os.fork()
    except OSError:  # no room for another process: do the work in this one
        _how = None  # nobody waits
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    if child == 0:
        import ctypes

        # a killed parent takes the child along
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_FAILED)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    _wait(child, command, output)


def _wait(child: int, command: str, output: Output) -> NoReturn:
    """Hand signals on until the child ends; end with its status, or say what it died of."""
    while True:
        found = signal.sigwaitinfo(_WATCHED)
        if found.si_signo != signal.SIGCHLD:
            if found.si_code != _SI_KERNEL:
                os.kill(child, found.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
    code = os.waitstatus_to_exitcode(status)
    if -code in _REQUESTS:  # asked to end before it could answer in its own way
        os._exit(128 - code)
    error = _how_it_died(command, code)
    if error is None:
        os._exit(code)
    output.error(error.kind, str(error))
    os._exit(_FAILED)


def _how_it_died(command: str, code: int) -> DeployError | None:
    """What ended a command that did not end by itself. code: a signal's number if negative."""
    if code == -signal.SIGKILL:
        allowed = read_limits().memory_words
        return CrashError(
            f"'{command}' was killed (SIGKILL), which the system does where memory runs out"
            f"{f' ({allowed})' if allowed else ''}: free "
            "memory, or work on less at once (--batch, --count)"
        )
    if code == _SPEECHLESS:
        return MemoryShortError(
            f"out of memory in '{command}', with none left to say where: free some or raise the "
            "limit (ulimit -v)"
        )
    if code >= 0 and (_how is None or _how[:] == _LEFT):
        return None
    names = {-member.value: member.name for member in signal.Signals}
    how = f"status {code}" if code >= 0 else names.get(code, f"signal {-code}")
    return CrashError(
        f"'{command}' crashed in native code ({how}), usually out of memory: free memory or raise "
        "the limit (ulimit -v) and retry; if it crashes again, report it with the lines above"
    )
