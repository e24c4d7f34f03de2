"""Parses a builder log with detailed profiling: kernels, their tensors, memory totals."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from t2t_deploy.errors import EngineError

_MARK = "Layers:"
_LAYER = re.compile(
    r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>.*?), StreamId: (?P<stream>\d+), Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(
    r" \{ Name: (?P<name>.+?), Dimensions: \[(?P<dims>[-\d,]*)\], Strides: \[[-\d,]*\], "
    r"StrideOrder: \[[-\d,]*\], Datatype: (?P<dtype>\w+), Format: [^{}]*? ?\}(?:,|$)"
)
# the separator of names is empty, or the control characters 1e and 1f
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[]|$)")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_GRAPH = re.compile(r"_myl(\d+)_\d+$")
# bits of an element, by the log's name of its type
_BITS = {
    "Float": 32, "Half": 16, "BFloat16": 16, "FP8": 8, "Int8": 8, "UInt8": 8, "Bool": 8,
    "Int32": 32, "Int64": 64, "Int4": 4, "FP4": 4, "E8M0": 8,
}  # fmt: skip
_INTEGERS = ("Int32", "Int64")
_CODES = ("Int8", "FP8", "Int4", "FP4")


@dataclass(frozen=True, slots=True)
class LogTensor:
    """A tensor of a kernel as the log prints it; a -1 in ``dims`` is a multiple of the batch."""

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def fixed_elements(self) -> int:
        """Product of the dimensions that do not depend on the batch."""
        return math.prod(dim for dim in self.dims if dim != -1)

    @property
    def size_bytes(self) -> int | None:
        """Bytes it occupies; None where its size depends on the batch."""
        if -1 in self.dims:
            return None
        return (math.prod(self.dims) * _BITS[self.dtype] + 7) // 8


@dataclass(frozen=True, slots=True)
class Kernel:
    """One layer of an engine: ``kind`` is gemm, kgen, runtime_fusion, correlation, ..."""

    name: str
    kind: str
    inputs: tuple[LogTensor, ...]
    outputs: tuple[LogTensor, ...]
    constants: tuple[LogTensor, ...]
    onnx_layers: tuple[str, ...]

    @property
    def is_shape_work(self) -> bool:
        """Whether it only computes sizes: it moves no tensor of numbers."""
        tensors = self.inputs + self.outputs
        return all(tensor.dtype in _INTEGERS and tensor.fixed_elements == 1 for tensor in tensors)

    @property
    def is_gemm_mha(self) -> bool:
        """Whether it is an attention in one kernel."""
        return self.name.startswith("_gemm_mha")

    @property
    def is_gemv_mha(self) -> bool:
        """Whether it is an attention of a single query in one kernel."""
        return self.name.startswith("_gemv_mha")

    @property
    def is_gemm_like(self) -> bool:
        """Whether it computes matrix products: gemm, convolution, fused linear, attention."""
        return (
            self.kind in ("gemm", "gemv", "correlation", "convolution")
            or self.is_gemm_mha
            or self.is_gemv_mha
            or (self.kind == "runtime_fusion" and "Fc" in self.name)
        )

    @property
    def dtype(self) -> str:
        """The type it computes in, by the log's name of it.

        For a kernel built around matrix products the type of its operands: of its weights (the
        largest constant with two real axes), else of its largest input. 8-bit weights that meet a
        wider input are widened in the kernel: it computes in the input's type. For any other the
        type of its largest input, else of its largest output.
        """
        weights = [c for c in self.constants if sum(dim != 1 for dim in c.dims) >= 2]
        if self.is_gemm_like and weights:
            stored = max(weights, key=lambda tensor: tensor.fixed_elements).dtype
            widened = stored in _CODES and all(one.dtype != stored for one in self.inputs)
            if not self.inputs or not widened:
                return stored
        tensors = self.inputs or self.outputs or self.constants
        return max(tensors, key=lambda tensor: tensor.fixed_elements).dtype


@dataclass(frozen=True, slots=True)
class LogTotals:
    """Memory of the engine, in bytes; with several profiles that of the largest one.

    Activation and scratch memory are those of the largest batch a profile takes.
    """

    activation_bytes: int
    scratch_bytes: int
    weights_bytes: int
    host_persistent_bytes: int
    device_persistent_bytes: int


@dataclass(frozen=True, slots=True)
class EngineLog:
    """Content of a builder log: the layers of each profile, in order, and the totals."""

    profiles: tuple[tuple[Kernel, ...], ...]
    totals: LogTotals


def parse_log(text: str) -> EngineLog:
    """Read a builder log.

    Raises EngineError where it has no layers, a layer line is not understood (it names the layer),
    or a total is missing.
    """
    return EngineLog(_split_profiles(_layer_lines(text)), _totals(text))


def parse_kernel(line: str) -> Kernel:
    """Read one layer line. Raises EngineError naming the layer."""
    match = _LAYER.fullmatch(line)
    if match is None:
        raise _not_understood(line, "the line")
    return Kernel(
        match["name"],
        match["kind"],
        _tensors(match["inputs"], line),
        _tensors(match["outputs"], line),
        _tensors(match["constants"], line),
        tuple(_ONNX_LAYER.findall(match["metadata"])),
    )


def _tensors(text: str, line: str) -> tuple[LogTensor, ...]:
    tensors = []
    at = 0
    while at < len(text):
        match = _TENSOR.match(text, at)
        if match is None or match["dtype"] not in _BITS:
            raise _not_understood(line, f"the tensor '{text[at : at + 120].strip()}'")
        dims = tuple(int(dim) for dim in match["dims"].split(",") if dim)
        tensors.append(LogTensor(match["name"], dims, match["dtype"]))
        at = match.end()
    return tuple(tensors)


def _not_understood(line: str, what: str) -> EngineError:
    name = line.removeprefix("Name: ").split(", LayerType:")[0][:120]
    return EngineError(
        f"layer {name!r} of the builder log: {what} is not in a form this version reads; the "
        "figures would be wrong, so none are given: report this with the log"
    )


def _layer_lines(text: str) -> list[str]:
    # not splitlines(): it would also split at the control characters between ONNX names
    lines = text.split("\n")
    starts = [at for at, line in enumerate(lines) if line.endswith(f": {_MARK}") or line == _MARK]
    if not starts:
        raise EngineError(
            "the builder log has no 'Layers:' section, which detailed profiling verbosity prints; "
            "build the engine with this tool to get its figures"
        )
    return list(itertools.takewhile(str.strip, lines[starts[0] + 1 :]))


def _split_profiles(lines: list[str]) -> tuple[tuple[Kernel, ...], ...]:
    """The layers of each profile; one list serves all GPU architectures of an engine.

    Later profiles have ``[profile N]`` in some names: it is that of all layers of a compiled graph.
    """
    graphs: dict[str, list[str]] = {}
    for line in lines:
        name = line.removeprefix("Name: ").split(", LayerType:")[0]
        graph = _GRAPH.search(name)
        graphs.setdefault(graph[1] if graph else "", []).append(line)
    profiles: dict[int, list[Kernel]] = {}
    for group in graphs.values():
        marks = [int(mark) for line in group for mark in _PROFILE.findall(line)]
        profiles.setdefault(max(marks, default=0), []).extend(map(parse_kernel, group))
    return tuple(tuple(profiles[index]) for index in sorted(profiles))


# the log's name of each of `LogTotals`
_TOTALS = {
    "activation_bytes": "Total Activation Memory",
    "scratch_bytes": "Max Scratch Memory",
    "weights_bytes": "Total Weights Memory",
    "host_persistent_bytes": "Total Host Persistent Memory",
    "device_persistent_bytes": "Total Device Persistent Memory",
}


def _totals(text: str) -> LogTotals:
    totals = {}
    for name, label in _TOTALS.items():
        sizes = re.findall(rf"\b{label}: (\d+) bytes", text)
        if not sizes:
            raise EngineError(
                f"the builder log does not state {label!r}; it is cut short or from an unknown "
                "builder: rebuild the engine"
            )
        totals[name] = max(map(int, sizes))
    return LogTotals(**totals)
