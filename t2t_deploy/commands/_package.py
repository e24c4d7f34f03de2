"""An artifact as a model repository of Triton Inference Server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._options import FILE, FOLDER, AnyPath, Opt, Role, choice, command, whole
from t2t_deploy._progress import Progress, silent
from t2t_deploy._untrusted import MAX_LABELS_BYTES, read_small_file
from t2t_deploy.commands._artifacts import ArtifactFile, Force, artifact_values, workspace_of
from t2t_deploy.engine import BACKEND_RTX
from t2t_deploy.errors import ArtifactError, UsageError, counted
from t2t_deploy.serving.triton import (
    Accelerator,
    Service,
    ServingFormat,
    Signature,
    check_folders,
    choose_accelerator,
    choose_batching,
    choose_format,
    service_folders,
    service_names,
    signature_from_onnx,
    signature_from_tensors,
    write_folders,
)
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, Precision, ShapeProfile, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace, manifest_path_for

DEFAULT_TOP = 5
DEFAULT_QUEUE_DELAY_US = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class PackageRequest:
    """What to package, and how it is to be served.

    repository: the folder of models. artifact: None takes the newest that suits. format: None goes
    by the artifact's kind. name: of the model; None is made of variant and precision.
    labels: a file of one label a line. top: classes that the ensemble tells. max_batch: None is
    what an engine takes, or 32. accelerator: within Triton's ONNX Runtime; None goes by the target.
    queue_delay_us: how long a request may wait for others, microseconds. instances: of the model;
    preprocess_instances: processes that read pictures. threads: of ONNX Runtime in each instance;
    0 is one per core.
    """

    repository: Path
    artifact: Path | None = None
    format: ServingFormat | None = None
    name: str | None = None
    labels: Path | None = None
    top: int = DEFAULT_TOP
    max_batch: int | None = None
    accelerator: Accelerator | None = None
    queue_delay_us: int = DEFAULT_QUEUE_DELAY_US
    instances: int = 1
    preprocess_instances: int = 1
    threads: int = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Package:
    """What was made. folders: of the repository. notes: what the user should know of it."""

    artifact: Artifact
    service: Service
    repository: Path
    folders: tuple[Path, ...]
    notes: tuple[str, ...]


@command
def package_artifact(
    artifact: ArtifactFile = None,
    *,
    triton: Annotated[
        AnyPath,
        Opt(
            "Folder of models: the server's --model-repository.",
            FOLDER,
            Role.WRITES,
            metavar="DIR",
        ),
    ],
    format: Annotated[
        str | ServingFormat | None,
        Opt(
            "Triton's backend; auto: tensorrt for engines, onnxruntime for ONNX files.",
            choice("auto", *ServingFormat, of=ServingFormat, absent="auto"),
            shown="auto",
        ),
    ] = None,
    name: Annotated[str | None, Opt("Of the model; default t2t_vit_VARIANT_PRECISION.")] = None,
    labels: Annotated[
        AnyPath | None,
        Opt("Names of the classes, one a line.", FILE, Role.READS, metavar="FILE"),
    ] = None,
    top: Annotated[
        int | None, Opt("Classes the ensemble tells; default 5.", none=DEFAULT_TOP)
    ] = None,
    max_batch: Annotated[int | None, Opt("Pictures at a time; default an engine's, or 32.")] = None,
    accelerator: Annotated[
        str | Accelerator | None,
        Opt("Within Triton's ONNX Runtime; default by the target the graph is made for."),
    ] = None,
    queue_delay: Annotated[
        int | None,
        Opt(
            "How long a request may wait for others; default 1000.",
            whole(0),
            metavar="MICROSECONDS",
            none=DEFAULT_QUEUE_DELAY_US,
            recorded="queue_delay_us",
        ),
    ] = None,
    instances: Annotated[int | None, Opt("Of the model; default 1.", none=1)] = None,
    preprocess_instances: Annotated[
        int | None, Opt("Processes that read pictures; default 1.", none=1)
    ] = None,
    threads: Annotated[
        int | None,
        Opt("Of ONNX Runtime in each instance; default per core.", whole(0), none=0),
    ] = None,
    force: Force = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Package:
    """Write a model repository for Triton: ``t2t-deploy package``.

    The model, its ensemble and the steps of that. artifact: None is the newest. triton: the
    repository's folder. queue_delay in microseconds. Raises ArtifactError where the artifact, or
    what is in the repository already, does not suit, UsageError where an option does not fit the
    artifact.

    Examples
    --------
    >>> from t2t_deploy import package_artifact
    >>> [folder.name for folder in package_artifact(made.path, triton="models").folders]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['t2t_vit_tiny_fp32', 't2t_vit_tiny_fp32_preprocess', 't2t_vit_tiny_fp32_postprocess',
     't2t_vit_tiny_fp32_images']
    """
    request = PackageRequest(
        Path(triton),
        None if artifact is None else Path(artifact),
        cast("ServingFormat | None", format),
        name,
        None if labels is None else Path(labels),
        cast("int", top),
        max_batch,
        None if accelerator is None else Accelerator(accelerator),
        cast("int", queue_delay),
        cast("int", instances),
        cast("int", preprocess_instances),
        cast("int", threads),
        force,
    )
    return _packaged(workspace_of(workspace), request, progress)


def package_values(package: Package) -> dict[str, Any]:
    """What ``package --json`` prints."""
    service = package.service
    signature = service.signature
    return {
        "repository": str(package.repository),
        "artifact": artifact_values(package.artifact),
        "model": {
            "name": service.name,
            "backend": service.format.value,
            "accelerator": service.accelerator.value,
            "instances": "on GPU" if service.on_gpu else "on CPU",
            "max_batch_size": service.batching.max_size,
            "preferred_batch_sizes": list(service.batching.preferred),
            "input": str(signature.image),
            "outputs": [str(spec) for spec in signature.outputs],
            "tail": signature.tail.value,
        },
        "ensemble": {
            "name": service.ensemble_name,
            "steps": [service.preprocess_name, service.name, service.postprocess_name],
            "top": service.top_count,
            "labels": service.labels is not None,
        },
        "folders": [str(folder) for folder in package.folders],
        "notes": list(package.notes),
    }


def _packaged(workspace: Workspace, request: PackageRequest, progress: Progress) -> Package:
    artifact = _artifact(workspace, request, progress)
    manifest = artifact.manifest
    serving_format = choose_format(artifact.kind, request.format)
    signature = _signature(artifact)
    profiles = _profiles(artifact)
    accelerator = choose_accelerator(
        serving_format,
        request.accelerator,
        None if manifest is None else Target(manifest.target),
        None if manifest is None else manifest.precision,
        dynamic_ranges=manifest is not None and manifest.dynamic_ranges,
    )
    service = Service(
        name=_name(artifact, request.name),
        format=serving_format,
        signature=signature,
        batching=choose_batching(
            artifact.path, signature, serving_format, profiles, request.max_batch
        ),
        accelerator=accelerator,
        precision=None if manifest is None else manifest.precision,
        profiles=len(profiles),
        labels=None if request.labels is None else _labels(request.labels, signature),
        top=request.top,
        queue_delay_us=request.queue_delay_us,
        instances=request.instances,
        preprocess_instances=request.preprocess_instances,
        threads=request.threads,
    )
    replaced = check_folders(request.repository, service_names(service))
    notes = _notes(artifact, service)
    if replaced:
        notes.append(f"replaced {', '.join(replaced)}")
    progress.step(f"packaging {artifact.path.name} as {service.name}")
    about = {
        "artifact": {
            "file": artifact.path.name,
            "sha256": None if manifest is None else manifest.sha256,
        },
        "format": serving_format.value,
    }
    beside = manifest_path_for(artifact.path) if manifest is not None else None
    folders = service_folders(service, artifact.path, beside, about)
    written = write_folders(request.repository, folders)
    for note in notes:
        progress.note(note)
    return Package(artifact, service, request.repository, tuple(written), tuple(notes))


def _artifact(workspace: Workspace, request: PackageRequest, progress: Progress) -> Artifact:
    if request.artifact is not None:
        return workspace.open(request.artifact, force=request.force)
    kind = "engine" if request.format is ServingFormat.TENSORRT else "onnx"
    if request.format is None:
        everything = workspace.artifacts()
        usable = [one for one in everything if request.force or not one.require_manifest().failed]
        kind = usable[-1].kind if usable else kind
    found = workspace.newest(kind, force=request.force)
    progress.note(f"taking the newest artifact, {found.path.name}")
    return workspace.checked(found, force=request.force)


def _signature(artifact: Artifact) -> Signature:
    manifest = artifact.manifest
    if artifact.kind == "onnx":
        details = {} if manifest is None else manifest.details
        return signature_from_onnx(artifact.path, details, _classes(manifest))
    known = _known_engine(artifact)
    engine = known.details["engine"]
    if "inputs" in engine:
        tensors = engine["inputs"], engine["outputs"]
    else:  # made before engines' tensors were noted: a picture in, logits out
        size, classes = known.config["image_size"], known.config["num_classes"]
        picture = {"name": INPUT_NAME, "dtype": "float32", "shape": [known.batch, 3, size, size]}
        logits = {"name": OUTPUT_NAME, "dtype": "float32", "shape": [known.batch, classes]}
        tensors = [picture], [logits]
    return signature_from_tensors(artifact.path, *tensors, known.details, _classes(known))


def _known_engine(artifact: Artifact) -> Manifest:
    if artifact.manifest is None:
        raise ArtifactError(
            f"{artifact.path} has no manifest, and an engine does not tell what it takes without "
            "being loaded: package one that t2t-deploy build-trt made"
        )
    return artifact.manifest


def _profiles(artifact: Artifact) -> tuple[ShapeProfile, ...]:
    if artifact.kind != "engine":
        return ()
    manifest = _known_engine(artifact)
    if manifest.batch is not None:
        return ()
    return manifest.engine_profiles


def _classes(manifest: Manifest | None) -> int | None:
    found = None if manifest is None else manifest.config.get("num_classes")
    return None if found is None else int(found)


def _name(artifact: Artifact, asked: str | None) -> str:
    if asked is not None:
        if not _NAME.fullmatch(asked):
            raise UsageError(
                f"--name is {asked!r}; expected letters, digits, '_', '-' and '.', beginning with "
                "a letter or digit"
            )
        return asked
    manifest = artifact.manifest
    if manifest is None:
        return _plain(artifact.path.stem)
    return _plain(f"t2t_vit_{manifest.variant}_{manifest.precision.value}")


def _plain(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", text).lstrip("_-")[:60]
    return name or "model"


def _labels(path: Path, signature: Signature) -> tuple[str, ...]:
    try:
        lines = read_small_file(path, MAX_LABELS_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        why = "it is not UTF-8" if isinstance(err, UnicodeDecodeError) else why
        raise UsageError(f"cannot read the labels {path}: {why}; give a text file") from err
    labels = tuple(line.strip() for line in lines)
    if signature.classes is not None and len(labels) != signature.classes:
        raise UsageError(
            f"{path} has {counted(len(labels), 'line')} and the model {signature.classes} classes; "
            "give one label a line, in the order of the classes"
        )
    if "" in labels:
        raise UsageError(f"line {labels.index('') + 1} of {path} is empty; give one label a line")
    return labels


def _notes(artifact: Artifact, service: Service) -> list[str]:
    manifest = artifact.manifest
    notes = []
    if service.format is ServingFormat.TENSORRT and manifest is not None:
        engine = manifest.details["engine"]
        version = f"{engine['backend']} {engine['backend_version']}"
        if engine["backend"] == BACKEND_RTX:
            notes.append(
                f"{artifact.path.name} was built by {version}: Triton's tensorrt backend loads "
                "engines of TensorRT alone; on the server's GPU build it again with --backend "
                "tensorrt, in the release that the server has"
            )
        else:
            notes.append(f"the server must have TensorRT {engine['backend_version']}")
    signed = (
        manifest is not None
        and manifest.precision is Precision.INT8
        and manifest.target != Target.CPU.value
    )
    on_cpu = service.accelerator is Accelerator.NONE
    if service.format is ServingFormat.ONNXRUNTIME and on_cpu and signed:
        notes.append(
            f"{artifact.path.name} has signed codes, which Triton's ONNX Runtime saturates on x86 "
            "CPUs without VNNI: serve it with --format python, or quantize --target cpu"
        )
    return notes
