"""A small model to be changed to harm, and every reader that must refuse it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from t2t_deploy._optional import is_installed
from t2t_deploy.engine._module import BuilderLog, load_tensorrt, new_logger
from t2t_deploy.engine._network import parse_network
from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import SessionRequest, open_session

from ..onnx_models import constants, model_of

Change = Callable[[onnx.ModelProto], object]
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model() -> onnx.ModelProto:
    """logits = relu(flatten(image) @ w)."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["product"], name="matmul"),
        helper.make_node("Relu", ["product"], ["logits"], name="relu"),
    ]
    return model_of(nodes, constants({"w": WEIGHT}), [1, 3, 1, 1], [1, 4])


def readers(path: Path) -> list[Callable[[], Any]]:
    """Every way from a path to a parser that this machine has."""
    found: list[Callable[[], Any]] = [
        lambda: read_onnx(path),
        lambda: open_session(SessionRequest("ort-cpu", path, threads=1)),
    ]
    if is_installed("openvino"):
        found.append(lambda: open_session(SessionRequest("openvino", path, threads=1)))
    if is_installed("tensorrt_rtx"):
        found.append(lambda: parsed_by_rtx(path))
    return found


def parsed_by_rtx(path: Path) -> None:
    trt = load_tensorrt()
    logger = new_logger(trt, BuilderLog([]))
    parse_network(trt, trt.Builder(logger), logger, path, "a")


def refusal(path: Path) -> str:
    """What all of them say, which is the same one line."""
    said = set()
    for read in readers(path)[1:]:
        with pytest.raises(ArtifactError) as refused:
            read()
        said.add(str(refused.value))
    (message,) = said
    assert message.isprintable() and len(message) < 700
    return message
