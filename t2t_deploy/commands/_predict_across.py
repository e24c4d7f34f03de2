"""Images -> classes across a Ray cluster, into the Parquet files of a folder, resumable.

    OUTPUT/run.json                         what was asked for
    OUTPUT/predictions/NAME.parquet         a file a block: image, index, probability, label
    OUTPUT/failed/NAME.parquet              its images without classes: image, error, unreadable

A block is finished when its file of predictions is there; it is written last, in one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy import __version__
from t2t_deploy._files import abandoned, atomic_write, file_sha256, make_folder, remove, write_text
from t2t_deploy._optional import require
from t2t_deploy._options import FOLDER, AnyPath, Opt, Role, command, replaced
from t2t_deploy._progress import Progress, silent
from t2t_deploy._untrusted import MAX_MANIFEST_BYTES, json_from_file
from t2t_deploy.commands._artifacts import Force, Trust, of_best, workspace_of
from t2t_deploy.commands._evaluate_sessions import RayAddress, RayWorkers, check_ray
from t2t_deploy.commands._predict import (
    ActivationName,
    Backend,
    Batch,
    Device,
    Images,
    Labels,
    LabelsFile,
    NamedArtifact,
    Threads,
    Top,
    artifact_to_run,
    classifier_request,
    labels_for,
    note_one_output,
)
from t2t_deploy.errors import ArtifactError, counted
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import check_sources, shown_name
from t2t_deploy.runtime import BACKENDS, available_threads
from t2t_deploy.serving import (
    DEFAULT_BLOCK,
    ClassifyBlocks,
    Listing,
    PredictedImage,
    SkippedBlocks,
    map_blocks,
    open_classifier,
    ray_cluster,
    top_count,
)
from t2t_deploy.types import Activation
from t2t_deploy.workspace import Artifact, Workspace

_SECONDS_BETWEEN_STEPS = 10.0
_SUFFIX = ".parquet"
_RUN = "run.json"
_FORMAT = 1
_SHOWN_SOURCES = 20
_SHOWN_FAILED = 1000


@dataclass(frozen=True, slots=True)
class ClusterPrediction:
    """What was predicted, in this run and before.

    images: those that have classes. failed: those that have none, of which ``unreadable`` has
    some. blocks, skipped: files of this partition, and those that were there before. superseded:
    files of another partition of the same images, removed. seconds: of the run, from the first
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
    activation: Activation = Activation.SOFTMAX


