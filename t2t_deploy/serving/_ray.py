"""A Ray cluster for one run, and blocks of images through its workers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import pickle
import re
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._optional import require
from t2t_deploy.errors import BackendError, DeployError, UsageError
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import find_images, reader_of, scheme_of
from t2t_deploy.serving._classifier import (
    ClassifierRequest,
    PredictedImage,
    chunks,
    classify_images,
    open_classifier,
)

LOCAL = "local"
_ADDRESS = re.compile(r"local|auto|(ray://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):\d+")
# Ray asks for at least 75 MiB. What waits here is names and results: a few kB a block.
_OBJECT_STORE_BYTES = 256 * 2**20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report every cluster to its maker
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
        # Ray reads these when it is imported or started
        added = {key: word for key, word in (_QUIET | private).items() if key not in os.environ}
        os.environ.update(added)
        for name in added:
            stack.callback(os.environ.pop, name, None)
        stack.callback(_handle_sigterm, signal.getsignal(signal.SIGTERM))  # Ray replaces it
        # Ray reports a worker that died on stdout, which belongs to results
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


def _handle_sigterm(handler: Any) -> None:
    with contextlib.suppress(ValueError):  # not the main thread: it was not replaced
        signal.signal(signal.SIGTERM, handler)


DEFAULT_BLOCK = 256
RETRIES = 2
"""How often a worker is started again, and a block tried again. Ray's own number has no end."""
_END = -1

Work = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class ImageBlock:
    """Some images in a row. ordinal: its number among all blocks, from 0."""

    ordinal: int
    images: tuple[str, ...]

    def name(self, identity: str) -> str:
        """A file name that says the block's number, and whether it is still the same.

        identity: of what is done with the images.
        """
        digest = hashlib.sha256(identity.encode())
        for image in self.images:
            digest.update(b"\0" + os.fsencode(image))
        return f"{self.ordinal:08d}-{digest.hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class SkippedBlocks:
    """What a listing found: how many blocks there are, and which of them were done before."""

    blocks: int
    names: tuple[str, ...]


def blocks_to_do(
    images: Iterable[str], size: int, identity: str, done: Collection[str]
) -> Iterator[ImageBlock | SkippedBlocks]:
    """The blocks of ``size`` whose name is not among ``done``; at the end, what was skipped.

    The same images are in the same blocks in every run, so that a run can be taken up again.
    """
    skipped = []
    count = 0
    for chunk in chunks(images, size):
        block = ImageBlock(count, tuple(chunk))
        count += 1
        name = block.name(identity)
        if name in done:
            skipped.append(name)
        else:
            yield block
    yield SkippedBlocks(count, tuple(skipped))


@dataclass(frozen=True, slots=True)
class Listing:
    """What to list and how to cut it. done: names of blocks not to do again."""

    sources: tuple[str, ...]
    block: int
    identity: str
    done: frozenset[str] = frozenset()

    def __call__(self, table: Any) -> Iterator[Any]:
        """In a task: a table of one row for each block to do, then one of what was skipped."""
        pa = require("pyarrow")
        images = find_images(self.sources)
        for block in blocks_to_do(images, self.block, self.identity, self.done):
            ordinal, content = _END, pickle.dumps(block)
            if isinstance(block, ImageBlock):
                # bytes, since Arrow's strings hold no name that is not UTF-8
                ordinal, content = block.ordinal, b"\0".join(map(os.fsencode, block.images))
            yield pa.table({"ordinal": pa.array([ordinal]), "content": pa.array([content])})


