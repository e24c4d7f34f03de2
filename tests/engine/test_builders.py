"""Which builder builds, and the path of TensorRT with TensorRT-RTX handed in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from t2t_deploy.engine import BACKEND_CLASSIC, BACKEND_RTX, _worker
from t2t_deploy.engine import _choice as _trt_choice
from t2t_deploy.engine._build import EngineBuild
from t2t_deploy.engine._choice import BuilderModule, check_strong_typing, choose_builder
from t2t_deploy.engine._module import load_tensorrt
from t2t_deploy.engine._worker import timing_cache_path
from t2t_deploy.errors import BackendError, UsageError

from ..needs import needs_tensorrt_rtx
from .graphs import build

pytestmark = needs_tensorrt_rtx


def classic() -> BuilderModule:
    return BuilderModule(BACKEND_CLASSIC, load_tensorrt())


def test_tensorrt_builds_through_the_same_code(
    fixed_fp16: Path, fixed_build: EngineBuild, tmp_path: Path
) -> None:
    built = build(fixed_fp16, sm=["86"], module=classic(), timing_cache=tmp_path / "timing")
    assert built.backend == "tensorrt"
    assert built.engine == fixed_build.engine
    (cache,) = (tmp_path / "timing").iterdir()
    assert cache.suffix == ".timing" and cache.stat().st_size > 0
    before = cache.name
    build(fixed_fp16, sm=["86"], module=classic(), timing_cache=tmp_path / "timing")
    assert [path.name for path in cache.parent.iterdir()] == [before]


def test_tensorrt_rtx_keeps_no_timing_cache(fixed_fp16: Path, tmp_path: Path) -> None:
    build(fixed_fp16, sm=["86"], timing_cache=tmp_path / "timing")
    assert not (tmp_path / "timing").exists()


def test_timing_caches_are_per_graph_device_and_version(
    fixed_fp16: Path, free_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {timing_cache_path(tmp_path, fixed_fp16, "10.0")}
    paths.add(timing_cache_path(tmp_path, free_fp16, "10.0"))
    paths.add(timing_cache_path(tmp_path, fixed_fp16, "10.1"))
    monkeypatch.setattr(_worker, "device_name", lambda: "another")
    paths.add(timing_cache_path(tmp_path, fixed_fp16, "10.0"))
    assert len(paths) == 4


def test_which_builder_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: None)
    assert choose_builder().backend == BACKEND_RTX
    with pytest.raises(UsageError, match="no builder 'trt'; known: auto, tensorrt, tensorrt-rtx"):
        choose_builder("trt")
    monkeypatch.setattr(_trt_choice, "load_tensorrt", lambda backend: load_tensorrt())
    with pytest.raises(BackendError, match=r"no CUDA device was found: build with backend tens"):
        choose_builder("tensorrt")
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: "86")
    monkeypatch.setattr(_trt_choice, "is_installed", lambda name: True)
    assert choose_builder().backend == choose_builder("tensorrt").backend == BACKEND_CLASSIC
    assert choose_builder("tensorrt-rtx").backend == BACKEND_RTX


def test_a_tensorrt_without_strong_typing_is_refused() -> None:
    flags = SimpleNamespace(__members__={"EXPLICIT_BATCH": 0})
    old = SimpleNamespace(__version__="8.6.1", NetworkDefinitionCreationFlag=flags)
    with pytest.raises(BackendError, match=r"TensorRT 8\.6\.1 cannot .* install 10\.0"):
        check_strong_typing(cast(Any, old))
