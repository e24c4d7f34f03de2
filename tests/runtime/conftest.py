"""Tiny graphs and engines of them, made once; files of changed models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from t2t_deploy.engine._build import EngineBuild
from t2t_deploy.types import ShapeProfile

from .engine_graphs import FP16, FP32, build, linear
from .harmful_onnx import Change, model


@pytest.fixture(scope="session")
def graph_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="session")
def fixed_fp16(graph_folder: Path) -> Path:
    return linear(graph_folder / "fixed_fp16.onnx", FP16, 4)


@pytest.fixture(scope="session")
def free_fp16(graph_folder: Path) -> Path:
    return linear(graph_folder / "free_fp16.onnx", FP16, "N")


@pytest.fixture(scope="session")
def free_fp32(graph_folder: Path) -> Path:
    return linear(graph_folder / "free_fp32.onnx", FP32, "N")


@pytest.fixture(scope="session")
def fixed_build(fixed_fp16: Path) -> EngineBuild:
    return build(fixed_fp16, sm=["86"])


@pytest.fixture(scope="session")
def free_build(free_fp32: Path) -> EngineBuild:
    return build(free_fp32, sm=["86"], profiles=[ShapeProfile(1, 2, 8)])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A model, changed, as a file in a folder of its own."""

    def call(change: Change = lambda model: None, name: str = "inside/a.onnx") -> Path:
        made = model()
        change(made)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(made.SerializeToString())
        return path

    return call
