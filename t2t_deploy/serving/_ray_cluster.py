"""A Ray cluster for one run: a local one started and ended with it, or one that is there."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from t2t_deploy._optional import require
from t2t_deploy.errors import BackendError, UsageError

LOCAL = "local"
_ADDRESS = re.compile(r"local|auto|(ray://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d+")
# Ray asks for at least 75 MiB. What waits here is names and results: a few kB a block.
_OBJECT_STORE_BYTES = 256 * 2**20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would tell its maker of every cluster
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will become; it warns otherwise
    # It warns that a restarted worker needs its arguments; they are kept until the end.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
_LOCAL_ONLY = {
    # Without it Ray listens on every address: whoever reaches these ports runs code here.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Other users of this machine reach the loopback address. The token is in no file.
    "RAY_AUTH_MODE": "token",
}
_TOKEN = "RAY_AUTH_TOKEN"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster this process is connected to. ray: the module; cpus: all that it offers."""

    ray: Any
    cpus: int


def check_address(address: str) -> None:
    """Raise UsageError unless it is ``local``, ``auto`` or HOST:PORT."""
    if not _ADDRESS.fullmatch(address):
        raise UsageError(
            f"--ray is {address!r}; expected local, auto or HOST:PORT. The word after --ray is its "
            "address: put --ray last, or write --ray local"
        )


@contextlib.contextmanager
def ray_cluster(address: str, *, cpus: int, shared_bytes: int) -> Iterator[Cluster]:
    """Connect to a cluster, and leave it at the end.

    address: ``local`` starts one of ``cpus`` CPUs on this machine's loopback address, without
    dashboard or usage statistics, its files in a temporary folder; ``auto`` or HOST:PORT is one
    that is there. shared_bytes: what all workers read from the object store.
    Raises UsageError for no address, BackendError where it does not answer or start,
    MissingDependencyError.
    """
    check_address(address)
    local = address == LOCAL
    with contextlib.ExitStack() as stack:
        private = _LOCAL_ONLY | {_TOKEN: secrets.token_hex(32)} if local else {}
        stack.enter_context(_environment(_QUIET | private))
        stack.enter_context(_kept_signals())
        # of a worker that died Ray tells on stdout, which belongs to results
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        ray = require("ray")
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "configure_logging": True,
        }
        if local:
            folder = tempfile.mkdtemp(prefix="t2t-ray-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {
                "num_cpus": cpus,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES + 2 * shared_bytes,
                "_temp_dir": folder,
            }
        stack.callback(ray.shutdown)
        try:
            ray.init(address=address, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as err:
            what = "start here" if local else f"be reached at {address}"
            why = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
            raise BackendError(
                f"a Ray cluster cannot {what}: {why}; see 'ray status', or use --ray local"
            ) from err
        yield Cluster(ray, int(ray.cluster_resources().get("CPU", 0)))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set what is not set, and take it back: Ray reads these when it is imported or started."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Give SIGTERM back its handler, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: it was not replaced
            signal.signal(signal.SIGTERM, before)
