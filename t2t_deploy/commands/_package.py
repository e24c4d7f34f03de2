"""An artifact as a model repository of Triton Inference Server, or as a page for browsers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._files import file_sha256
from t2t_deploy._limits import read_limits
from t2t_deploy._options import (
    FILE,
    FOLDER,
    PATH,
    TEXT,
    AnyPath,
    Kind,
    Opt,
    Role,
    choice,
    command,
    parameters,
    whole,
)
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import (
    ArtifactFile,
    Force,
    artifact_values,
    named_or_newest,
    workspace_of,
)
from t2t_deploy.commands._class_names import class_names_of, note_repeated
from t2t_deploy.commands._package_web import check_page, check_web_model, web_model
from t2t_deploy.commands._predict import ActivationName, note_one_output, num_classes_of
from t2t_deploy.engine import BACKEND_RTX
from t2t_deploy.errors import ArtifactError, UsageError, counted
from t2t_deploy.images import SUFFIXES
from t2t_deploy.pictures import labels_from_file
from t2t_deploy.serving import Signature
from t2t_deploy.serving.triton import (
    Accelerator,
    Service,
    ServingFormat,
    check_folders,
    choose_accelerator,
    choose_batching,
    choose_format,
    service_folders,
    signature_from_onnx,
    signature_from_tensors,
    write_folders,
)
from t2t_deploy.serving.web import (
    DEFAULT_FOLDER,
    LARGE_BYTES,
    WebModel,
    WebPage,
    page_files,
    read_runtime,
)
from t2t_deploy.types import (
    INPUT_NAME,
    OUTPUT_NAME,
    TOLERANCES,
    Activation,
    Precision,
    Tail,
    Target,
    TensorSpec,
)
from t2t_deploy.workspace import Artifact, Manifest, Workspace, manifest_path_for

DEFAULT_TOP = 5
DEFAULT_QUEUE_DELAY_US = 1000
_OF_WEB = ("second", "ort_web", "examples")
_OF_BOTH = ("artifact", "triton", "web", "name", "labels", "force")


def _name_of_model(value: Any) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", TEXT.read(value)):
        raise ValueError
    return str(value)


_NAME = Kind(
    "letters, digits, '_', '-' and '.', beginning with a letter or digit",
    _name_of_model,
    metavar="TEXT",
)


@dataclass(frozen=True, slots=True)
class Package:
    """What was made. folders: of the repository. notes: what the user should know of it."""

    artifact: Artifact
    service: Service
    repository: Path
    folders: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WebPackage:
    """A page that was made. folder: of its files. notes: what the user should know of it."""

    artifact: Artifact
    page: WebPage
    folder: Path
    notes: tuple[str, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        """Those that were written."""
        return (self.folder,)


@command
def package_artifact(
    artifact: ArtifactFile = None,
    second: ArtifactFile = None,
    *,
    triton: Annotated[
        AnyPath | None,
        Opt("Folder of models: the server's --model-repository.", FOLDER, Role.WRITES),
    ] = None,
    web: Annotated[
        AnyPath | None,
        Opt("Folder of a page that classifies in the browser, instead.", FOLDER, Role.WRITES),
    ] = None,
    ort_web: Annotated[
        AnyPath | None,
        Opt(
            "The page's runtime, onnxruntime-web's npm package; default that of make web-runtime.",
            PATH,
            Role.READS,
            metavar="DIR|TGZ",
            recorded="",  # a recipe's step knows the files of it that a page has
        ),
    ] = None,
    examples: Annotated[
        AnyPath | None,
        Opt("Pictures that the page offers; default none.", FOLDER, Role.READS, later=True),
    ] = None,
    format: Annotated[
        str | ServingFormat | None,
        Opt(
            "Triton's backend; auto: tensorrt for engines, onnxruntime for ONNX files.",
            choice("auto", *ServingFormat, of=ServingFormat, absent="auto"),
            shown="auto",
        ),
    ] = None,
    name: Annotated[
        str | None, Opt("Of the model; default t2t_vit_VARIANT_PRECISION.", _NAME)
    ] = None,
    labels: Annotated[
        AnyPath | None,
        Opt("Names of the classes; default the artifact's own.", FILE, Role.READS, metavar="FILE"),
    ] = None,
    activation: ActivationName = None,
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
        Opt(
            "Of ONNX Runtime in each instance; default its share of the processors.",
            whole(0),
            none=0,
        ),
    ] = None,
    force: Force = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Package | WebPackage:
    """Write a model repository for Triton, or a page for browsers: ``t2t-deploy package``.

    The model, its ensemble and the steps of that; or the model, a page around it and its runtime.
    artifact: None is the newest. second: the same model in another precision, for a page that takes
    the faster one where it is shown. triton: the repository's folder; web: the page's; exactly one
    of them. queue_delay in microseconds. Raises ArtifactError where the artifact, or what is in the
    folder already, does not suit, UsageError where an option does not fit the artifact,
    CheckFailed where the page's model does not compute what the artifact does.

    Examples
    --------
    >>> from t2t_deploy import package_artifact
    >>> [folder.name for folder in package_artifact(made.path, triton="models").folders]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['t2t_vit_tiny_fp32', 't2t_vit_tiny_fp32_preprocess', 't2t_vit_tiny_fp32_postprocess',
     't2t_vit_tiny_fp32_images']
    """
    workspace = workspace_of(workspace)
    check_package_options(locals())
    source = _source(workspace, artifact, format, progress, force=force, web=web is not None)
    if web is not None:
        with workspace.scratch() as scratch:
            sources = [source]
            if second is not None:
                sources.append(workspace.open(Path(second), force=force))
                _check_same_model(*sources)
            given = Path(web), ort_web, examples, name, labels
            return _web_package(sources, *given, scratch, progress)
    assert triton is not None
    manifest = source.manifest
    chosen = choose_format(source.kind, cast("ServingFormat | None", format))
    signature = _signature(source)
    # an engine of a fixed batch has none
    profiles = (
        manifest.engine.shape_profiles
        if manifest is not None and source.kind == "engine" and manifest.batch is None
        else ()
    )
    service = Service(
        name=_name(source, name),
        format=chosen,
        signature=signature,
        batching=choose_batching(source.path, signature.batch, chosen, profiles, max_batch),
        accelerator=choose_accelerator(
            chosen,
            cast("Accelerator | None", accelerator),
            None if manifest is None else Target(manifest.target),
            None if manifest is None else manifest.precision,
            dynamic_ranges=manifest is not None and manifest.quantization.mode == "dynamic",
        ),
        precision=None if manifest is None else manifest.precision,
        profiles=len(profiles),
        labels=_labels(source, labels, signature, progress),
        activation=signature.activation(None if activation is None else Activation(activation)),
        top=cast("int", top),
        queue_delay_us=cast("int", queue_delay),
        instances=cast("int", instances),
        preprocess_instances=cast("int", preprocess_instances),
        threads=cast("int", threads),
    )
    notes = _notes(source, service)
    if service.instances > 1 and not service.threads and not service.on_gpu:
        service, note = _shared_out(service)
        notes.append(note)
    note_one_output(signature, activation, progress)
    repository = Path(triton)
    replaced = check_folders(repository, service.folder_names)
    if replaced:
        notes.append(f"replaced {', '.join(replaced)}")
    progress.step(f"packaging {source.path.name} as {service.name}")
    about = _about(source, chosen.value)
    beside = manifest_path_for(source.path) if manifest is not None else None
    folders = write_folders(repository, service_folders(service, source.path, beside), about)
    for note in notes:
        progress.note(note)
    return Package(source, service, repository, tuple(folders), tuple(notes))


def check_package_options(values: Mapping[str, Any]) -> None:
    """Raise UsageError unless exactly one kind of package is asked for, with options of its own."""
    web = values["web"] is not None
    if web == (values["triton"] is not None):
        found = "both are given" if web else "neither is given"
        raise UsageError(
            f"package takes --triton DIR (a model repository) or --web DIR (a page); {found}"
        )
    for name, parameter in parameters(package_artifact).items():
        own = name in _OF_BOTH or (name in _OF_WEB) == web
        if not own and values[name] != parameter.read(parameter.default):
            option = "a second file" if parameter.positional else f"--{parameter.option}"
            raise UsageError(f"{option} is for --{'triton' if web else 'web'}; leave it out")


def _check_same_model(first: Artifact, second: Artifact) -> None:
    """Raise ArtifactError unless a page may take either of both."""
    known = [
        (one.weights_sha256, dict(one.config), one.preparation)
        for one in (first.manifest, second.manifest)
        if one is not None
    ]
    if file_sha256(first.path) == file_sha256(second.path):
        reason = "is the same file as"
    elif known[1:] and known[0] != known[1]:
        reason = "is of another model than"
    elif num_classes_of(first) != num_classes_of(second):
        reason = "has another number of classes than"
    else:
        return
    raise ArtifactError(
        f"{second.path.name} {reason} {first.path.name}; a page takes one model, in one "
        "precision or two"
    )


def _web_package(
    sources: Sequence[Artifact],
    folder: Path,
    ort_web: AnyPath | None,
    examples: AnyPath | None,
    name: str | None,
    labels: AnyPath | None,
    scratch: Path,
    progress: Progress,
) -> WebPackage:
    notes: list[str] = []
    signatures = [_web_signature(source) for source in sources]
    source, signature = sources[0], signatures[0]
    parent, own = folder.absolute().parent, folder.absolute().name
    replaced = check_folders(parent, [own], served=False)
    runtime = read_runtime(None if ort_web is None else Path(ort_web))
    if ort_web is None:
        notes.append(f"the page runs onnxruntime-web {runtime.version}, of {DEFAULT_FOLDER}")
    pictures = () if examples is None else _pictures_in(Path(examples))
    progress.step(f"packaging {' and '.join(one.path.name for one in sources)} as a page")
    models = [_web_model(one, ends, scratch) for one, ends in zip(sources, signatures, strict=True)]
    page = WebPage(
        name=_name(source, name, precise=len(sources) == 1),
        models=tuple(models),
        labels=_labels(source, labels, signature, progress),
        runtime=runtime,
        examples=pictures,
    )
    about = _about(source, "web")
    write_folders(parent, {own: page_files(page)}, about, served=False)
    if any(model.derived for model in models):
        notes.append("pixels as input and the best classes as outputs were added for the page")
    size = sum(model.size_bytes for model in models)
    if size > LARGE_BYTES:
        notes.append(
            f"the page loads {size / 1e6:.0f} MB of model, slow over a network: quantize makes a "
            "quarter of an fp32 one"
        )
    if signature.preparation.bits is not None:
        notes.append("16-bit greys are read as 16 bits: browsers do not say how many are used")
    notes += [f"replaced {', '.join(replaced)}"] if replaced else []
    for note in notes:
        progress.note(note)
    return WebPackage(source, page, folder, tuple(notes))


def _web_signature(source: Artifact) -> Signature:
    precision = None if source.manifest is None else source.manifest.precision
    if source.kind != "onnx":
        check_page(source.path.name, source.kind, precision, Tail.LOGITS, None)
    signature = _signature(source)
    check_web_model(source.path, signature, precision)
    return signature


def _web_model(source: Artifact, signature: Signature, scratch: Path) -> WebModel:
    precision = None if source.manifest is None else source.manifest.precision
    folder = Path(tempfile.mkdtemp(dir=scratch))
    file, shown = web_model(source.path, signature, precision, folder)
    return WebModel(
        file=file,
        derived=file != source.path,
        size_bytes=file.stat().st_size,
        signature=shown,
        precision=None if precision is None else precision.value,
        tolerance=None if precision is None else TOLERANCES[precision].rel_l2,
    )


def _about(source: Artifact, form: str) -> dict[str, Any]:
    """What the note in a folder says of its artifact."""
    sha256 = None if source.manifest is None else source.manifest.sha256
    return {"artifact": {"file": source.path.name, "sha256": sha256}, "format": form}


def _pictures_in(folder: Path) -> tuple[Path, ...]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as err:
        raise UsageError(f"cannot read the examples in {folder}: {err.strerror}") from err
    if not found:
        raise UsageError(f"{folder} has no pictures for --examples; leave it out")
    return tuple(found)


def package_values(package: Package | WebPackage) -> dict[str, Any]:
    """What ``package --json`` prints."""
    if isinstance(package, WebPackage):
        page = package.page
        models = [
            {
                "file": file,
                "precision": model.precision,
                "size_bytes": model.size_bytes,
                "derived": model.derived,
            }
            for file, model in page.files.items()
        ]
        return {
            "artifact": artifact_values(package.artifact),
            "web": {
                "folder": str(package.folder),
                "name": page.name,
                # of the first, as scripts knew them when a page had one
                **{key: value for key, value in models[0].items() if key != "file"},
                "models": models,
                "runtime": page.runtime.version,
                "labels": page.labels is not None,
                "examples": len(page.examples),
            },
            "folders": [str(package.folder)],
            "notes": list(package.notes),
        }
    service = package.service
    signature = service.signature
    sigmoid = {"activation": service.activation.value} if service.gives_sigmoid else {}
    return {
        "repository": str(package.repository),
        "artifact": artifact_values(package.artifact),
        "model": {
            "name": service.name,
            "backend": service.format.value,
            "accelerator": service.accelerator.value,
            "instances": "on GPU" if service.on_gpu else "on CPU",
            "threads": service.threads,
            "max_batch_size": service.batching.max_size,
            "preferred_batch_sizes": list(service.batching.preferred),
            "input": str(signature.image),
            "outputs": [str(spec) for spec in signature.outputs],
            "tail": signature.graph_io.tail.value,
        },
        "ensemble": {
            "name": service.ensemble_name,
            "steps": [
                service.preprocess_name,
                service.name,
                *([service.postprocess_name] if service.classifies else []),
            ],
            "top": service.top_count if service.classifies else None,
            "labels": service.labels is not None,
            **sigmoid,
        },
        "folders": [str(folder) for folder in package.folders],
        "notes": list(package.notes),
    }


def _source(
    workspace: Workspace,
    path: AnyPath | None,
    asked: str | ServingFormat | None,
    progress: Progress,
    *,
    force: bool,
    web: bool,
) -> Artifact:
    """The artifact that was named, or the newest of the format asked for."""
    kind = "engine" if asked is ServingFormat.TENSORRT else "onnx"
    if path is None and asked is None and not web:
        usable = [a for a in workspace.artifacts() if force or not a.require_manifest().failed]
        kind = usable[-1].kind if usable else kind
    taking = "taking the newest artifact"
    return named_or_newest(workspace, path, kind, taking, progress, force=force)


def _signature(artifact: Artifact) -> Signature:
    manifest = artifact.manifest
    classes = num_classes_of(artifact)
    if manifest is None:
        if artifact.kind == "onnx":
            return signature_from_onnx(artifact.path, {}, classes)
        raise ArtifactError(
            f"{artifact.path} has no manifest, and an engine does not tell what it takes without "
            "being loaded: package one that t2t-deploy build-trt made"
        )
    known = manifest.details, classes, manifest.preparation
    if artifact.kind == "onnx":
        return signature_from_onnx(artifact.path, *known)
    engine = manifest.engine
    if engine.inputs is not None and engine.outputs is not None:
        return signature_from_tensors(artifact.path, engine.inputs, engine.outputs, *known)
    # made before engines' tensors were noted: an image in, logits out
    batch = manifest.batch
    image = TensorSpec(INPUT_NAME, "float32", (batch, *manifest.preparation.input_shape))
    logits = TensorSpec(OUTPUT_NAME, "float32", (batch, classes))
    return signature_from_tensors(artifact.path, [image], [logits], *known)


def _name(artifact: Artifact, asked: str | None, *, precise: bool = True) -> str:
    if asked is not None:
        return asked
    manifest = artifact.manifest
    text = artifact.path.stem
    if manifest is not None:
        text = f"t2t_vit_{manifest.variant}" + precise * f"_{manifest.precision.value}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", text).lstrip("_-")[:60] or "model"


def _labels(
    artifact: Artifact, file: AnyPath | None, signature: Signature, progress: Progress
) -> tuple[str, ...] | None:
    """Those of a file, else the artifact's own; None where neither has any."""
    labels, source = class_names_of(artifact), artifact.path
    if file is not None:
        source = Path(file)
        try:
            labels = labels_from_file(source, signature.classes)
        except ArtifactError as err:
            raise UsageError(str(err)) from err
        note_repeated(labels, progress)
    elif labels is None or len(labels) != signature.classes:
        return None
    broken = [label for label in labels if label.splitlines() != [label]]
    if broken:  # the server's own reader would end a line there
        raise UsageError(f"the label {broken[0]!r} of {source} has a line break; leave it out")
    return labels


