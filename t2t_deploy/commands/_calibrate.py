"""pictures -> ranges file: what the linear layers of a graph read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from t2t_deploy._codec import from_plain, to_plain
from t2t_deploy._files import atomic_write
from t2t_deploy._options import AnyPath, Opt, Role, command, replaced
from t2t_deploy._preparation import Preparation
from t2t_deploy._progress import Progress, silent
from t2t_deploy._untrusted import DAMAGED, check_safetensors
from t2t_deploy.calibration import (
    Calibration,
    CalibrationKey,
    ChannelMaxima,
    Equalisation,
    LinearLayer,
    Observation,
    RangeMethod,
    decide,
    equalised_weights,
    find_layers,
    load_calibration,
    observed_model,
    plan_equalisation,
    range_of,
    replace_weights,
    save_calibration,
    sources,
)
from t2t_deploy.commands._artifacts import ArtifactFile, Force, named_or_newest, workspace_of
from t2t_deploy.commands._export import ExportedGraph, OutputFile, forms_asked, graph_of_weights
from t2t_deploy.errors import CalibrationError, UsageError, counted
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import (
    ImageSet,
    PictureCounter,
    PictureCounts,
    identity_of,
    image_set_from_folder,
)
from t2t_deploy.runtime import DEFAULT_BACKEND, Session, SessionRequest, open_session
from t2t_deploy.types import INPUT_NAME, QUANTIZED, Target
from t2t_deploy.workspace import CALIBRATION, PARTIAL, Manifest, Workspace

DEFAULT_COUNT = 512
DEFAULT_METHOD = RangeMethod.MINMAX
# Images that decide how the channels are equalised; ranges are taken from all.
_EQUALISED_ON = 64
_BATCH = 4
# Files between two savings of the sums.
_SAVED_EVERY = 64


Count = Annotated[
    int, Opt("Take up to this many pictures; default 512.", recipe=False, none=DEFAULT_COUNT)
]
Method = Annotated[
    str | RangeMethod,
    Opt("How a range is chosen; default minmax.", recipe=False, none=DEFAULT_METHOD),
]
Equalise = Annotated[bool, Opt("Leave channels of very different size as they are.", recipe=False)]


@dataclass(frozen=True, slots=True)
class CalibrationGraph:
    """The float32 graph that ranges are taken on, before equalisation, and its linear layers."""

    exported: ExportedGraph
    layers: tuple[LinearLayer, ...]
    sha256: str
    target: Target

    @property
    def model(self) -> onnx.ModelProto:
        """The graph itself."""
        return self.exported.model

    @property
    def observed(self) -> tuple[LinearLayer, ...]:
        """The layers whose ranges are taken."""
        return tuple(found.layer for found in decide(self.layers) if found.quantised)

    @property
    def written(self) -> tuple[LinearLayer, ...]:
        """Those of them whose results may leave in codes: in graphs for TensorRT."""
        return self.observed if self.target is Target.TENSORRT else ()


@dataclass(frozen=True, slots=True)
class CalibratedRanges:
    """A calibration and its file. reused: it was made before, by the same graph and pictures."""

    path: Path
    calibration: Calibration
    reused: bool = False


@command
def calibrate_onnx(
    artifact: ArtifactFile = None,
    *,
    images: Annotated[
        AnyPath,
        Opt(
            "Folder of pictures like those the model will see; subfolders are looked into.",
            role=Role.READS,
            recorded="calibration pictures",
        ),
    ],
    count: Annotated[int, replaced(Count, recipe=True)] = DEFAULT_COUNT,
    method: Annotated[str | RangeMethod, replaced(Method, recipe=True)] = DEFAULT_METHOD,
    equalise: Annotated[bool, replaced(Equalise, recipe=True)] = True,
    target: Annotated[
        str | Target | None,
        Opt("What the quantised graph will be made for; default the artifact's.", recipe=False),
    ] = None,
    force: Force = False,
    output: Annotated[AnyPath | None, replaced(OutputFile, recipe=False)] = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> CalibratedRanges:
    """Take the ranges of what linear layers read: ``t2t-deploy calibrate``.

    artifact: an export; None is the newest. ``images`` is a folder, looked into as a whole. Raises
    ArtifactError, CalibrationError, ImageError, BackendError.

    Examples
    --------
    >>> from t2t_deploy import calibrate_onnx
    >>> ranges = calibrate_onnx(images="train", method="mse")
    >>> len(ranges.calibration.ranges), ranges.reused
    (11, False)
    """
    workspace = workspace_of(workspace)
    workspace.check_writable(CALIBRATION, say=progress.note)
    source = quantizable_export(workspace, artifact, progress, force=force)
    chosen = Target(source.target if target is None else target)
    check_quantizable(chosen)
    found = calibration_images(Path(images), count, progress)
    graph = calibration_graph(workspace, source, chosen, progress)
    return calibrated(
        workspace,
        source,
        graph,
        found,
        progress,
        method=RangeMethod(method),
        equalise=equalise,
        output=output,
    )


def calibrate_values(found: CalibratedRanges) -> dict[str, Any]:
    """What ``calibrate --json`` prints."""
    calibration = found.calibration
    return {
        "ranges": {
            "path": str(found.path),
            **to_plain(calibration.key),
            "tensors": len(calibration.ranges),
            "reused": found.reused,
        },
        "calibration": calibration_values(calibration),
        "equalised": equalised_values(calibration.equalisation),
        "not_equalised": dict(calibration.equalisation.refused),
    }


def calibration_values(calibration: Calibration) -> dict[str, Any]:
    """What ranges were taken on, and how."""
    key = calibration.key
    return {
        "images": key.images - len(calibration.unreadable),
        "sha256": key.images_sha256,
        "method": key.method.value,
        "unreadable": list(calibration.unreadable),
        "counts": to_plain(calibration.counts),
    }


def note_pictures(calibration: Calibration, progress: Progress) -> None:
    """Say what makes the pictures of a calibration a poor set."""
    note = None if calibration.counts is None else calibration.counts.note()
    if note is not None:
        progress.note(note)


def calibration_advice(manifest: Manifest | None, name: str = "it") -> str | None:
    """What to do first about an artifact that falls short; None where pictures are not to blame.

    name: of the artifact, in the line.
    """
    if manifest is None:
        return None
    known = manifest.details.get("calibration")
    try:
        return from_plain(PictureCounts, known["counts"]).advice(name) if known else None
    except (ValueError, TypeError, KeyError):  # of an earlier version, or altered
        return None


def equalised_values(equalisation: Equalisation, *more: str) -> list[dict[str, Any]]:
    """The pairs of layers that were made alike. more: other fields of theirs."""
    names = ("producer", "layers", "spread_before", "spread_after", *more)
    return [{n: to_plain(getattr(pair, n)) for n in names} for pair in equalisation.applied]


def quantizable_export(
    workspace: Workspace, path: AnyPath | None, progress: Progress, *, force: bool
) -> Manifest:
    """The manifest of the export that was named, or of the newest float one.

    Its weights are what counts, and how its form was asked for.
    """
    artifact = named_or_newest(
        workspace,
        path,
        "onnx",
        "from the newest export",
        progress,
        lambda manifest: manifest.precision not in QUANTIZED,
        force=force,
    )
    manifest = artifact.require_manifest()
    if manifest.kind != "onnx":
        raise CalibrationError(
            f"{artifact.path} is an {manifest.kind}; expected an exported ONNX file: name one, or "
            "none to take the newest"
        )
    return manifest


def check_quantizable(target: Target) -> None:
    """Raise UsageError for a target of which there are no 8-bit graphs."""
    if target in (Target.CUDA, Target.NCNN):
        raise UsageError(
            f"there are no 8-bit graphs for target {target.value}; expected target tensorrt, for "
            "engines on a GPU, or portable, cpu or openvino: the export may stay the one for "
            f"{target.value}"
        )


def calibration_graph(
    workspace: Workspace, source: Manifest, target: Target, progress: Progress = silent
) -> CalibrationGraph:
    """The float32 graph of an export's weights in a target's forms, of any batch."""
    form = dataclasses.replace(forms_asked(source), target=target)
    graph = graph_of_weights(workspace, source, form, progress, merge_bias=False)
    content = graph.model.SerializeToString(deterministic=True)
    sha256 = hashlib.sha256(content).hexdigest()
    return CalibrationGraph(graph, find_layers(graph.model), sha256, target)


def calibration_images(folder: Path, count: int, progress: Progress = silent) -> ImageSet:
    """Up to ``count`` pictures, taken evenly from the whole of a folder; fewer is said."""
    images = image_set_from_folder(folder, count=count, spread=True)
    if len(images.paths) < count:
        progress.note(
            f"{folder} holds {counted(len(images.paths), 'picture')}, fewer than the {count} asked"
        )
    elif images.left_out:
        progress.note(
            f"took {counted(len(images.paths), 'picture')} evenly, left out {images.left_out}"
        )
    return images


def calibrated(
    workspace: Workspace,
    source: Manifest,
    graph: CalibrationGraph,
    images: ImageSet,
    progress: Progress = silent,
    *,
    method: RangeMethod = DEFAULT_METHOD,
    equalise: bool = True,
    output: AnyPath | None = None,
) -> CalibratedRanges:
    """The calibration of a graph on pictures, from its file where one was made before.

    An interrupted one goes on where its sums were last saved. Raises CalibrationError.
    """
    digests = images.digests()
    preparation = source.preparation
    key = CalibrationKey(
        graph_sha256=graph.sha256,
        images_sha256=identity_of(digests),
        images=len(digests),
        image_size=preparation.size[0],
        method=method,
        equalised=equalise,
    )
    height, width = preparation.size
    if not preparation.usual or height != width:
        steps = json.dumps([preparation.to_dict(), preparation.input_shape], sort_keys=True)
        key = dataclasses.replace(key, preprocessing=steps)
    name = f"{source.variant}-{source.size_text}-{graph.target.value}-{key.digest()[:8]}"
    kept = workspace.root / CALIBRATION / f"{name}.ranges"
    path = kept if output is None else Path(output)
    ready = _ready(kept, key, graph)
    if ready is None:
        with workspace.lock(name):
            ready = _ready(kept, key, graph)  # another command may have made it meanwhile
            if ready is None:
                partial = kept.with_suffix(PARTIAL)
                work = _Work(workspace, graph, images, key, preparation, partial, progress)
                workspace.folder(CALIBRATION)
                found = work.run(digests)
                _write(found, path)
                work.partial.unlink(missing_ok=True)
                note_pictures(found, progress)
                return CalibratedRanges(path, found)
    progress.note(f"the ranges of this graph and these pictures were taken before: {kept.name}")
    note_pictures(ready, progress)
    if path != kept:
        _write(ready, path)
    return CalibratedRanges(path, ready, reused=True)


def _ready(path: Path, key: CalibrationKey, graph: CalibrationGraph) -> Calibration | None:
    """The calibration in a file, if it is of this key and has what layers write."""
    found = load_calibration(path) if path.is_file() else None
    if found is None or found.key != key:
        return None
    return found if all(layer.result in found.ranges for layer in graph.written) else None


@dataclass(slots=True)
class _Work:
    """One calibration under way. partial: where the sums so far are kept."""

    workspace: Workspace
    graph: CalibrationGraph
    images: ImageSet
    key: CalibrationKey
    preparation: Preparation
    partial: Path
    progress: Progress
    unreadable: list[str] = field(default_factory=list)
    assumed: Assumed = field(default_factory=Assumed)
    counter: PictureCounter = field(default_factory=PictureCounter)

    def run(self, digests: Sequence[str]) -> Calibration:
        equalisation = self.equalise() if self.key.equalised else Equalisation()
        observation = self.observe(equalisation)
        for line in (*self.unreadable, *self.assumed.lines()):
            self.progress.note(line)
        histograms = {name: total.histogram for name, total in observation.sums.items()}
        return Calibration(
            key=self.key,
            ranges={name: range_of(h, self.key.method) for name, h in histograms.items()},
            largest={name: h.largest for name, h in histograms.items()},
            moments={
                name: total.moments
                for name, total in observation.sums.items()
                if total.moments.size
            },
            equalisation=equalisation,
            pictures=tuple(digests),
            unreadable=tuple(self.unreadable),
            counts=self.counter.counts(),
        )

    def equalise(self) -> Equalisation:
        """Scales from the largest channels on some of the pictures."""
        few = dataclasses.replace(self.images, paths=self.images.paths[:_EQUALISED_ON])
        maxima = ChannelMaxima()
        self.progress.step(f"looking at the channels on {counted(len(few.paths), 'picture')}")
        with self.session(self.graph.model, sources(self.graph.layers)) as session:
            # what cannot be read is reported when all are read
            for done, pictures in _pictures(few, self.preparation, 0, []):
                if len(pictures):
                    maxima.add(session.run({INPUT_NAME: pictures}))
                self.progress.progress("equalising", done, len(few.paths))
        return plan_equalisation(
            self.graph.model,
            self.graph.layers,
            maxima.channels,
            alike=self.graph.target is Target.TENSORRT,
        )

    def observe(self, equalisation: Equalisation) -> Observation:
        """Sums over all pictures, on the equalised graph."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        values = equalised_weights(model, self.graph.layers, equalisation.applied)
        replace_weights(model, values)
        observation, done = self.resume()
        total = len(self.images.paths)
        self.progress.step(f"taking ranges on {counted(total - done, 'picture')}")
        with self.session(model, observation.sums) as session:
            saved = done
            rest = _pictures(
                *(self.images, self.preparation, done, self.unreadable),
                assumed=self.assumed,
                counter=self.counter,
            )
            for done, pictures in rest:
                if len(pictures):
                    observation.add(session.run({INPUT_NAME: pictures}), len(pictures))
                if done - saved >= _SAVED_EVERY and done < total:
                    self.save(observation, done)
                    saved = done
                self.progress.progress("taking ranges", done, total)
        if observation.pictures == 0:
            raise CalibrationError(
                f"{self.images.folder} holds {counted(total, 'picture')} and none can be read, the "
                f"first because: {self.unreadable[0]}"
            )
        return observation

    @contextlib.contextmanager
    def session(self, model: onnx.ModelProto, tensors: Iterable[str]) -> Iterator[Session]:
        with self.workspace.scratch() as folder:
            path = folder / "observed.onnx"
            onnx.save(observed_model(model, tensors), path)
            with open_session(SessionRequest(DEFAULT_BACKEND, path)) as session:
                yield session

    def save(self, observation: Observation, done: int) -> None:
        """Keep the sums, so that a killed calibration goes on from here."""
        metadata = {
            "key": self.key.digest(),
            "done": str(done),
            "unreadable": json.dumps(self.unreadable),
            "counter": json.dumps(to_plain(self.counter)),
        }
        with atomic_write(self.partial) as temporary:
            temporary.write_bytes(save(observation.to_arrays(), metadata=metadata))

    def resume(self) -> tuple[Observation, int]:
        """The sums a calibration of the same key left, and the files in them; else empty ones."""
        empty = Observation.of(self.graph.observed, self.graph.written)
        try:
            check_safetensors(self.partial)
            with safe_open(self.partial, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key.digest():
                    return empty, 0
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = Observation.from_arrays(arrays)
            done, unreadable = int(metadata["done"]), list(json.loads(metadata["unreadable"]))
            counter = from_plain(PictureCounter, json.loads(metadata["counter"]), exact=True)
        except (SafetensorError, CalibrationError, *DAMAGED):  # the pictures are there: start again
            return empty, 0
        if found.sums.keys() != empty.sums.keys():
            return empty, 0
        self.unreadable += unreadable
        self.counter = counter
        self.progress.note(
            f"going on after {counted(done, 'picture')}, where a calibration was interrupted"
        )
        return found, done


def _pictures(
    images: ImageSet,
    preparation: Preparation,
    start: int,
    unreadable: list[str],
    *,
    assumed: Assumed | None = None,
    counter: PictureCounter | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Files done so far and the pictures of a batch.

    What cannot be read is left out, and the reason is added to ``unreadable``.
    """
    rest = dataclasses.replace(images, paths=images.paths[start:])
    done = start
    for batch in rest.readable_batches(preparation, _BATCH, assumed=assumed, counter=counter):
        done += len(batch.pictures) + len(batch.unreadable)
        unreadable += [reason for _, reason in batch.unreadable]
        yield done, batch.pictures


def _write(calibration: Calibration, path: Path) -> None:
    with atomic_write(path, kept=True) as temporary:
        save_calibration(calibration, temporary)
