"""Builds engines in a process of their own (`_worker`), and describes them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from t2t_deploy import errors
from t2t_deploy._child import Child, ChildError, child_environment, module_command
from t2t_deploy._codec import from_plain
from t2t_deploy.engine._choice import PORTABLE, BuilderModule, choose_builder, resolve_sms
from t2t_deploy.engine._figures import EngineFigures, figures_from_log
from t2t_deploy.engine._module import BACKEND_CLASSIC, BuilderLog, Progress
from t2t_deploy.errors import EngineError
from t2t_deploy.types import ShapeProfile, TensorSpec

_NAME = "engine builder"
WORKER_COMMAND = module_command("t2t_deploy.engine._worker")
MAX_OPTIMIZATION_LEVEL = 5
# Out of memory TensorRT-RTX 1.7.1 can hang for ever. A live build uses processor time, as measured
# without a GPU only.
STALLED_S = 120.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built; the same file and options give the same bytes.

    profiles: batch ranges; none means 1:1:32 for a free batch, the batch itself for a fixed one.
    sm: as from `parse_sm`; none means portable.
    memory_limit_mib: most scratch memory a kernel may use, in MiB; None is the builder's.
    optimization_level: 0 to 5; None is the builder's, 3.
    timing_cache: folder of measured kernel times, for TensorRT only; None keeps none.
    pin_figures: where the batch is free, build once more for the tuned batch, to get sizes.
    """

    profiles: Sequence[ShapeProfile] = ()
    sm: Sequence[str] = ()
    memory_limit_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    network_name: str = "t2t_deploy"
    pin_figures: bool = True


DEFAULT_OPTIONS = BuildOptions()


@dataclass(frozen=True, slots=True)
class BuildJob:
    """The input of one run of the builder.

    backend: name of the builder; module: of its Python module. sm: resolved, empty means portable.
    """

    onnx_path: Path
    backend: str
    module: str
    sm: tuple[str, ...]
    options: BuildOptions


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A built engine's description, without its bytes and its log.

    backend_version: of the builder. layer_macs: multiply-adds by ONNX node name, at the tuned
    batch. build_s: seconds for parsing and building. log_entries: how many the log had when the
    engine was done.
    """

    backend_version: str
    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layer_macs: Mapping[str, int]
    build_s: float
    log_entries: int


@dataclass(frozen=True, slots=True)
class EngineBuild(BuildResult):
    """A built engine with its description.

    engine: the serialized engine.
    sm: its compute capabilities, or ``("portable",)``.
    figures: of this engine, first profile.
    pinned: where the batch is free, figures of the same graph built for exactly the tuned batch of
        the first profile; None otherwise. The log of a free batch has no sizes.
    log: the builder's messages about this engine.
    """

    engine: bytes
    backend: str
    sm: tuple[str, ...]
    figures: EngineFigures
    pinned: EngineFigures | None
    log: str
    options: BuildOptions

    @property
    def sized(self) -> EngineFigures:
        """The figures with sizes at the tuned batch: this engine's, else those of ``pinned``."""
        if self.figures.moved_bytes is None and self.pinned is not None:
            return self.pinned
        return self.figures