def _shared_out(service: Service) -> tuple[Service, str]:
    """The service whose instances on the CPU share the processors, and what that means."""
    count = service.instances
    if service.format is ServingFormat.PYTHON:
        return service, (
            f"each of {count} instances computes with its share of the processors that the server "
            "may use, at least 1 thread; --threads N sets it"
        )
    if service.accelerator is not Accelerator.NONE:
        return service, (
            f"{count} instances are not given a share of the processors: --threads does not reach "
            f"Triton's {service.accelerator.value} accelerator, which takes what it finds"
        )
    limits = read_limits()
    threads = limits.share(count)
    return replace(service, threads=threads), (
        f"each of {count} instances computes with {counted(threads, 'thread')}, a share of this "
        f"machine's {counted(limits.processors, 'processor')}; for a server of another size set "
        "--threads N"
    )


def _notes(artifact: Artifact, service: Service) -> list[str]:
    manifest = artifact.manifest
    notes = []
    if service.format is ServingFormat.TENSORRT and manifest is not None:
        engine = manifest.engine
        version = f"{engine.backend} {engine.backend_version}"
        if engine.backend == BACKEND_RTX:
            notes.append(
                f"{artifact.path.name} was built by {version}: Triton's tensorrt backend loads "
                "engines of TensorRT alone; on the server's GPU build it again with --backend "
                "tensorrt, in the release that the server has"
            )
        else:
            notes.append(f"the server must have TensorRT {engine.backend_version}")
    if manifest is not None and manifest.base is not None:
        notes.append(
            f"{artifact.path.name} was made for {manifest.base.value} around its 8-bit products; "
            "its tensors are float32, and the server chooses what it computes them in"
        )
    signed = manifest is not None and _saturates(manifest)
    on_cpu = service.accelerator is Accelerator.NONE
    if service.format is ServingFormat.ONNXRUNTIME and on_cpu and signed:
        notes.append(
            f"{artifact.path.name} has signed codes, which Triton's ONNX Runtime saturates on x86 "
            "CPUs without VNNI: serve it with --format python, or quantize --target cpu --codes "
            "exact"
        )
    return notes


def _saturates(manifest: Manifest) -> bool:
    """Whether an int8 graph has signed weights, which x86 without VNNI may saturate."""
    if manifest.precision is not Precision.INT8:
        return False
    # files from before `codes` were all exact for the CPU, else signed
    known = manifest.details.get("quantization") or {}
    exact = known.get("codes", "exact" if manifest.target == Target.CPU.value else "signed")
    return bool(exact != "exact")
