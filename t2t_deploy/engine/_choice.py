"""The TensorRT to build with, its GPU targets, and what these cannot compute."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from t2t_deploy._optional import is_installed
from t2t_deploy.engine._device import device_capability
from t2t_deploy.engine._module import BACKEND_CLASSIC, BACKEND_RTX, MODULES, TensorRT, load_tensorrt
from t2t_deploy.engine._network import numpy_name, product_operands
from t2t_deploy.errors import EngineError, UnavailableError, UsageError, first_few
from t2t_deploy.types import Precision

if TYPE_CHECKING:
    import tensorrt

AUTO = "auto"
BUILDERS = (AUTO, BACKEND_CLASSIC, BACKEND_RTX)
PORTABLE = ("portable",)
NATIVE = ("native",)
HOPPER = "90"
PORTABLE_FROM = "80"


class _Arithmetic(NamedTuple):
    """A type of operands, the first compute capability that multiplies in it, a hint below that."""

    precision: Precision
    dtype: str
    first: str
    hint: str


_NO_TURING = "export with precision fp16, or leave the older ones out of sm"
_ARITHMETIC = (
    _Arithmetic(Precision.FP32, "FLOAT", "80", _NO_TURING),
    _Arithmetic(Precision.BF16, "BF16", "80", _NO_TURING),
    _Arithmetic(Precision.FP8, "FP8", "89", "set sm to targets from 89 on, or build int8"),
)


class BuilderModule(NamedTuple):
    """A TensorRT to build with, and its name on the command line."""

    backend: str
    trt: TensorRT


def choose_builder(backend: str = AUTO) -> BuilderModule:
    """The module to build with: TensorRT if it is installed with a device, else TensorRT-RTX.

    Raises UsageError for an unknown name, MissingDependencyError, BackendError where the requested
    TensorRT cannot build here.
    """
    if backend not in BUILDERS:
        raise UsageError(f"there is no builder {backend!r}; known: {', '.join(BUILDERS)}")
    device = device_capability()
    if backend == AUTO:
        here = device is not None and is_installed(MODULES[BACKEND_CLASSIC])
        backend = BACKEND_CLASSIC if here else BACKEND_RTX
    trt = load_tensorrt(backend)
    if backend == BACKEND_CLASSIC:
        if device is None:
            raise UnavailableError(
                f"TensorRT {trt.__version__} builds for the GPU it runs on and no CUDA device was "
                f"found: build with backend {BACKEND_RTX}, which needs none"
            )
        check_strong_typing(trt)
    return BuilderModule(backend, trt)


def engine_version(backend: str) -> str | None:
    """Version of the TensorRT that loads engines of this backend; None where it is not installed.

    Raises MissingDependencyError where it is installed and broken.
    """
    return load_tensorrt(backend).__version__ if is_installed(MODULES[backend]) else None


def check_strong_typing(trt: TensorRT) -> None:
    """Raise BackendError for a TensorRT without strongly typed networks."""
    if "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__:
        raise UnavailableError(
            f"TensorRT {trt.__version__} cannot build strongly typed networks, so an fp16 "
            "engine could compute in fp32; install 10.0 or newer"
        )


def parse_sm(text: str) -> tuple[str, ...]:
    """Read ``86,89``, ``portable`` or ``native``; ``8.6`` and ``sm86`` also mean 86.

    The result is sorted and has each target once, so that order does not change the engine. The
    builder decides which targets it supports. Raises UsageError.
    """
    names = [part.strip().lower() for part in text.split(",")]
    if names in (["portable"], ["native"]):
        return (names[0],)
    matches = [re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", name) for name in names]
    if not all(matches):
        raise UsageError(
            f"GPU targets are {text!r}; expected compute capabilities such as 86,89, or "
            "'portable' or 'native'"
        )
    return tuple(sorted({match[1] + match[2] for match in matches if match}, key=int))


def supported_sms(trt: TensorRT) -> tuple[str, ...]:
    """The compute capabilities that the module's builder can target, ascending."""
    if not hasattr(trt, "ComputeCapability"):
        return ()
    members = trt.ComputeCapability.__members__
    return tuple(sorted((name[2:] for name in members if re.fullmatch(r"SM\d+", name)), key=int))


