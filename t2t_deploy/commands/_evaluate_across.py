"""`evaluate` across a Ray cluster: each worker takes blocks through every session, sums are added.

The artifacts and the reference's weights travel through the cluster's object store; the pictures
must be readable under the same paths everywhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._accuracy_run import AccuracyRunner, run_pictures
from t2t_deploy.commands._evaluate_sessions import EvaluateRequest, open_reference, open_runner
from t2t_deploy.pictures import LabelledSet
from t2t_deploy.runtime import available_threads
from t2t_deploy.serving import Listing, SkippedBlocks, Work, map_blocks, ray_cluster
from t2t_deploy.verify import AccuracySum
from t2t_deploy.workspace import Artifact


@dataclass(frozen=True, slots=True)
class _BlockSums:
    """What a block adds: a sum for each artifact, and the reference's."""

    sums: tuple[AccuracySum, ...]
    reference: AccuracySum | None
    unreadable: tuple[tuple[Path, str], ...]


def run_pictures_across(
    request: EvaluateRequest,
    artifacts: Sequence[Artifact],
    weights: Path | None,
    runners: Sequence[AccuracyRunner],
    reference: AccuracyRunner | None,
    images: LabelledSet,
    size: int,
    unreadable: dict[Path, str],
    progress: Progress,
) -> None:
    """As `run_pictures`, by the workers of a cluster; the sums are added to those of ``runners``.

    artifacts: of ``runners``, in their order. weights: file of the reference's.
    Raises BackendError where the cluster, or a worker thrice, is lost.
    """
    across = request.ray
    assert across is not None
    contents = [artifact.path.read_bytes() for artifact in artifacts]
    contents += [weights.read_bytes()] if weights is not None else []
    cores = across.workers or available_threads()
    total = sum(map(len, contents))
    with ray_cluster(across.address, cpus=cores, shared_bytes=total) as cluster:
        put = cluster.ray.put
        classes = dict(zip(map(str, images.paths), images.classes, strict=False))
        make = _EvaluateBlocks(
            dataclasses.replace(request, ray=None),
            tuple(artifacts),
            tuple(put(content) for content in contents),
            put(classes),
            images.folder,
            images.folders,
            size,
        )
        listing = Listing(tuple(map(str, images.paths)), across.block, "")
        found: dict[int, _BlockSums] = {}
        done = 0
        for result in map_blocks(cluster, listing, make, workers=across.workers or cluster.cpus):
            if isinstance(result, SkippedBlocks):
                continue
            block, found[block.ordinal] = result
            done += len(block.images)
            progress.progress("evaluating", done, len(images.paths))
    # in the order of the pictures, so that a run's sums do not depend on who was faster
    for ordinal in sorted(found):
        sums = found[ordinal]
        unreadable.update(sums.unreadable)
        for runner, added in zip(runners, sums.sums, strict=True):
            runner.total.merge(added)
        if reference is not None and sums.reference is not None:
            reference.total.merge(sums.reference)


@dataclass(frozen=True, slots=True)
class _EvaluateBlocks:
    """Opens the sessions in a worker; what it returns evaluates blocks.

    contents: references to the artifacts' bytes, then to the weights' where there is a reference.
    """

    request: EvaluateRequest
    artifacts: tuple[Artifact, ...]
    contents: tuple[Any, ...]
    classes: Any
    folder: Path
    folders: tuple[str, ...]
    size: int

    def __call__(self) -> Work:
        get = require("ray").get
        classes: Mapping[str, int] = get(self.classes)
        stack = contextlib.ExitStack()  # as long as the worker
        with tempfile.TemporaryDirectory(prefix="t2t-deploy-") as folder:
            files = [Path(folder, f"{place}") for place in range(len(self.contents))]
            for file, content in zip(files, self.contents, strict=True):
                file.write_bytes(get(content))
            runners = [
                open_runner(dataclasses.replace(a, path=file), self.request, stack, threads=1)
                for a, file in zip(self.artifacts, files, strict=False)
            ]
            reference = None
            if len(files) > len(self.artifacts):
                first = self.artifacts[0]
                reference = open_reference(files[-1], first, self.request, stack, threads=1)

        def evaluate(names: Sequence[str]) -> _BlockSums:
            for runner in (*runners, *([reference] if reference is not None else [])):
                runner.total = AccuracySum(runner.total.num_classes)
            paths = tuple(map(Path, names))
            known = tuple(classes[name] for name in names) if self.folders else ()
            images = LabelledSet(self.folder, paths, folders=self.folders, classes=known)
            unreadable: dict[Path, str] = {}
            run_pictures(runners, reference, images, self.size, unreadable, silent)
            return _BlockSums(
                tuple(runner.total for runner in runners),
                None if reference is None else reference.total,
                tuple(unreadable.items()),
            )

        return evaluate