@command
def predict_across(
    artifact: NamedArtifact,
    images: Images,
    *,
    output: Annotated[
        AnyPath,
        Opt(
            "With --ray: where Parquet files go; what is there already is not done again.",
            FOLDER,
            Role.WRITES,
        ),
    ],
    ray: Annotated[str, replaced(RayAddress)] = "local",
    workers: RayWorkers = None,
    block: Annotated[
        int, Opt("With --ray: pictures a file; default 256.", none=DEFAULT_BLOCK)
    ] = DEFAULT_BLOCK,
    top: Top = None,
    labels: LabelsFile = None,
    activation: ActivationName = None,
    backend: Backend = None,
    batch: Batch = None,
    threads: Threads = None,
    device: Device = None,
    force: Force = False,
    trust: Trust = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> ClusterPrediction:
    """The same across a Ray cluster, into Parquet files: ``t2t-deploy predict --ray``.

    output: their folder; what is there already is not done again. block: pictures of a file. The
    artifact's bytes travel through the cluster's object store. Memory does not depend on how many
    pictures there are, but on the largest single folder.
    Raises as `predict_images`, and BackendError where the cluster, or a worker thrice, is lost,
    ArtifactError where the output holds something else, MissingDependencyError without Ray.
    """
    workspace = workspace_of(workspace)
    check_ray(ray)
    sources = cast("tuple[str, ...]", images)
    check_sources(sources)
    source = artifact_to_run(workspace, artifact, force=force, trust=trust, progress=progress)
    backend, device = of_best(workspace, artifact, backend, device, progress)
    cpus = threads or 1
    request = classifier_request(
        workspace,
        source,
        backend=backend,
        batch=batch,
        threads=cpus,
        device=device,
        activation=activation,
    )
    used = request.session.backend
    # opened here as each worker will: what is wrong with it shows before a cluster is started
    with open_classifier(request) as classifier:
        named = labels_for(source, labels, classifier.signature.classes, progress)
        note_one_output(classifier.signature, activation, progress)
        count = top_count(top, classifier)
        chosen = classifier.activation
    names_of_classes = "\n".join(named.names).encode()
    settings = {
        "artifact": source.path.name,
        "artifact_sha256": file_sha256(source.path),
        "backend": used,
        "top": count,
        "labels_sha256": hashlib.sha256(names_of_classes).hexdigest() if named.names else None,
    }
    if chosen is not Activation.SOFTMAX:  # runs before there was another have no word for it
        settings["activation"] = chosen.value
    folder = OutputFolder(Path(output), named.names, settings)
    identity = folder.claim(sources, block)
    done = folder.finished()
    content = request.session.path.read_bytes()
    # what a local cluster offers; another one says what it has
    cores = (workers or max(available_threads() // cpus, 1)) * cpus
    with ray_cluster(ray, cpus=cores, shared_bytes=len(content)) as cluster:
        workers = workers or max(cluster.cpus // cpus, 1)
        progress.step(
            f"predicting with {source.path.name}, {used}, on {counted(workers, 'worker')} of the "
            f"cluster at {ray}; {counted(len(done), 'finished block')} found"
        )
        make = ClassifyBlocks(cluster.ray.put(content), request, sources, count)
        listing = Listing(sources, block, identity, done)
        begun = last = time.monotonic()
        names: set[str] = set()
        assumed = Assumed()
        classified = skipped = 0
        gpus = int(BACKENDS[used].needs_gpu)
        for found in map_blocks(cluster, listing, make, workers=workers, cpus=cpus, gpus=gpus):
            if isinstance(found, SkippedBlocks):
                skipped = len(found.names)
                names.update(found.names)
                continue
            finished, (predicted, of_block) = found
            assumed.merge(of_block)
            name = finished.name(identity)
            folder.write(name, predicted)
            names.add(name)
            classified += len(finished.images)
            now = time.monotonic()
            if now - last >= _SECONDS_BETWEEN_STEPS:
                last = now
                speed = classified / (now - begun)
                progress.step(
                    f"{counted(classified, 'picture')} in {counted(len(names), 'block')}, "
                    f"{speed:,.0f}/s"
                )
        seconds = time.monotonic() - begun
    for line in assumed.lines():
        progress.note(line)
    superseded = folder.remove_all_but(names)
    if skipped:
        progress.note(f"{skipped} of {len(names)} blocks were there already, and were skipped")
    if superseded:
        progress.note(
            f"removed {counted(superseded, 'file')} of blocks whose pictures are now in others: "
            "pictures were added or removed since"
        )
    return ClusterPrediction(
        source,
        used,
        named,
        folder.root,
        *folder.totals(),
        len(names),
        skipped,
        superseded,
        workers,
        seconds,
        chosen,
    )


class OutputFolder:
    """Where blocks are written. settings: what decides about their content."""

    def __init__(self, root: Path, labels: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.root = root
        self._labels, self._settings = labels, dict(settings)
        self._predictions, self._failed = root / "predictions", root / "failed"

    def claim(self, sources: Sequence[str], block: int) -> str:
        """Make the folder, or take up what is in it; returns the identity of its blocks.

        Raises ArtifactError where it holds predictions by something else, or of other pictures.
        """
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, sources))).hexdigest()
        expected = {
            "format": _FORMAT,
            **self._settings,
            "block": block,
            "sources": [shown_name(source) for source in sources[:_SHOWN_SOURCES]],
            "sources_sha256": digest,
        }
        path = self.root / _RUN
        if path.is_file():
            try:
                found = json_from_file(path, MAX_MANIFEST_BYTES)
            except (OSError, ValueError) as err:
                raise ArtifactError(
                    f"{path} cannot be read ({err}); choose another --output, or remove this one"
                ) from err
            found = found if isinstance(found, dict) else {}
            other = [key for key in expected if found.get(key) != expected[key]]
            if other:
                key = other[0]
                raise ArtifactError(
                    f"{self.root} holds predictions of another run: its {key} is "
                    f"{found.get(key)!r}, expected {expected[key]!r}; choose another --output, or "
                    "remove it"
                )
        elif self._predictions.exists():
            raise ArtifactError(
                f"{self.root} has a folder predictions and no {_RUN}; choose another --output"
            )
        else:
            write_text(path, json.dumps(expected, indent=1) + "\n")
        for folder in (self._predictions, self._failed):
            make_folder(folder)
        for path in abandoned(self.root):
            remove(path)
        return json.dumps({"format": _FORMAT, **self._settings}, sort_keys=True)

    def finished(self) -> frozenset[str]:
        """Names of the blocks that are here."""
        with os.scandir(self._predictions) as entries:
            return frozenset(
                entry.name[: -len(_SUFFIX)]
                for entry in entries
                # temporary files begin with a dot
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith(".")
            )

    def write(self, name: str, images: Sequence[PredictedImage]) -> None:
        """Write a block whole. Raises ArtifactError where there is no space or right to."""
        pa = require("pyarrow")
        failed = self._failed / f"{name}{_SUFFIX}"
        failed.unlink(missing_ok=True)  # of a run that ended between both files
        fields = {"image": pa.string(), "error": pa.string(), "unreadable": pa.bool_()}
        rows: list[dict[str, Any]] = [
            {"image": one.shown, "error": one.error, "unreadable": one.unreadable}
            for one in images
            if one.error is not None
        ]
        if rows:
            self._write(failed, fields, rows)
        fields = {
            "image": pa.string(),
            "index": pa.list_(pa.int32()),
            "probability": pa.list_(pa.float32()),
        }
        if self._labels:
            fields["label"] = pa.list_(pa.string())
        rows = [
            {
                "image": one.shown,
                "index": [ranked.index for ranked in one.top],
                "probability": [ranked.probability for ranked in one.top],
                "label": [self._labels[ranked.index] for ranked in one.top if self._labels],
            }
            for one in images
            if one.error is None
        ]
        self._write(self._predictions / f"{name}{_SUFFIX}", fields, rows)

    def remove_all_but(self, names: Collection[str]) -> int:
        """Remove blocks that are not among ``names``; returns how many."""
        superseded = self.finished().difference(names)
        for name in superseded:
            for folder in (self._failed, self._predictions):
                (folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
        return len(superseded)

    def totals(self) -> tuple[int, int, tuple[tuple[str, str], ...]]:
        """Images with classes and without in all files; some of the latter with the reason."""
        parquet = require("pyarrow.parquet")
        images = failed = 0
        first: list[tuple[str, str]] = []
        for name in sorted(self.finished()):
            images += parquet.read_metadata(self._predictions / f"{name}{_SUFFIX}").num_rows
            path = self._failed / f"{name}{_SUFFIX}"
            if path.is_file():
                rows = parquet.read_table(path).to_pylist()
                failed += len(rows)
                first += [(row["image"], row["error"]) for row in rows]
                del first[_SHOWN_FAILED:]
        return images, failed, tuple(first)

    def _write(
        self, path: Path, fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        pa, parquet = require("pyarrow"), require("pyarrow.parquet")
        about = {"t2t_deploy": json.dumps({"version": __version__, **self._settings})}
        table = pa.Table.from_pylist(rows, pa.schema(fields, about))
        with atomic_write(path) as temporary:
            parquet.write_table(table, temporary, compression="zstd")
