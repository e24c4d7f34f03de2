"""What one run of the engine builder is asked for and tells, in a form that crosses a pipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy.types import ShapeProfile, TensorSpec

DEFAULT_NETWORK_NAME = "t2t_deploy"
OUT_OF_WORKSPACE = "out of workspace"
"""What the builder's process calls it when no kernels do with the memory limit."""


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


@dataclass(frozen=True, slots=True)
class BuildJob:
    """What one run of the builder is asked for.

    backend: name of the builder; module: of the Python module that is it. sm: resolved, empty
    means portable.
    """

    onnx_path: Path
    backend: str
    module: str
    sm: tuple[str, ...]
    options: BuildOptions

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        values = dataclasses.asdict(self) | {"onnx_path": str(self.onnx_path)}
        cache = self.options.timing_cache
        values["options"] |= {"timing_cache": None if cache is None else str(cache)}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BuildJob:
        """Read what `to_dict` wrote."""
        options = dict(values["options"])
        options["profiles"] = tuple(ShapeProfile(**profile) for profile in options["profiles"])
        if options["timing_cache"] is not None:
            options["timing_cache"] = Path(options["timing_cache"])
        return cls(
            onnx_path=Path(values["onnx_path"]),
            backend=values["backend"],
            module=values["module"],
            sm=tuple(values["sm"]),
            options=BuildOptions(**options),
        )


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What is known of an engine that was built, but for its bytes and its log.

    layer_macs: multiply-adds by ONNX node name, at the tuned batch. build_s: for parsing and
    building. log_entries: how many the log had when the engine was done.
    """

    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layer_macs: Mapping[str, int]
    build_s: float
    log_entries: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BuildResult:
        """Read what `to_dict` wrote."""
        specs = {
            place: tuple(
                TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"]))
                for spec in values[place]
            )
            for place in ("inputs", "outputs")
        }
        return cls(
            profiles=tuple(ShapeProfile(**profile) for profile in values["profiles"]),
            layer_macs=values["layer_macs"],
            build_s=values["build_s"],
            log_entries=values["log_entries"],
            **specs,
        )
