"""Which artifacts a command works on: those named, else all of the workspace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from t2t_deploy._files import file_sha256
from t2t_deploy._limits import read_limits
from t2t_deploy._options import PATHS, Among, AnyPath, AnyPaths, Opt, Role, choice, path_of
from t2t_deploy._progress import Progress
from t2t_deploy.engine import device_capability, engine_version
from t2t_deploy.errors import (
    ArtifactError,
    DeployError,
    EngineError,
    MisfitError,
    UnavailableError,
    counted,
)
from t2t_deploy.runtime import (
    BACKENDS,
    CPU_BACKENDS,
    DEFAULT_BACKEND,
    Session,
    SessionRequest,
    open_session,
    session_threads,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.types import TensorSpec
from t2t_deploy.workspace import BEST, Artifact, Manifest, Workspace, read_best

ArtifactFile = Annotated[AnyPath | None, Opt(role=Role.SWITCH, recipe=False)]
ArtifactFiles = Annotated[AnyPaths, Opt(kind=PATHS, role=Role.SWITCH, none=(), recipe=False)]
CpuBackend = Annotated[
    str | None,
    Opt(
        "Runtime of ONNX files; default ort-cpu.",
        choice(*CPU_BACKENDS),
        metavar="|".join(CPU_BACKENDS),
    ),
]
Force = Annotated[
    bool, Opt("Use an artifact although a check on it failed.", role=Role.SWITCH, recipe=False)
]
Trust = Annotated[
    bool,
    Opt("Load an engine without manifest: it is code, and runs.", role=Role.SWITCH, recipe=False),
]
DEFAULT_WORKSPACE = "artifacts"
_VARIABLE = "T2T_DEPLOY_WORKSPACE"


def workspace_of(given: Workspace | AnyPath | None) -> Workspace:
    """A workspace; None is that of the environment variable, else ./artifacts."""
    if isinstance(given, Workspace):
        return given
    if given is None or given == "":
        given = os.environ.get(_VARIABLE) or DEFAULT_WORKSPACE
    return Workspace(path_of(given, "workspace"))


def artifact_values(artifact: Artifact) -> dict[str, Any]:
    """The ``artifact`` object; of a foreign file its path alone."""
    manifest = artifact.manifest
    if manifest is None:
        return {"path": str(artifact.path)}
    return {
        "path": str(artifact.path),
        "sha256": manifest.sha256,
        "kind": manifest.kind,
        "variant": manifest.variant,
        "precision": manifest.precision.value,
        "target": manifest.target,
        "batch": "dynamic" if manifest.batch is None else manifest.batch,
        "image_size": manifest.config.get("image_size"),
        "num_classes": manifest.config.get("num_classes"),
        "opset": manifest.opset,
        "strategies": manifest.strategies,
        "size_bytes": manifest.size_bytes,
    }


def of_best(
    workspace: Workspace,
    artifact: AnyPath,
    backend: str | None,
    device: int | str | None,
    progress: Progress,
) -> tuple[str | None, int | str | None]:
    """The backend and the device that were asked for; for ``@best`` else those it was picked in."""
    if str(artifact) != BEST or backend is not None:
        return backend, device
    best = read_best(workspace.root)
    progress.note(f"{BEST} is {Path(best.artifact).name}, in {best.backend}")
    return best.backend, best.device if device is None else device


def cpu_backend(
    name: str | None, workspace: Workspace, paths: Sequence[Path], progress: Progress
) -> str:
    """The runtime to compare ONNX files on.

    name: None is the default, for ``@best`` alone the one that it was picked in. Raises
    BackendError for one that cannot run here.
    """
    if name is None and len(paths) == 1:
        picked, _ = of_best(workspace, paths[0], None, None, progress)
        name = picked if picked in CPU_BACKENDS else None
    if name is None:
        return DEFAULT_BACKEND
    reason = why_not_runnable(name)
    if reason is not None:
        raise UnavailableError(f"backend {name} cannot run here: {reason}")
    return name


class Cause(Enum):
    """What keeps an artifact from being judged."""

    NO_TOOL = "no tool"
    """this machine has none for it"""
    MISFIT = "misfit"
    """the inputs or options that were given do not fit it"""
    OF_ITS_KIND = "of its kind"
    """an artifact like this is not judged so, on whatever inputs"""


@dataclass(frozen=True, slots=True)
class NotRun:
    """Why an artifact is not judged."""

    cause: Cause
    reason: str


def nothing_judged(done: str, why: Iterable[NotRun]) -> DeployError:
    """The error where nothing that was asked for could be done; done: such as ``measured``.

    That this machine has no tool is an UnavailableError only where it is the cause of all; a
    MisfitError names the other causes alone.
    """
    known = tuple(why)
    misfits = [one for one in known if one.cause is not Cause.NO_TOOL]
    reasons = "; ".join(dict.fromkeys(one.reason for one in misfits or known))
    kind = MisfitError if misfits or not known else UnavailableError
    return kind(f"nothing here can be {done}: {reasons or 'no backend takes what there is'}")


def why_not_run(artifact: Artifact, backend: str, device: int | None = None) -> str | None:
    """None where a backend that takes an artifact can run it here, else why not."""
    reason = why_not_runnable(backend, device)
    manifest = artifact.manifest
    if reason is None and manifest is not None and BACKENDS[backend].takes == "onnx":
        if manifest.quantization.mode == "dynamic":
            reason = BACKENDS[backend].why_no_dynamic_ranges
        reason = reason or why_not_in(backend, manifest.precision)
    return reason


def are_named(paths: Iterable[Path]) -> bool:
    """Whether artifacts were named one by one."""
    return bool(paths) and not isinstance(paths, Among)


def usable_artifacts(
    workspace: Workspace,
    paths: Sequence[Path],
    *,
    force: bool,
    purpose: str,
    progress: Progress,
    trust: bool = False,
) -> list[Artifact]:
    """The artifacts named, or every one of the workspace that did not fail a check.

    trust: a named engine without manifest may be loaded. Raises ArtifactError where one that is
    named failed and ``force`` is off, or nothing is left; ``purpose`` is the verb for that message.
    Raises EngineError for a named engine that may not be loaded here.
    """
    if are_named(paths):
        named = [workspace.open(path, force=force) for path in paths]
        for artifact in named:
            if artifact.kind == "engine":
                check_engine(artifact, trust=trust)
        return named
    everything = (
        workspace.artifacts() if not paths else [workspace.open(path, force=True) for path in paths]
    )
    usable = [a for a in everything if force or not a.require_manifest().failed]
    for artifact in everything:
        if artifact not in usable:
            progress.note(f"left out {artifact.path.name}: {artifact.require_manifest().failure}")
    if not usable:
        raise ArtifactError(
            f"workspace {workspace.root} has nothing to {purpose}; make an artifact first: "
            "t2t-deploy export --variant 14"
        )
    return [workspace.checked(artifact, force=True) for artifact in usable]


def named_or_newest(
    workspace: Workspace,
    path: AnyPath | None,
    kind: str,
    taking: str,
    progress: Progress,
    suits: Callable[[Manifest], bool] = lambda manifest: True,
    *,
    force: bool,
) -> Artifact:
    """The artifact that was named, or the newest of a kind that suits.

    taking: begins the note about the newest. Raises ArtifactError.
    """
    if path is not None:
        return workspace.open(Path(path), force=force)
    newest = workspace.newest(kind, suits, force=force)
    progress.note(f"{taking}, {newest.path.name}")
    return workspace.checked(newest, force=force)


def session_request(
    workspace: Workspace, artifact: Artifact, backend: str, threads: int | None, device: int | None
) -> SessionRequest:
    """How a runtime opens an artifact, or the model of its weights, whichever it takes.

    Raises ArtifactError where weights are needed and unknown.
    """
    if BACKENDS[backend].takes == "weights":
        known = artifact.require_manifest()
        return SessionRequest(backend, workspace.weights(known), threads, known.config, device)
    return SessionRequest(
        backend,
        artifact.path,
        threads,
        device=device,
        precision=None if artifact.manifest is None else artifact.manifest.precision,
        base=None if artifact.manifest is None else artifact.manifest.base,
        cache=workspace.cache(backend),
        sha256=engine_sha256(artifact),
    )


def note_session(request: SessionRequest, progress: Progress) -> None:
    """Say what was chosen for a session on the CPU.

    What a quota leaves to it, unless a number was asked for; the base of an 8-bit graph that its
    runtime does not compute.
    """
    backend, base = BACKENDS[request.backend], request.base
    if base is not None and base not in backend.float32_in:
        able = ", ".join(one.name for one in BACKENDS.values() if base in one.float32_in)
        progress.note(
            f"{backend.name} computes {request.path.name} in fp32 around its 8-bit products; "
            f"it was made for {base.value}: --backend {able}"
        )
    threads = session_threads(None)
    if request.threads is None and threads is not None and not BACKENDS[request.backend].needs_gpu:
        progress.note(
            f"computing with {counted(threads, 'thread')}: a quota of {read_limits().quota:g} "
            "processors is set here; --threads N takes another number"
        )


class TunedBatch(Session):
    """An engine's session as one of a fixed batch: the one that its first profile is tuned for."""

    def __init__(self, session: Session, batch: int) -> None:
        self.backend = session.backend
        self._session = session
        self.outputs = session.outputs
        self.inputs = tuple(
            TensorSpec(spec.name, spec.dtype, (batch, *spec.shape[1:])) for spec in session.inputs
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._session.run(feeds)

    def close(self) -> None:
        self._session.close()


def open_engine(artifact: Artifact) -> Session:
    """A session of an engine on the first device, its hash and its target checked.

    Raises EngineError, BackendError where it cannot run here, ArtifactError.
    """
    check_engine(artifact)
    manifest = artifact.require_manifest()
    session = open_session(
        SessionRequest(manifest.engine.backend, artifact.path, sha256=engine_sha256(artifact))
    )
    profiles = manifest.engine.shape_profiles
    return TunedBatch(session, profiles[0].opt) if profiles else session


_PORTABLE = "portable"
_PORTABLE_FROM = 80


def engine_sha256(artifact: Artifact) -> str | None:
    """The hash of an engine that `check_engine` let pass, for its session; None for other files.

    That of a foreign one is of the file as it is now.
    """
    if artifact.kind != "engine":
        return None
    if artifact.manifest is not None:
        return artifact.manifest.sha256
    return file_sha256(artifact.path)


def check_engine(artifact: Artifact, *, trust: bool = False) -> None:
    """Raise EngineError unless an engine, its hash checked already, may be loaded on this machine.

    trust: an engine without manifest may be loaded all the same. Whether the runtime and a device
    are here at all is not asked.
    """
    manifest = artifact.manifest
    if manifest is None:
        if not trust:
            raise EngineError(
                f"{artifact.path} has no manifest, and an engine is code that the GPU's driver "
                "runs: build it again from its ONNX file with t2t-deploy build-trt, or pass "
                "--trust if you know who made it"
            )
        return
    backend, built_with = manifest.engine.backend, manifest.engine.backend_version
    installed = engine_version(backend)
    if installed is not None and installed != built_with:
        raise EngineError(
            f"{artifact.path.name} was built with {backend} {built_with}, and {installed} is "
            "installed; an engine runs in the version that built it: build it again, or install "
            f"{built_with}"
        )
    device, targets = device_capability(), manifest.engine.sm
    if device is None or device in targets:
        return
    built_for = f"was built for SM {', '.join(targets)}"
    if targets == (_PORTABLE,):
        if int(device) >= _PORTABLE_FROM:
            return
        built_for = f"is portable from SM {_PORTABLE_FROM} on"
    raise EngineError(
        f"{artifact.path.name} {built_for}, and this machine's GPU is SM {device}: build it again "
        f"with --sm {device}"
    )
