"""Products of 8-bit codes as TensorRT-RTX writes them: how large their sums get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t2t_deploy.verify._typed_graph import FLOAT32, Step, TypedGraph

_PRODUCTS = {"MatMul": -1, "Gemm": -1, "Conv": 1}
"""Operators and the axis of their result that a weight's outputs lie on."""


@dataclass(frozen=True, slots=True)
class CodeSum:
    """One product of codes, over all pictures.

    possible, seen: the largest bare sum that its weights allow, and that the pictures gave.
    bare: the scales come after it is written (see `CodeSums`). written_possible, written_seen:
    what a 16-bit engine writes: the bare sum, or the sum times the scales.
    """

    name: str
    possible: float
    seen: float
    bare: bool
    written_possible: float
    written_seen: float


@dataclass(slots=True)
class _Product:
    name: str
    axis: int
    step: float
    scales: np.ndarray
    sums: np.ndarray
    bias: np.ndarray | None
    read: str
    bare: bool
    fp8: bool
    seen: float = 0.0
    written: float = 0.0

    def along(self, values: np.ndarray, result: np.ndarray) -> np.ndarray:
        """A value for each output, in the shape of the result."""
        shape = [1] * result.ndim
        shape[self.axis] = -1
        return values.reshape(shape)


class CodeSums:
    """The products of codes in a graph, and what pictures made of them.

    In float the product of two dequantised tensors is one number. An engine has two: the sum of
    the codes' products, and that times both scales. Scales that are single numbers are multiplied
    in before anything is written. The bare sum is what is written, in the graph's 16-bit type,
    where a weight has a scale for each output, and for SM89 where FP8 products that read one tensor
    have different scales: the next kernel scales it then (seen in TensorRT-RTX 1.7.1's kernel
    lists). Products whose codes have a zero other than 0 are left out: no engine takes them.
    """

    def __init__(self, graph: TypedGraph) -> None:
        made = {name: step for step in graph.steps for name in step.outputs}
        found = (_product(step, made, graph.constants) for step in graph.steps)
        self._products = {one.name: one for one in found if one is not None}
        readers: dict[str, list[_Product]] = {}
        for one in self._products.values():
            if one.fp8:
                readers.setdefault(one.read, []).append(one)
        for group in readers.values():
            merged_apart = len({float(one.scales[0]) for one in group}) > 1
            for one in group:
                one.bare |= merged_apart

    def as_written(self, step: Step, computed: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A node's results as an engine has them: bare sums pass the 16-bit type on their way."""
        product = self._products.get(step.name)
        if product is None:
            return list(computed)
        result = computed[0]
        plain = result if product.bias is None else result - product.along(product.bias, result)
        scales = product.step * product.along(product.scales.astype(np.float64), result)
        sums = plain / scales
        product.seen = max(product.seen, float(np.abs(sums).max(initial=0.0)))
        written = sums if product.bare else plain
        product.written = max(product.written, float(np.abs(written).max(initial=0.0)))
        form = step.formats[0]
        if not product.bare or form is None or form == FLOAT32:
            return list(computed)
        with np.errstate(invalid="ignore"):
            scaled = form.round(sums.astype(np.float32)) * scales.astype(np.float32)
        if product.bias is not None:
            scaled = scaled + product.along(product.bias, result)
        return [scaled.astype(result.dtype), *computed[1:]]

    def found(self) -> tuple[CodeSum, ...]:
        """All products, in the graph's order."""
        return tuple(
            CodeSum(
                name=one.name,
                possible=float(one.sums.max()),
                seen=one.seen,
                bare=one.bare,
                written_possible=float(
                    (one.sums if one.bare else one.sums * one.step * float(one.scales[0])).max()
                ),
                written_seen=one.written,
            )
            for one in self._products.values()
        )


def _product(
    step: Step, made: Mapping[str, Step], constants: Mapping[str, np.ndarray]
) -> _Product | None:
    if step.op not in _PRODUCTS:
        return None
    read, weight = (_dequantised(name, made) for name in step.inputs[:2])
    if read is None or weight is None or _zero(read, constants) or _zero(weight, constants):
        return None
    codes, stored = constants.get(weight.inputs[0]), constants.get(weight.inputs[1])
    reading = constants.get(read.inputs[1])
    if codes is None or stored is None or reading is None or reading.size != 1:
        return None
    scales = stored.astype(np.float32)
    sizes = np.abs(codes.astype(np.float32))
    outputs = _outputs(step, weight, scales, sizes)
    rest = tuple(index for index in range(sizes.ndim) if index != outputs)
    largest = 127.0 if codes.dtype == np.int8 else 448.0
    bias = constants.get(step.inputs[2]) if len(step.inputs) > 2 else None
    return _Product(
        name=step.name,
        axis=_PRODUCTS[step.op],
        step=float(reading.astype(np.float32)),
        scales=scales.ravel(),
        sums=sizes.sum(axis=rest, dtype=np.float64) * largest,
        bias=None if bias is None else bias.astype(np.float32).ravel(),
        read=read.inputs[0],
        bare=scales.size > 1,
        fp8=codes.dtype != np.int8,
    )


def _outputs(step: Step, weight: Step, scales: np.ndarray, sizes: np.ndarray) -> int:
    """The axis of the codes that the outputs lie on."""
    if scales.size > 1:
        axes = [int(a.i) for a in weight.node.attribute if a.name == "axis"]
        return (axes[0] if axes else 1) % sizes.ndim
    transposed = any(a.name == "transB" and a.i for a in step.node.attribute)
    return 0 if step.op == "Conv" or transposed else sizes.ndim - 1


def _dequantised(name: str, made: Mapping[str, Step]) -> Step | None:
    """The node that makes numbers of the codes behind a tensor, if one does."""
    step = made.get(name)
    while step is not None and step.op in ("Transpose", "Reshape"):
        step = made.get(step.inputs[0])
    return step if step is not None and step.op == "DequantizeLinear" else None


def _zero(step: Step, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether the zero of a node's codes is another number than 0."""
    if len(step.inputs) < 3 or not step.inputs[2]:
        return False
    zero = constants.get(step.inputs[2])
    return zero is None or bool(np.any(zero.astype(np.float32)))
