"""Graphs that are altered: what they store, and how it becomes wrong."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

Alter = Callable[[onnx.ModelProto], None]


# options of an export, precision
FORMS: dict[str, tuple[tuple[object, ...], str]] = {
    "bf16 from pixels to classes, batch 3": (
        ("--precision", "bf16", "--batch", 3, "--embed-preprocess", "--tail", "topk"),
        "bf16",
    ),
    "for the CPU, probabilities": (("--target", "cpu", "--tail", "softmax"), "fp32"),
    "fp16 for TensorRT": (
        ("--precision", "fp16", "--target", "tensorrt", "--batch", 1),
        "fp16",
    ),
    "as the paper writes it": (("--soft-split", "conv", "--performer", "plain"), "fp32"),
}


def some_slow(names: Iterable[str], fast: Container[str]) -> list[Any]:
    """Names for a test, which is slow but for some of them."""
    return [pytest.param(one, marks=() if one in fast else pytest.mark.slow) for one in names]


BF16, *_ = FORMS
each_form = pytest.mark.parametrize("form", some_slow(FORMS, [BF16]))


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