class BlockWorker:
    """An actor of Ray Data: what ``make`` returns is called with each block's images."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._work = make()

    def __call__(self, table: Any) -> Any:
        """Add what was made of each block."""
        pa = require("pyarrow")
        results = [
            b"" if row["ordinal"] == _END else pickle.dumps(self._work(_images(row["content"])))
            for row in table.to_pylist()
        ]
        return table.append_column("result", pa.array(results, pa.binary()))


def map_blocks(
    cluster: Cluster,
    listing: Listing,
    make: Callable[[], Work],
    *,
    workers: int,
    cpus: int = 1,
    gpus: int = 0,
) -> Iterator[tuple[ImageBlock, Any] | SkippedBlocks]:
    """Each block with what a worker made of it, as they are done; what was skipped among them.

    make: called once in each worker. cpus, gpus: of each worker. A worker that is killed is started
    again, and its block done again, up to `RETRIES` times.
    Raises BackendError where that did not help, or blocks are missing at the end, and whatever
    DeployError a worker raises.
    """
    data = require("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    # a row is a block, and every row is handed on as soon as it is there
    context.target_max_block_size = 1
    with warnings.catch_warnings():
        # Restarts and retries have no other way in. They go in 2.64: pyproject.toml stops before.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        found = (
            data.from_items([0])
            # CPUs that differ keep Ray from running both in one process
            .map_batches(listing, batch_format="pyarrow", num_cpus=0, max_retries=RETRIES)
            .map_batches(
                BlockWorker,
                fn_constructor_args=(make,),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=cpus,
                num_gpus=gpus or None,
                compute=data.ActorPoolStrategy(size=workers),
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
            )
        )
    seen: set[int] = set()
    skipped: SkippedBlocks | None = None
    for row in _rows(cluster, found):
        if row["ordinal"] == _END:
            skipped = pickle.loads(row["content"])
            yield skipped
        elif row["ordinal"] not in seen:
            seen.add(row["ordinal"])
            block = ImageBlock(row["ordinal"], tuple(_images(row["content"])))
            yield block, pickle.loads(row["result"])
    if skipped is None or len(seen) + len(skipped.names) != skipped.blocks:
        raise BackendError(
            f"{len(seen)} blocks came back, and the listing counted {skipped}: was a picture added "
            "or removed meanwhile? Finished blocks are kept: run the same command again"
        )


def _rows(cluster: Cluster, dataset: Any) -> Iterator[dict[str, Any]]:
    errors = cluster.ray.exceptions
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from batch.to_pylist()
    except errors.RayTaskError as err:
        if isinstance(err.cause, DeployError):
            raise err.cause from err
        raise
    except errors.RayError as err:
        raise BackendError(
            f"a worker was lost {RETRIES + 1} times over the same block "
            f"({' '.join(str(err).split())[:300]}); finished blocks are kept: give workers more "
            "memory or find the picture that ends them, and run the same command again"
        ) from err


def _images(content: bytes) -> list[str]:
    return [os.fsdecode(name) for name in content.split(b"\0")]


_REMOTE_READERS = 8
"""Threads that wait for a remote filesystem, where a picture takes tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class ClassifyBlocks:
    """Opens an artifact in a worker; what it returns classifies blocks.

    content: reference to the artifact's bytes in the cluster's object store: workers need no disk
    in common with the driver. request: how to open it, its path and its cache being the driver's.
    """

    content: Any
    request: ClassifierRequest
    sources: tuple[str, ...]
    top: int

    def __call__(self) -> Work:
        """Open the session. Raises BackendError, ArtifactError."""
        session = self.request.session
        with tempfile.TemporaryDirectory(prefix="t2t-deploy-") as folder:
            path = Path(folder, session.path.name)
            path.write_bytes(require("ray").get(self.content))
            # runtimes have read the file, or hold it open, once a session is there
            session = dataclasses.replace(session, path=path, batch=self.request.batch, cache=None)
            classifier = open_classifier(dataclasses.replace(self.request, session=session))
        remote = any(scheme_of(source) is not None for source in self.sources)
        # a worker with one core decodes and computes by turns; more would share that core
        readers = _REMOTE_READERS if remote else (session.threads or 1) - 1

        def classify(images: Sequence[str]) -> tuple[list[PredictedImage], Assumed]:
            assumed = Assumed()
            read = reader_of(self.sources, classifier.signature.preparation, assumed)
            found = classify_images(classifier, images, read, top=self.top, readers=readers)
            return list(found), assumed

        return classify
