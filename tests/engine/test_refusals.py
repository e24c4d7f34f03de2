"""What the engine builder is not given, or does not take, and what is said of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from onnx import helper

from t2t_deploy.engine import _choice as _trt_choice
from t2t_deploy.engine import _worker as _engine_worker
from t2t_deploy.engine._choice import supported_sms
from t2t_deploy.engine._figures import attest
from t2t_deploy.engine._module import load_tensorrt
from t2t_deploy.engine._network import resolve_profiles
from t2t_deploy.errors import ArtifactError, BackendError, EngineError
from t2t_deploy.types import Precision, ShapeProfile, Status, TensorSpec

from ..needs import needs_tensorrt_rtx
from ..onnx_models import save_model
from .graphs import BF16, attention, build, build_here, fp8_linear, linear

pytestmark = needs_tensorrt_rtx


def test_a_fixed_batch_refuses_another(fixed_fp16: Path) -> None:
    built = build(fixed_fp16, profiles=[ShapeProfile(4, 4, 4)])
    assert built.profiles == (ShapeProfile(4, 4, 4),)
    with pytest.raises(
        EngineError, match=r"batches of exactly 4, and profile 1:1:8 .* batch dynamic"
    ):
        build(fixed_fp16, profiles=[ShapeProfile(1, 1, 8)])


def test_more_than_the_batch_free_is_refused(graph_folder: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["logits"], "act")]
    path = save_model(graph_folder / "sizes.onnx", nodes, [], ["N", "side"], ["N", "side"])
    with pytest.raises(EngineError, match=r"input image float32 \(N, N\) leaves more than the ba"):
        build(path)


def test_inputs_that_disagree_about_the_batch_are_refused() -> None:
    inputs = [TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (None, 3))]
    with pytest.raises(EngineError, match=r"a float32 \(2, 3\); b .* disagree about the batch"):
        resolve_profiles(inputs, [])


def test_turing_refuses_wide_products_before_building(
    free_fp32: Path, free_fp16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(free_fp16, sm=["75"], pin_figures=False).sm == ("75",)
    monkeypatch.setattr(_engine_worker, "_config", lambda *_: pytest.fail("the builder was asked"))
    with pytest.raises(
        EngineError, match=r"1 matrix products .* float32 \(fc\); SM 75 .* SM 80 .* fp16"
    ):
        build_here(free_fp32, "75", "86")
    with pytest.raises(EngineError, match="SM 80 is the first"):
        build(free_fp32, sm=["75", "86"])
    with pytest.raises(EngineError, match=r"are bfloat16 \(fc\); SM 75 cannot"):
        build(linear(tmp_path / "bf16.onnx", BF16, 2), sm=["75"])


@pytest.mark.parametrize("sm", [["86"], ["86", "89"], []])
def test_fp8_is_refused_below_ada(
    graph_folder: Path, sm: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fp8_linear(graph_folder / "fp8.onnx")
    monkeypatch.setattr(_engine_worker, "_config", lambda *_: pytest.fail("the builder was asked"))
    who = "SM 86" if sm else "a portable engine, which runs from SM 80 on,"
    with pytest.raises(EngineError, match=rf"are fp8 \(fc\); {who} cannot .* SM 89 is the first"):
        build_here(path, *sm)


def test_fp8_builds_for_ada(graph_folder: Path) -> None:
    figures = build(fp8_linear(graph_folder / "fp8.onnx"), sm=["89", "120"]).figures
    assert attest(figures, Precision.FP8).status is Status.PASSED


def test_a_too_low_memory_limit_names_one_that_works(graph_folder: Path) -> None:
    path = attention(graph_folder / "hungry.onnx", "N")
    profile = ShapeProfile(1, 1, 256)
    with pytest.raises(EngineError) as caught:
        build(path, sm=["86"], profiles=[profile], memory_limit_mib=1)
    found = re.search(
        r"into 1 MiB of scratch memory; without limit they take (\d+) MiB at batch 256: set "
        r"memory-limit to (\d+) \(less may work\)",
        str(caught.value),
    )
    assert found and found[1] == found[2]
    assert build(path, sm=["86"], profiles=[profile], memory_limit_mib=int(found[2])).engine


def test_native_needs_a_device(fixed_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: None)
    with pytest.raises(BackendError, match="no CUDA device was found: name the targets"):
        build(fixed_fp16, sm=["native"])
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: "89")
    assert build(fixed_fp16, sm=["native"]).sm == ("89",)
    # what check_sms refuses reaches whoever builds
    known = ", ".join(supported_sms(load_tensorrt()))
    with pytest.raises(EngineError, match=f"cannot target SM 61; it targets {known}"):
        build(fixed_fp16, sm=["61"])


def test_a_file_that_is_none_or_no_model(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    with pytest.raises(ArtifactError, match=r"no ONNX file at .*text\.onnx"):
        build(path)
    path.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"text\.onnx is no readable ONNX file \("):
        build(path)


def test_the_parser_names_the_node(graph_folder: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["a"], "fine"),
        helper.make_node("NoSuchOperator", ["a"], ["logits"], "mystery"),
    ]
    path = save_model(graph_folder / "unknown.onnx", nodes, [], [1, 3], [1, 3])
    with pytest.raises(EngineError, match=r"node 'mystery' \(NoSuchOperator\): ") as caught:
        build(path)
    assert "\n" not in str(caught.value)
    assert "Plugin not found" in str(caught.value)


def test_a_build_that_fails_tells_the_last_errors(
    free_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine_worker, "check_computable", lambda *_: None)
    with pytest.raises(EngineError, match=r"built no engine from .*FP32 GEMM is not supported"):
        build_here(free_fp32, "75")