class BuilderDiedError(EngineError):
    """The builder's process died or hung.

    log: its messages until then, and the end of its stderr.
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log

    @property
    def kind(self) -> str:
        """Callers see an EngineError."""
        return EngineError.__name__


class OutOfWorkspaceError(EngineError):
    """No kernels fit into the memory limit."""


def build_engine(
    onnx_path: Path,
    options: BuildOptions = DEFAULT_OPTIONS,
    *,
    module: BuilderModule | None = None,
    progress: Progress | None = None,
) -> EngineBuild:
    """Build a strongly typed engine.

    module: as from `choose_builder`; None chooses.
    progress: called with phase, steps done, steps in all. An exception it raises ends the build at
        once and is raised here, as is Ctrl-C.

    Raises ArtifactError for a missing file, EngineError for a graph or request that the builder
    refuses, BuilderDiedError where it crashes, is killed or hangs, BackendError for
    ``native`` without a device, MissingDependencyError, MemoryError.
    """
    chosen = choose_builder() if module is None else module
    _check_options(options)
    sm = resolve_sms(chosen.trt, options.sm)
    job = BuildJob(Path(onnx_path), chosen.backend, chosen.trt.__name__, sm, options)
    try:
        with Child(WORKER_COMMAND, child_environment(), _NAME) as child:
            built = _run(child, job, progress)
            if options.pin_figures and built.figures.moved_bytes is None:
                opt = built.profiles[0].opt
                only = _with(job, profiles=(ShapeProfile(opt, opt, opt),))
                built = replace(built, pinned=_run(child, only, progress).figures)
    except OutOfWorkspaceError as err:
        raise EngineError(_memory_advice(job, progress)) from err
    return built


def _with(job: BuildJob, **changes: Any) -> BuildJob:
    return replace(job, options=replace(job.options, **changes))


def _memory_advice(job: BuildJob, progress: Progress | None) -> str:
    """The message for a memory limit that is too low, with one that suffices."""
    with Child(WORKER_COMMAND, child_environment(), _NAME) as child:
        free = _run(child, _with(job, memory_limit_mib=None), progress)
    needed = -(-free.figures.scratch_bytes // _MIB)
    largest = max(profile.max for profile in free.profiles)
    return (
        f"no kernels fit into {job.options.memory_limit_mib} MiB of scratch memory; without limit "
        f"they take {needed} MiB at batch {largest}: set memory-limit to {needed} (less may work) "
        "or lower max-batch"
    )


def _run(child: Child, job: BuildJob, progress: Progress | None) -> EngineBuild:
    """Run one job in a builder's process. Raises as `build_engine`."""
    log = BuilderLog()
    try:
        child.send({"job": job, "progress": progress is not None})
        while True:
            message = child.next_message(stalled_s=STALLED_S)
            match message.values:
                case {"log": [severity, text]}:
                    log.add(severity, text)
                case {"progress": [phase, done, steps]} if progress is not None:
                    progress(phase, done, steps)
                case {"error": kind, "message": text}:
                    raise _error(kind, text)
                case {"built": values}:
                    result = from_plain(BuildResult, values)
                    break
                case other:
                    raise RuntimeError(f"unexpected message of the engine builder: {other!r}")
    except ChildError as err:
        targets = ", ".join(job.sm) or PORTABLE[0]
        raise BuilderDiedError(
            f"{err.gone} while it built {errors.shown_path(job.onnx_path)} for {targets}; "
            "free memory and retry, or change the sm targets, the precision or max-batch",
            f"{log.text}{err}\n",
        ) from err
    log.entries = log.entries[: result.log_entries]
    figures = figures_from_log(log.text, result.layer_macs, message.payload)
    return EngineBuild(
        **{field.name: getattr(result, field.name) for field in fields(result)},
        engine=message.payload,
        backend=job.backend,
        sm=job.sm or PORTABLE,
        figures=figures,
        pinned=None,
        log=log.text,
        options=job.options,
    )


def _error(kind: str, text: str) -> Exception:
    """The exception that the builder's process raised."""
    for special in (OutOfWorkspaceError, MemoryError):
        if kind == special.__name__:
            return special(text)
    error = getattr(errors, kind, None) if kind else None
    if isinstance(error, type) and issubclass(error, errors.DeployError):
        return error(text)
    return RuntimeError(f"in the engine builder's process:\n{text}")


def _check_options(options: BuildOptions) -> None:
    limit, level = options.memory_limit_mib, options.optimization_level
    if limit is not None and limit < 1:
        raise EngineError(
            f"memory limit is {limit} MiB; expected at least 1: leave it out to set none"
        )
    if level is not None and not 0 <= level <= MAX_OPTIMIZATION_LEVEL:
        raise EngineError(
            f"optimisation level is {level}; expected 0 (fastest to build) to "
            f"{MAX_OPTIMIZATION_LEVEL} (the builder's default is 3)"
        )


def trtexec_line(build: EngineBuild, onnx_path: Path, engine_path: Path) -> str:
    """The shell command of NVIDIA's tool that builds the same engine.

    ``tensorrt_rtx`` comes with TensorRT-RTX, whose graphs are always strongly typed, ``trtexec``
    with TensorRT.
    """
    classic = build.backend == BACKEND_CLASSIC
    words = [
        *(("trtexec", "--stronglyTyped") if classic else ("tensorrt_rtx",)),
        f"--onnx={onnx_path}",
        f"--saveEngine={engine_path}",
        "--skipInference",
        "--profilingVerbosity=detailed",
        "--maxAuxStreams=0",
        "--noTF32",
    ]
    if build.options.memory_limit_mib is not None:
        words.append(f"--memPoolSize=workspace:{build.options.memory_limit_mib}")
    if build.options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={build.options.optimization_level}")
    if classic and build.sm == PORTABLE:
        words.append("--hardwareCompatibilityLevel=ampere+")
    if not classic and build.sm != PORTABLE:
        words.append(f"--computeCapabilities={','.join(build.sm)}")
    free = [spec for spec in build.inputs if spec.shape[:1] == (None,)]
    for index, profile in enumerate(build.profiles if free else ()):
        if len(build.profiles) > 1:
            words.append(f"--profile={index}")
        for option, batch in zip(("min", "opt", "max"), astuple(profile), strict=True):
            sizes = ((spec.name, "x".join(map(str, (batch, *spec.shape[1:])))) for spec in free)
            words.append(f"--{option}Shapes={','.join(map(':'.join, sizes))}")
    return shlex.join(words)
