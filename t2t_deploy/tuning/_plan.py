"""What `tune` tries: each way to a file as a table of a recipe, the most promising first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2t_deploy.runtime import BACKENDS, backend_for, why_not_in, why_not_runnable
from t2t_deploy.tuning._results import Goal
from t2t_deploy.types import ATTENTION_OPSET, Precision, Target
from t2t_deploy.workspace import TUNE, Workspace

Tables = dict[str, Any]
"""A recipe's tables, as TOML's reader gives them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a tuning is for.

    evaluation: arguments of `evaluate_artifacts`; None without pictures to judge on. device: of the
    GPU; None is the CPU. timed: whether files can run here.
    """

    workspace: Workspace
    goal: Goal
    batch: int
    threads: int
    device: int | None
    evaluation: Mapping[str, Any] | None
    max_drop: float | None
    max_error: float | None
    timed: bool
    again: bool
    within_s: float

    @property
    def recipe(self) -> Path:
        """The file of the pick's recipe."""
        return self.workspace.root.absolute() / TUNE / "best.toml"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a file.

    target: whose runtime runs it. command: of its last step; keys: of that step's table. source:
    the way that it goes on from.
    """

    name: str
    target: Target
    command: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None

    @property
    def ranged(self) -> bool:
        """Whether it takes ranges on pictures."""
        static = self.keys.get("mode", "static") == "static"
        weights_only = str(self.keys.get("type", "")).endswith("-weights")
        return self.command == "quantize" and static and not weights_only

    @property
    def computes_in(self) -> Precision | None:
        """A type that not every processor computes in; None for the others."""
        lowered = {self.keys.get("base"), self.keys.get("precision")} & {"bf16"}
        return Precision.BF16 if lowered else None

    @property
    def table(self) -> dict[str, Any]:
        """Its table in a recipe."""
        made: dict[str, Any] = {"name": self.name}
        if self.source is not None:
            made["from"] = self.source
        if self.command == "export":
            made["target"] = self.target.value
        if self.command == "quantize":
            made["no-speed"] = True
        return made | dict(self.keys)


_OPENVINO, _CPU, _TENSORRT = Target.OPENVINO, Target.CPU, Target.TENSORRT
_CUDA = Target.CUDA
_DYNAMIC = {"mode": "dynamic"}

# In this order on the processors that were measured: docs/cpu.md. What is last is tried if there is
# time, and was slower there.
CPU_WAYS = (
    Way("openvino-int8-bf16", _OPENVINO, "quantize", {"base": "bf16"}, "openvino-fp32"),
    Way("cpu-int8", _CPU, "quantize", _DYNAMIC, "cpu-fp32"),
    Way("openvino-int8", _OPENVINO, "quantize", {}, "openvino-fp32"),
    Way("openvino-bf16", _OPENVINO, "export", {"precision": "bf16"}),
    Way("openvino-fp32", _OPENVINO, "export"),
    Way("cpu-fp32", _CPU, "export", {"opset": ATTENTION_OPSET}),
    Way("cpu-fp32-opset18", _CPU, "export"),
    Way("cpu-int8-opset18", _CPU, "quantize", _DYNAMIC, "cpu-fp32-opset18"),
    Way("cpu-int8-static", _CPU, "quantize", {}, "cpu-fp32"),
)


# not measured yet: docs/gpu.md
CUDA_WAYS = (
    Way("cuda-fp16", _CUDA, "export", {"precision": "fp16"}),
    Way("cuda-fp32", _CUDA, "export"),
)


def engine_ways(sm: str | None, batch: int) -> tuple[Way, ...]:
    """Engines of every type that a builder has. sm: for these GPUs; None is the one at hand."""
    built: dict[str, Any] = {"profile": [f"1:{batch}:{max(batch, 32)}"]}
    if sm is not None:
        built["sm"] = sm

    def engine(precision: str, source: str) -> Way:
        keys = {"precision": precision, **built}
        return Way(f"engine-{precision}", _TENSORRT, "build-trt", keys, source)

    graphs, engines = [], []
    for precision in ("fp16", "bf16"):
        graphs.append(Way(f"tensorrt-{precision}", _TENSORRT, "export", {"precision": precision}))
        engines.append(engine(precision, f"tensorrt-{precision}"))
    for precision in ("fp8", "int8", "int8-weights", "fp8-weights"):
        keys = {"type": precision, "target": _TENSORRT.value}
        graphs.append(Way(f"tensorrt-{precision}", _TENSORRT, "quantize", keys, "tensorrt-fp16"))
        engines.append(engine(precision, f"tensorrt-{precision}"))
    return (*engines, *graphs)


@dataclass(frozen=True, slots=True)
class Plan:
    """Ways to try, in order, and why others are not. sources: ways that are steps to others only.

    shared: tables of the recipe that are no way: the model, the calibration.
    """

    ways: tuple[Way, ...]
    sources: tuple[Way, ...]
    not_tried: Mapping[str, str]
    shared: Tables

    @property
    def every(self) -> dict[str, Way]:
        """All of them, by name."""
        return {way.name: way for way in (*self.ways, *self.sources)}

    def chain(self, name: str) -> list[Way]:
        """The ways that one goes through, from the export on."""
        way = self.every[name]
        return [*([] if way.source is None else self.chain(way.source)), way]

    def tables(self, names: Iterable[str]) -> Tables:
        """A recipe of these ways, and of what they go through."""
        steps = {way.name: way for name in names for way in self.chain(name)}
        made: Tables = dict(self.shared)
        if not any(way.command == "quantize" for way in steps.values()):
            made.pop("calibrate", None)  # dynamic ranges are rounded by pictures too
        for command in ("export", "quantize", "build-trt"):
            of_it = [way.table for way in steps.values() if way.command == command]
            if of_it:
                made[command] = of_it
        return made


def plan_ways(
    shared: Tables, *, sm: str | None, device: int | None, batch: int, has_images: bool
) -> Plan:
    """What can be tried here. has_images: whether there are pictures to take ranges on."""
    ways = CPU_WAYS
    if sm is not None or device is not None:
        ways = (*(() if device is None else CUDA_WAYS), *engine_ways(sm, batch))
    reasons: dict[str, str] = {}
    kept: list[Way] = []
    for way in ways:
        why = _why_not(way, device, has_images=has_images)
        if why is None and way.source in reasons:
            why = reasons[way.source]
        if why is None:
            kept.append(way)
        else:
            reasons[way.name] = why
    steps = {w.name for w in ways if w.target is _TENSORRT and w.command != "build-trt"}
    files = [way for way in kept if way.name not in steps]
    missing = {name: reason for name, reason in reasons.items() if name not in steps}
    return Plan(tuple(files), tuple(w for w in kept if w not in files), missing, shared)


def _why_not(way: Way, device: int | None, *, has_images: bool) -> str | None:
    """Why a way cannot be gone here; engines' builders say it themselves."""
    if way.ranged and not has_images:
        return "it takes its ranges on pictures: --images"
    if way.target is _TENSORRT:
        return None
    backend = backend_for(way.target)
    reason = why_not_runnable(backend, device)
    if reason is None and way.computes_in is not None:
        reason = why_not_in(backend, way.computes_in)
    if reason is None and way.keys.get("mode") == "dynamic":
        reason = BACKENDS[backend].why_no_dynamic_ranges
    return reason
