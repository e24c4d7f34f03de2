"""Builds engines, with TensorRT-RTX also where there is no GPU, and says what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy.errors import EngineError
from t2t_deploy.runtime._engine_figures import EngineFigures, figures_from_log
from t2t_deploy.runtime._timing_cache import TimingCache
from t2t_deploy.runtime._trt_choice import (
    BACKEND_CLASSIC,
    PORTABLE,
    BuilderModule,
    check_computable,
    choose_builder,
    resolve_sms,
    set_targets,
)
from t2t_deploy.runtime._trt_module import (
    BuilderLog,
    Cancel,
    Progress,
    TensorRT,
    new_logger,
    new_monitor,
    run_cancellable,
    to_bytes,
)
from t2t_deploy.runtime._trt_network import (
    add_profiles,
    layer_macs,
    parse_network,
    resolve_profiles,
    tensor_specs,
)
from t2t_deploy.types import ShapeProfile, TensorSpec

if TYPE_CHECKING:
    import tensorrt

DEFAULT_NETWORK_NAME = "t2t_deploy"
MAX_OPTIMIZATION_LEVEL = 5
_MIB = 1 << 20
# how the builder says that nothing fits into the memory limit
_OUT_OF_WORKSPACE = ("OutOfMemory", "within workspace limit")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built; the same file and options give the same bytes.

    profiles: batch ranges; none means 1:1:32 for a free batch, the batch itself for a fixed one.
    sm: as from `parse_sm`; none means portable.
    memory_limit_mib: most scratch memory a kernel may use, in MiB; None leaves the builder's.
    optimization_level: 0 to 5; None leaves the builder's, 3.
    timing_cache: folder of measured kernel times, of use to TensorRT only; None keeps none.
    pin_figures: where the batch is free, build once more for the tuned batch alone, to know sizes.
    """

    profiles: Sequence[ShapeProfile] = ()
    sm: Sequence[str] = ()
    memory_limit_mib: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    network_name: str = DEFAULT_NETWORK_NAME
    pin_figures: bool = True


DEFAULT_OPTIONS = BuildOptions()


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
    options: BuildOptions

    @property
    def moved_bytes(self) -> int | None:
        """Bytes moved between kernels at the tuned batch: this engine's, else its pinned twin's."""
        if self.figures.moved_bytes is None and self.pinned is not None:
            return self.pinned.moved_bytes
        return self.figures.moved_bytes


@dataclass(frozen=True, slots=True)
class _Order:
    """What one run of the builder is asked for; ``sm`` is resolved, empty means portable."""

    onnx_path: Path
    sm: tuple[str, ...]
    options: BuildOptions


@dataclass(frozen=True, slots=True)
class _Built:
    engine: bytes
    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    figures: EngineFigures
    build_s: float
    log: str


class OutOfWorkspaceError(EngineError):
    """The builder found no kernels that do with the memory limit."""


def build_engine(
    onnx_path: Path,
    options: BuildOptions = DEFAULT_OPTIONS,
    *,
    module: BuilderModule | None = None,
    progress: Progress | None = None,
) -> EngineBuild:
    """Build a strongly typed engine.

    module: as from `choose_builder`; None chooses.
    progress: called with phase, steps done, steps in all, on another thread. An exception it raises
        cancels the build and is raised here, as is Ctrl-C.

    Raises ArtifactError for a missing file, EngineError for a graph or request that the builder
    refuses, BackendError for ``native`` without a device, MissingDependencyError.
    """
    chosen = choose_builder() if module is None else module
    _check_options(options)
    order = _Order(Path(onnx_path), resolve_sms(chosen.trt, options.sm), options)
    cancel = Cancel()

    def run(order: _Order) -> _Built:
        return run_cancellable(lambda: _build(chosen, order, progress, cancel), cancel)

    try:
        built = run(order)
    except OutOfWorkspaceError as err:
        cancel = Cancel()
        raise EngineError(_what_would_do(run, order)) from err
    pinned = None
    if options.pin_figures and built.figures.moved_bytes is None:
        opt = built.profiles[0].opt
        pinned = run(_with(order, profiles=(ShapeProfile(opt, opt, opt),))).figures
    return EngineBuild(
        engine=built.engine,
        backend=chosen.backend,
        backend_version=str(chosen.trt.__version__),
        sm=order.sm or PORTABLE,
        profiles=built.profiles,
        inputs=built.inputs,
        outputs=built.outputs,
        figures=built.figures,
        pinned=pinned,
        build_s=built.build_s,
        log=built.log,
        options=options,
    )


def _with(order: _Order, **changes: Any) -> _Order:
    return replace(order, options=replace(order.options, **changes))


def _what_would_do(run: Callable[[_Order], _Built], order: _Order) -> str:
    """The message for a memory limit that is too low: what the same engine takes without one."""
    free = run(_with(order, memory_limit_mib=None))
    needed = -(-free.figures.scratch_bytes // _MIB)
    largest = max(profile.max for profile in free.profiles)
    return (
        f"no kernels fit into {order.options.memory_limit_mib} MiB of scratch memory; at batch "
        f"{largest} this graph takes {needed} MiB: pass --memory-limit {needed}, or a smaller "
        "--max-batch"
    )


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


def _build(
    module: BuilderModule, order: _Order, progress: Progress | None, cancel: Cancel
) -> _Built:
    trt, options = module.trt, order.options
    started_ns = time.perf_counter_ns()
    log = BuilderLog()
    logger = new_logger(trt, log)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, logger, order.onnx_path, options.network_name)
    inputs = tensor_specs(network, outputs=False)
    outputs = tensor_specs(network, outputs=True)
    profiles = resolve_profiles(inputs, options.profiles)
    check_computable(trt, network, order.sm)
    macs = layer_macs(trt, network, profiles[0].opt)
    config = _config(trt, builder, order)
    add_profiles(trt, builder, config, inputs, profiles)
    # bound to a name: the bindings do not keep the monitor alive
    monitor = new_monitor(trt, progress, cancel)
    config.progress_monitor = monitor
    cache = None
    if options.timing_cache is not None and module.backend == BACKEND_CLASSIC:
        cache = TimingCache.open(options.timing_cache, order.onnx_path, str(trt.__version__))
        cache.give_to(config)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        why = log.errors() or "it gives no reason"
        message = f"the builder made no engine from {order.onnx_path}: {why}"
        limited = options.memory_limit_mib is not None
        if limited and any(words in why for words in _OUT_OF_WORKSPACE):
            raise OutOfWorkspaceError(message)
        raise EngineError(message)
    if cache is not None:
        cache.keep(config)
    seconds = (time.perf_counter_ns() - started_ns) / 1e9
    figures = figures_from_log(log.text, macs)
    return _Built(to_bytes(serialized), profiles, inputs, outputs, figures, seconds, log.text)


def _config(trt: TensorRT, builder: tensorrt.Builder, order: _Order) -> tensorrt.IBuilderConfig:
    options = order.options
    config = builder.create_builder_config()
    # the log then lists every kernel: the figures come from there
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # no helper streams: their signal and wait kernels and memory buy nothing at these sizes
    config.max_aux_streams = 0
    # on by default, and 10 bits of mantissa are no float32
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.memory_limit_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.memory_limit_mib * _MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    set_targets(trt, config, order.sm)
    return config