def resolve_sms(trt: TensorRT, asked: Sequence[str]) -> tuple[str, ...]:
    """Compute capabilities to build for; none means portable.

    Raises BackendError for ``native`` without a device, EngineError for one the builder lacks.
    """
    if tuple(asked) in ((), PORTABLE):
        return ()
    if tuple(asked) == NATIVE:
        device = device_capability()
        if device is None:
            raise UnavailableError(
                "'native' builds for this machine's GPU and no CUDA device was found: name the "
                "targets (sm 86,89) or build a portable engine (sm portable)"
            )
        asked = (device,)
    # neither order nor repetition may change the engine
    targets = tuple(sorted(set(asked), key=lambda name: (len(name), name)))
    check_sms(trt, targets)
    return targets


def check_sms(trt: TensorRT, sms: tuple[str, ...]) -> None:
    """Raise EngineError unless the module's builder can target every one of these numbers."""
    device = device_capability()
    # only TensorRT has no list of targets: it builds for this machine's device
    supported = supported_sms(trt) or (() if device is None else (device,))
    unknown = [sm for sm in sms if sm not in supported]
    if not unknown:
        return
    expected = ", ".join(supported) or "this machine's device, and there is none"
    hopper = (
        "; TensorRT-RTX has no Hopper (90): use the onnxruntime-gpu or TensorRT backend there"
        if HOPPER in unknown
        else ""
    )
    raise EngineError(
        f"this builder (version {trt.__version__}) cannot target SM {', '.join(unknown)}; it "
        f"targets {expected}: choose from those, or 'portable'{hopper}"
    )


def set_targets(trt: TensorRT, config: tensorrt.IBuilderConfig, sms: tuple[str, ...]) -> None:
    """Set the builder's targets; ``sms`` from `resolve_sms`, empty means portable."""
    if not hasattr(trt, "ComputeCapability"):
        if not sms:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return
    if sms:
        settings: Any = config  # no stub of TensorRT's has these
        settings.num_compute_capabilities = len(sms)
        for index, name in enumerate(sms):
            capability = trt.ComputeCapability.__members__[f"SM{name}"]
            settings.set_compute_capability(capability, index)


def check_computable(
    trt: TensorRT, network: tensorrt.INetworkDefinition, sms: Sequence[str]
) -> None:
    """Raise EngineError where a target lacks the arithmetic of the graph; sms empty is portable.

    The builder refuses later and less clearly, or not at all.
    """
    for arithmetic in _ARITHMETIC:
        named = trt.DataType.__members__.get(arithmetic.dtype)
        if named is None or (who := _lacking(arithmetic, sms)) is None:
            continue
        names = [name for name, types in product_operands(trt, network) if named in types]
        if names:
            shown = f"{numpy_name(named)} ({first_few(names)})"
            raise _cannot(f"{len(names)} matrix products of the graph are {shown}", arithmetic, who)


def check_targets(module: BuilderModule, sm: Sequence[str], precision: Precision) -> None:
    """Raise EngineError where a target cannot multiply in ``precision`` at all.

    sm: as from `parse_sm`. Lets callers check before they make a graph. Raises as `resolve_sms`.
    """
    sms = resolve_sms(module.trt, sm)
    for arithmetic in _ARITHMETIC:
        if arithmetic.precision is precision and (who := _lacking(arithmetic, sms)) is not None:
            raise _cannot(f"{precision.value} was requested", arithmetic, who)


def _cannot(asked: str, arithmetic: _Arithmetic, who: str) -> EngineError:
    return EngineError(
        f"{asked}; {who} cannot multiply in it, SM {arithmetic.first} is the first that can: "
        f"{arithmetic.hint}"
    )


def _lacking(arithmetic: _Arithmetic, sms: Sequence[str]) -> str | None:
    """The lowest target, in words, if it lacks the arithmetic; sms empty is portable."""
    lowest = min(tuple(sms) or (PORTABLE_FROM,), key=int)
    if int(lowest) >= int(arithmetic.first):
        return None
    return f"SM {lowest}" if sms else f"a portable engine, which runs from SM {lowest} on,"
