"""A serialized engine on this machine's device: loading, inputs and outputs, profiles."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from t2t_deploy.engine._device import device_capability
from t2t_deploy.engine._module import BuilderLog, TensorRT, load_tensorrt, new_logger
from t2t_deploy.engine._network import NUMPY_NAMES, different_batches, one_batch, shape_of, sizes
from t2t_deploy.errors import ArtifactError, BackendError, EngineError, InputError
from t2t_deploy.types import ShapeProfile, TensorSpec

if TYPE_CHECKING:
    import tensorrt

# what a caller can pass as numpy arrays
_DTYPES = {name: numpy for name, numpy in NUMPY_NAMES.items() if numpy != "bfloat16"}
# how TensorRT's log names an error of the CUDA runtime: number, text
_CUDA_ERROR = re.compile(r"cudaError (\d+): ([^)]+)\)")
# of a session that may run for months
_KEPT_MESSAGES = 50


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine in device memory, with its inputs and outputs.

    trt: the TensorRT module it was loaded with. runtime: must outlive the engine.
    profiles: the batches it takes, in the engine's order; one for a fixed batch.
    log: the runtime's last messages.
    """

    trt: TensorRT
    runtime: tensorrt.Runtime
    engine: tensorrt.ICudaEngine
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[ShapeProfile, ...]
    log: BuilderLog


def read_engine(path: Path, sha256: str | None) -> bytes:
    """The bytes of an engine file, checked against their SHA-256.

    sha256: of the engine by its manifest, or of a file that the user trusts; None is refused. The
    bytes hashed are the bytes returned, though the file may change. Raises ArtifactError,
    EngineError.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}; build one first: t2t-deploy build-trt")
    if sha256 is None:
        raise EngineError(
            f"{path} is not trusted, and an engine is code that the GPU's driver runs: rebuild it "
            "with t2t-deploy build-trt, or trust it (option trust) if you know who made it"
        )
    content = path.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != sha256:
        raise EngineError(
            f"{path} changed after it was checked: its SHA-256 is {actual[:12]}, expected "
            f"{sha256[:12]}; build it again"
        )
    return content


def load_engine(trt: TensorRT, serialized: bytes, name: str) -> LoadedEngine:
    """Load a serialized engine on the current device.

    trt: ``tensorrt`` or ``tensorrt_rtx``; name: of the engine, for messages.
    Raises BackendError where the device is missing or refuses, EngineError where the bytes are no
    engine of this runtime, or one with inputs or outputs that sessions do not support.
    """
    log = BuilderLog(deque(maxlen=_KEPT_MESSAGES))
    runtime = trt.Runtime(new_logger(trt, log))
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        device = _CUDA_ERROR.search(log.errors()) is not None
        advice = (
            "run it on a machine with a GPU that it was built for"
            if device
            else f"build it with the installed version, {trt.__version__}"
        )
        kind = BackendError if device else EngineError
        raise kind(f"{name} does not load: {load_refusal(log)}; {advice}")
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs, outputs = (
        tuple(_spec(trt, engine, one) for one in names if engine.get_tensor_mode(one) == mode)
        for mode in (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT)
    )
    ranges = {
        spec.name: [
            [sizes(shape) for shape in engine.get_tensor_profile_shape(spec.name, index)]
            for index in range(engine.num_optimization_profiles)
        ]
        for spec in inputs
    }
    profiles = batch_profiles(inputs, ranges)
    return LoadedEngine(trt, runtime, engine, inputs, outputs, profiles, log)


def _spec(trt: TensorRT, engine: tensorrt.ICudaEngine, name: str) -> TensorSpec:
    dtype = engine.get_tensor_dtype(name).name
    if dtype not in _DTYPES:
        raise EngineError(
            f"tensor {name!r} of the engine is {dtype}; sessions pass {', '.join(_DTYPES)}: "
            "export with float32 inputs and outputs"
        )
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise EngineError(
            f"tensor {name!r} of the engine is a shape kept in host memory; sessions pass tensors "
            "on the device: export with fixed sizes after the batch"
        )
    return TensorSpec(name, _DTYPES[dtype], shape_of(engine.get_tensor_shape(name)))


def batch_profiles(
    inputs: Sequence[TensorSpec], ranges: Mapping[str, Sequence[Sequence[Sequence[int]]]]
) -> tuple[ShapeProfile, ...]:
    """The batch range of each profile.

    ranges: smallest, tuned and largest shape of each input in each profile.
    Raises EngineError where more than the batch is free, or inputs disagree about it.
    """
    for spec in inputs:
        if not spec.shape:
            raise EngineError(
                f"input {spec} has no batch; sessions need one: export without this input"
            )
    batch = one_batch(inputs)
    if batch is not None:
        return (ShapeProfile(batch, batch, batch),)
    profiles = []
    for profile in zip(*(ranges[spec.name] for spec in inputs), strict=True):
        batches = {tuple(int(shape[0]) for shape in shapes) for shapes in profile}
        if len(batches) > 1:
            raise different_batches(inputs)
        profiles.append(ShapeProfile(*batches.pop()))
    return tuple(profiles)


def choose_profile(profiles: Sequence[ShapeProfile], batch: int) -> int:
    """Index of the profile to run a batch with: of those that take it, the one tuned nearest.

    Ties go to the narrower, then to the first. Raises InputError where none takes it.
    """
    fitting = [
        (abs(profile.opt - batch), profile.max - profile.min, index)
        for index, profile in enumerate(profiles)
        if profile.min <= batch <= profile.max
    ]
    if not fitting:
        ends = dict.fromkeys((profile.min, profile.max) for profile in profiles)
        taken = ", ".join(f"{low} to {high}" if low < high else str(low) for low, high in ends)
        raise InputError(
            f"the batch is {batch}; this engine takes {taken}: split or pad the batch, or build "
            f"with a profile that includes {batch}, such as 1:{batch}:{batch}"
        )
    return min(fitting)[-1]


def why_not_loaded(engine: bytes, trt: TensorRT | None = None) -> str | None:
    """Why a serialized engine does not load on this machine's device; None if it does.

    trt: the TensorRT module; None takes TensorRT-RTX. Raises MissingDependencyError without it.
    """
    trt = load_tensorrt() if trt is None else trt
    log = BuilderLog()
    loaded = trt.Runtime(new_logger(trt, log)).deserialize_cuda_engine(engine)
    return load_refusal(log) if loaded is None else None


def load_refusal(log: BuilderLog) -> str:
    """Why a runtime did not load an engine, from its log."""
    errors = log.errors()
    cuda = _CUDA_ERROR.search(errors)
    if cuda:
        what = "no CUDA device" if device_capability() is None else "the CUDA device refuses"
        return f"{what}: {cuda[2]} (cudaError {cuda[1]})"
    return f"the runtime does not load it: {errors or 'it gives no reason'}"
