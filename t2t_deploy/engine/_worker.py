"""The process that builds engines for `_build`: a crash ends it alone; run as a module."""

from __future__ import annotations

import hashlib
import importlib
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, cast

from t2t_deploy._child import Parent
from t2t_deploy._codec import from_plain
from t2t_deploy._files import atomic_write
from t2t_deploy.engine._build import BuildJob, BuildResult, OutOfWorkspaceError
from t2t_deploy.engine._choice import check_computable, set_targets
from t2t_deploy.engine._device import device_name
from t2t_deploy.engine._module import (
    BACKEND_CLASSIC,
    BuilderLog,
    Progress,
    TensorRT,
    new_logger,
    new_monitor,
    to_bytes,
)
from t2t_deploy.engine._network import (
    add_profiles,
    layer_macs,
    parse_network,
    resolve_profiles,
    tensor_specs,
)
from t2t_deploy.errors import DeployError, EngineError

if TYPE_CHECKING:
    import tensorrt

_MIB = 1 << 20
# the builder's words where no kernel fits into the memory limit
_OUT_OF_WORKSPACE = ("OutOfMemory", "within workspace limit")
# and where the machine, or a limit on the process, has no memory left
_OUT_OF_MEMORY = "std::bad_alloc"


def main() -> None:
    """Run jobs until one fails or the parent is gone."""
    parent = Parent()
    while True:
        message = parent.next_message()
        # sent at once: the parent has it when the builder dies
        log = BuilderLog(on_entry=lambda entry: parent.send({"log": entry}))
        progress = (lambda *step: parent.send({"progress": step})) if message["progress"] else None
        try:
            result, engine = build(from_plain(BuildJob, message["job"]), log, progress)
        except (DeployError, MemoryError) as err:
            parent.send({"error": type(err).__name__, "message": str(err)})
            return
        except BaseException:  # a bug: the parent shows where
            parent.send({"error": "", "message": traceback.format_exc()})
            return
        parent.send({"built": result}, engine)


def build(
    job: BuildJob, log: BuilderLog, progress: Progress | None = None
) -> tuple[BuildResult, bytes]:
    """Build one engine in this process. Raises as `build_engine`."""
    trt, options = cast(TensorRT, importlib.import_module(job.module)), job.options
    started_ns = time.perf_counter_ns()
    logger = new_logger(trt, log)
    builder = trt.Builder(logger)
    network = parse_network(trt, builder, logger, job.onnx_path, options.network_name)
    inputs = tensor_specs(network, outputs=False)
    outputs = tensor_specs(network, outputs=True)
    profiles = resolve_profiles(inputs, options.profiles)
    check_computable(trt, network, job.sm)
    macs = layer_macs(trt, network, profiles[0].opt)
    config = _config(trt, builder, job)
    add_profiles(trt, builder, config, inputs, profiles)
    # bound to a name: the bindings do not keep the monitor alive
    monitor = new_monitor(trt, progress)
    config.progress_monitor = monitor
    cache = None
    if options.timing_cache is not None and job.backend == BACKEND_CLASSIC:
        cache = timing_cache_path(options.timing_cache, job.onnx_path, str(trt.__version__))
        stored = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        why = log.errors() or "it gives no reason"
        message = f"the builder built no engine from {job.onnx_path}: {why}"
        limited = options.memory_limit_mib is not None
        if limited and any(words in why for words in _OUT_OF_WORKSPACE):
            raise OutOfWorkspaceError(message)
        if _OUT_OF_MEMORY in why:
            raise MemoryError(message)
        raise EngineError(message)
    if cache is not None:
        with atomic_write(cache) as temporary:
            temporary.write_bytes(to_bytes(config.get_timing_cache().serialize()))
    seconds = (time.perf_counter_ns() - started_ns) / 1e9
    version, entries = str(trt.__version__), len(log.entries)
    result = BuildResult(version, profiles, inputs, outputs, macs, seconds, entries)
    return result, to_bytes(serialized)


def _config(trt: TensorRT, builder: tensorrt.Builder, job: BuildJob) -> tensorrt.IBuilderConfig:
    options = job.options
    config = builder.create_builder_config()
    # the log then lists every kernel: the figures come from there
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # no helper streams: their signals, waits and memory do not pay off at these sizes
    config.max_aux_streams = 0
    # on by default, and 10 bits of mantissa are no float32
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.memory_limit_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.memory_limit_mib * _MIB)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    set_targets(trt, config, job.sm)
    return config


def timing_cache_path(folder: Path, onnx_path: Path, version: str) -> Path:
    """The file of times of one graph on this machine's kind of device in one version of TensorRT.

    TensorRT-RTX measures nothing while it builds.
    """
    graph = hashlib.sha256(onnx_path.read_bytes()).hexdigest()
    key = "\n".join((graph, device_name() or "no device", version))
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.timing"


if __name__ == "__main__":
    main()
