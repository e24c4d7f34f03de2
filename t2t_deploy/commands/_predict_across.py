"""Pictures -> classes across a Ray cluster, into Parquet files, resumable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._files import file_sha256
from t2t_deploy._optional import is_installed, require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._classifier import (
    Labels,
    artifact_to_run,
    classifier_request,
    labels_for,
    num_classes_of,
)
from t2t_deploy.commands._predict import PredictRequest
from t2t_deploy.commands._predict_parquet import OutputFolder
from t2t_deploy.errors import counted
from t2t_deploy.pictures import check_sources
from t2t_deploy.runtime import BACKENDS, available_threads
from t2t_deploy.serving import (
    DEFAULT_BLOCK,
    ClassifierRequest,
    ClassifyBlocks,
    Listing,
    SkippedBlocks,
    check_address,
    map_blocks,
    open_classifier,
    ray_cluster,
    wanted_top,
)
from t2t_deploy.types import Tail
from t2t_deploy.workspace import Artifact, Workspace

_SECONDS_BETWEEN_STEPS = 10.0


@dataclass(frozen=True, slots=True)
class RayRequest:
    """Where to run and where to write.

    address: ``local``, ``auto`` or HOST:PORT. output: folder of the Parquet files. workers: None is
    one for each core of the cluster. block: pictures of a file.
    """

    output: Path
    address: str = "local"
    workers: int | None = None
    block: int = DEFAULT_BLOCK


@dataclass(frozen=True, slots=True)
class ClusterPrediction:
    """What was predicted, in this run and before.

    images: pictures that have classes. failed: pictures that have none, of which ``unreadable`` has
    some. blocks, skipped: files of this partition, and those that were there before. superseded:
    files of another partition of the same pictures, removed. seconds: of the run, from the first
    block asked for to the last one written.
    """

    artifact: Artifact
    backend: str
    labels: Labels
    output: Path
    images: int
    failed: int
    unreadable: tuple[tuple[str, str], ...]
    blocks: int
    skipped: int
    superseded: int
    workers: int
    seconds: float


def predict_across(
    workspace: Workspace, request: PredictRequest, ray: RayRequest, progress: Progress = silent
) -> ClusterPrediction:
    """Classify pictures on a cluster's workers; blocks that are in the output are skipped.

    The artifact's bytes travel through the cluster's object store. Memory does not depend on how
    many pictures there are, but on the largest single folder.
    Raises as `predict_images`, and BackendError where the cluster, or a worker thrice, is lost,
    ArtifactError where the output holds something else.
    """
    check_address(ray.address)
    check_sources(request.images)
    if not is_installed("ray"):  # it is imported once its settings are made
        require("ray")
    artifact = artifact_to_run(
        workspace, request.artifact, force=request.force, trust=request.trust, progress=progress
    )
    cpus = request.threads or 1
    plan = classifier_request(
        workspace,
        artifact,
        backend=request.backend,
        batch=request.batch,
        threads=cpus,
        device=request.device,
    )
    top, labels = _checked(artifact, plan, request, progress)
    settings = _settings(artifact, plan, labels, top)
    output = OutputFolder(ray.output, labels.names, settings)
    identity = output.claim(request.images, ray.block)
    done = output.finished()
    content = plan.session.path.read_bytes()
    # what a local cluster offers; another one tells what it has
    cores = (ray.workers or max(available_threads() // cpus, 1)) * cpus
    with ray_cluster(ray.address, cpus=cores, shared_bytes=len(content)) as cluster:
        workers = ray.workers or max(cluster.cpus // cpus, 1)
        progress.step(
            f"predicting with {artifact.path.name}, {plan.session.backend}, on "
            f"{counted(workers, 'worker')} of the cluster at {ray.address}; "
            f"{counted(len(done), 'finished block')} found"
        )
        images = tuple(request.images)
        make = ClassifyBlocks(cluster.ray.put(content), plan, images, top)
        listing = Listing(images, ray.block, identity, done)
        begun = told = time.monotonic()
        names: set[str] = set()
        pictures = skipped = 0
        for found in map_blocks(
            cluster,
            listing,
            make,
            workers=workers,
            cpus=cpus,
            gpus=int(BACKENDS[plan.session.backend].needs_gpu),
        ):
            if isinstance(found, SkippedBlocks):
                skipped = len(found.names)
                names.update(found.names)
                continue
            block, classes = found
            name = block.name(identity)
            output.write(name, classes)
            names.add(name)
            pictures += len(block.images)
            now = time.monotonic()
            if now - told >= _SECONDS_BETWEEN_STEPS:
                told = now
                speed = pictures / (now - begun)
                progress.step(
                    f"{counted(pictures, 'picture')} in {counted(len(names), 'block')}, "
                    f"{speed:,.0f}/s"
                )
        seconds = time.monotonic() - begun
    superseded = output.remove_all_but(names)
    if skipped:
        progress.note(f"{skipped} of {len(names)} blocks were there already, and were skipped")
    if superseded:
        progress.note(
            f"removed {counted(superseded, 'file')} of blocks whose pictures are now in others: "
            "pictures were added or removed since"
        )
    totals = output.totals()
    return ClusterPrediction(
        artifact,
        plan.session.backend,
        labels,
        ray.output,
        totals.images,
        totals.failed,
        totals.first_failed,
        len(names),
        skipped,
        superseded,
        workers,
        seconds,
    )


def _checked(
    artifact: Artifact, plan: ClassifierRequest, request: PredictRequest, progress: Progress
) -> tuple[int, Labels]:
    """Open the artifact here as each worker will: what is wrong with it shows before a cluster."""
    with open_classifier(plan) as classifier:
        num_classes = num_classes_of(artifact)
        if num_classes is None and plan.graph_io.tail is not Tail.TOPK:
            num_classes = classifier.columns
        labels = labels_for(artifact, request.labels, num_classes, progress)
        return wanted_top(request.top, classifier), labels


def _settings(
    artifact: Artifact, plan: ClassifierRequest, labels: Labels, top: int
) -> Mapping[str, Any]:
    """What decides about the content of the output."""
    names = "\n".join(labels.names).encode()
    return {
        "artifact": artifact.path.name,
        "artifact_sha256": file_sha256(artifact.path),
        "backend": plan.session.backend,
        "top": top,
        "labels_sha256": hashlib.sha256(names).hexdigest() if names else None,
    }
