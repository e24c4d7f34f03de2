"""Builds engines with TensorRT-RTX on a machine with or without a GPU, and says what is in them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy.errors import BackendError, EngineError
from t2t_deploy.runtime._engine_device import device_capability
from t2t_deploy.runtime._engine_figures import EngineFigures, figures_from_log
from t2t_deploy.runtime._trt_module import (
    BACKEND_RTX,
    NATIVE,
    PORTABLE,
    BuilderLog,
    Cancel,
    Progress,
    check_sms,
    load_rtx,
    new_logger,
    new_monitor,
    run_cancellable,
)
from t2t_deploy.runtime._trt_network import (
    add_profiles,
    check_turing,
    layer_macs,
    parse_network,
    resolve_profiles,
    tensor_specs,
)
from t2t_deploy.types import ShapeProfile, TensorSpec

DEFAULT_NETWORK_NAME = "t2t_deploy"
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """A built engine and what is known about it.

    engine: the serialized engine, to be written as it is.
    sm: compute capabilities it is built for, or ``("portable",)``.
    figures: of this engine, first profile.
    pinned: where the batch is free, figures of the same graph built for exactly the tuned batch of
        the first profile; None otherwise. The log of a free batch does not tell sizes.
    build_s: seconds for parsing and building this engine.
    log: everything the builder said about this engine.
    """

    engine: bytes
    backend: str
    backend_version: str
    sm: tuple[str, ...]
    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    figures: EngineFigures
    pinned: EngineFigures | None
    build_s: float
    log: str
    network_name: str

    @property
    def moved_bytes(self) -> int | None:
        """Bytes moved between kernels at the tuned batch: this engine's, else its pinned twin's."""
        if self.figures.moved_bytes is None and self.pinned is not None:
            return self.pinned.moved_bytes
        return self.figures.moved_bytes


@dataclass(frozen=True, slots=True)
class _Order:
    """What one run of the builder is asked for; ``sm`` empty means portable."""

    onnx_path: Path
    profiles: tuple[ShapeProfile, ...]
    sm: tuple[str, ...]
    memory_limit_mib: int | None
    network_name: str


@dataclass(frozen=True, slots=True)
class _Built:
    engine: bytes
    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    figures: EngineFigures
    build_s: float
    log: str


def build_engine(
    onnx_path: Path,
    *,
    profiles: Sequence[ShapeProfile] = (),
    sm: Sequence[str] = (),
    memory_limit_mib: int | None = None,
    network_name: str = DEFAULT_NETWORK_NAME,
    progress: Progress | None = None,
    pin_figures: bool = True,
) -> EngineBuild:
    """Build a strongly typed engine; the same file and options give the same bytes.

    profiles: batch ranges; none means 1:1:32 for a free batch, the batch itself for a fixed one.
    sm: as from `parse_sm`; none means portable.
    memory_limit_mib: most scratch memory a kernel may use, in MiB; None leaves the builder's.
    progress: called with phase, steps done, steps in all, on another thread. An exception it raises
        cancels the build and is raised here, as is Ctrl-C.
    pin_figures: where the batch is free, build once more for the tuned batch alone, to know sizes.

    Raises ArtifactError for a missing file, EngineError for a graph or request that the builder
    refuses, BackendError for ``native`` without a device, MissingDependencyError.
    """
    trt = load_rtx()
    order = _Order(
        Path(onnx_path),
        tuple(profiles),
        _targets(trt, sm),
        _checked_limit(memory_limit_mib),
        network_name,
    )
    cancel = Cancel()
    built = run_cancellable(lambda: _build(trt, order, progress, cancel), cancel)
    pinned = None
    if pin_figures and built.figures.moved_bytes is None:
        opt = built.profiles[0].opt
        twin = _Order(
            order.onnx_path,
            (ShapeProfile(opt, opt, opt),),
            order.sm,
            order.memory_limit_mib,
            network_name,
        )
        pinned = run_cancellable(lambda: _build(trt, twin, progress, cancel), cancel).figures
    return EngineBuild(
        engine=built.engine,
        backend=BACKEND_RTX,
        backend_version=str(trt.__version__),
        sm=order.sm or PORTABLE,
        profiles=built.profiles,
        inputs=built.inputs,
        outputs=built.outputs,
        figures=built.figures,
        pinned=pinned,
        build_s=built.build_s,
        log=built.log,
        network_name=network_name,
    )


def _targets(trt: Any, sm: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities to build for; none of them means portable."""
    asked = tuple(sm)
    if asked in ((), PORTABLE):
        return ()
    if asked == NATIVE:
        device = device_capability()
        if device is None:
            raise BackendError(
                "'native' builds for this machine's GPU and no CUDA device was found: name the "
                "targets (--sm 86,89) or build a portable engine (--sm portable)"
            )
        asked = (device,)
    # another order or a repetition must not make another engine
    targets = tuple(sorted(set(asked), key=lambda name: (len(name), name)))
    check_sms(trt, targets)
    return targets


