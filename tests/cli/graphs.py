"""Graphs that are altered: what they store, and how it becomes wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

Alter = Callable[[onnx.ModelProto], None]


def stored(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A copy of a stored tensor."""
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    return numpy_helper.to_array(tensor).copy()


def store(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """Replace a stored tensor by one of its shape."""
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    assert values.shape == tuple(tensor.dims)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def edited(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Alter:
    return lambda model: store(model, name, change(stored(model, name)))


def turned(name: str) -> Alter:
    return edited(name, np.transpose)


def scaled(name: str, factor: float) -> Alter:
    return edited(name, lambda values: values * np.float32(factor))


def with_value(name: str, index: tuple[int, ...], value: float) -> Alter:
    """One number of a stored tensor is another."""

    def change(values: np.ndarray) -> np.ndarray:
        values[index] = value
        return values

    return edited(name, change)
