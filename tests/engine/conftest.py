"""Tiny graphs and engines of them, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.engine._build import EngineBuild
from t2t_deploy.types import ShapeProfile

from .graphs import FP16, FP32, build, linear


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