def _checked_limit(memory_limit_mib: int | None) -> int | None:
    if memory_limit_mib is not None and memory_limit_mib < 1:
        raise EngineError(
            f"memory limit is {memory_limit_mib} MiB; expected at least 1: leave it out to set none"
        )
    return memory_limit_mib


def _build(trt: Any, order: _Order, progress: Progress | None, cancel: Cancel) -> _Built:
    started_ns = time.perf_counter_ns()
    log = BuilderLog()
    logger = new_logger(trt, log)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, logger, order.onnx_path, order.network_name)
    inputs = tensor_specs(network, outputs=False)
    outputs = tensor_specs(network, outputs=True)
    profiles = resolve_profiles(inputs, order.profiles)
    check_turing(trt, network, order.sm)
    macs = layer_macs(trt, network, profiles[0].opt)
    config = _config(trt, builder, order)
    add_profiles(builder, config, inputs, profiles)
    # bound to a name: the bindings do not keep the monitor alive
    monitor = new_monitor(trt, progress, cancel)
    config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        why = log.errors() or "it gives no reason"
        raise EngineError(f"the builder made no engine from {order.onnx_path}: {why}")
    seconds = (time.perf_counter_ns() - started_ns) / 1e9
    figures = figures_from_log(log.text, macs)
    return _Built(bytes(serialized), profiles, inputs, outputs, figures, seconds, log.text)


def _config(trt: Any, builder: Any, order: _Order) -> Any:
    config = builder.create_builder_config()
    # the log then lists every kernel: the figures come from there
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # no helper streams: their signal and wait kernels and memory buy nothing at these sizes
    config.max_aux_streams = 0
    if order.memory_limit_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.memory_limit_mib * _MIB)
    if order.sm:
        config.num_compute_capabilities = len(order.sm)
        for index, name in enumerate(order.sm):
            config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{name}"], index)
    return config


def trtexec_line(build: EngineBuild, onnx_path: Path, engine_path: Path) -> str:
    """The command of NVIDIA's ``tensorrt_rtx`` tool that builds the same engine, as shell text."""
    words = [
        "tensorrt_rtx",
        f"--onnx={onnx_path}",
        f"--saveEngine={engine_path}",
        "--skipInference",
        "--profilingVerbosity=detailed",
        "--maxAuxStreams=0",
    ]
    if build.sm != PORTABLE:
        words.append(f"--computeCapabilities={','.join(build.sm)}")
    free = [spec for spec in build.inputs if spec.shape[:1] == (None,)]
    for index, profile in enumerate(build.profiles if free else ()):
        if len(build.profiles) > 1:
            words.append(f"--profile={index}")
        for option, batch in (
            ("minShapes", profile.min),
            ("optShapes", profile.opt),
            ("maxShapes", profile.max),
        ):
            shapes = ",".join(f"{s.name}:{_shape_text(s, batch)}" for s in free)
            words.append(f"--{option}={shapes}")
    return shlex.join(words)


def _shape_text(spec: TensorSpec, batch: int) -> str:
    return "x".join(map(str, (batch, *spec.shape[1:])))
