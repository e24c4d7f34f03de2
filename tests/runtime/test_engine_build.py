"""Real engines of tiny graphs, built without a GPU."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy._optional import is_installed
from t2t_deploy.errors import ArtifactError, BackendError, EngineError, UsageError
from t2t_deploy.runtime import _engine_build, _timing_cache, _trt_choice
from t2t_deploy.runtime._engine_build import BuildOptions, EngineBuild, build_engine
from t2t_deploy.runtime._engine_device import device_capability, runnable_here
from t2t_deploy.runtime._engine_figures import attest
from t2t_deploy.runtime._timing_cache import TimingCache
from t2t_deploy.runtime._trt_choice import (
    BACKEND_CLASSIC,
    BACKEND_RTX,
    BuilderModule,
    check_strong_typing,
    choose_builder,
    supported_sms,
)
from t2t_deploy.runtime._trt_module import BuilderLog, Progress, load_rtx, new_logger
from t2t_deploy.runtime._trt_network import resolve_profiles
from t2t_deploy.runtime._trtexec import trtexec_line
from t2t_deploy.types import Precision, ShapeProfile, Status, TensorSpec

pytestmark = pytest.mark.skipif(
    not is_installed("tensorrt_rtx"), reason="tensorrt_rtx is not installed"
)

FP32, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
Batch = int | str
TOKENS, WIDTH, OUT = 16, 32, 64


def build(
    path: Path,
    *,
    progress: Progress | None = None,
    module: BuilderModule | None = None,
    **options: Any,
) -> EngineBuild:
    return build_engine(path, BuildOptions(**options), module=module, progress=progress)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto],
    shape_in: Sequence[Batch],
    shape_out: Sequence[Batch],
    *,
    opset: int = 18,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", FP32, shape_in)],
        [helper.make_tensor_value_info("logits", FP32, shape_out)],
        weights,
    )
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def weight(name: str, dtype: int, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(0).standard_normal(shape) / 8
    return helper.make_tensor(name, dtype, shape, values.ravel())


def linear(path: Path, dtype: int, batch: Batch) -> Path:
    """Cast, MatMul, Add, Relu, cast."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "cast_in", to=dtype),
        helper.make_node("MatMul", ["x", "w"], ["m"], "fc"),
        helper.make_node("Add", ["m", "b"], ["a"], "bias"),
        helper.make_node("Relu", ["a"], ["r"], "act"),
        helper.make_node("Cast", ["r"], ["logits"], "cast_out", to=FP32),
    ]
    weights = [weight("w", dtype, WIDTH, OUT), weight("b", dtype, OUT)]
    return save(path, nodes, weights, [batch, TOKENS, WIDTH], [batch, TOKENS, OUT])


def attention(path: Path, batch: Batch) -> Path:
    """Self-attention of 64 tokens, 4 heads of 32, in fp16."""
    tokens, heads, depth = 64, 4, 32
    width = heads * depth
    weights = [
        weight("wqkv", FP16, width, 3 * width),
        weight("wo", FP16, width, width),
        numpy_helper.from_array(np.array([0, tokens, 3, heads, depth]), "split"),
        numpy_helper.from_array(np.array([0, tokens, width]), "flat"),
        numpy_helper.from_array(np.array(depth**-0.5, np.float16), "scale"),
        *(numpy_helper.from_array(np.array(index), f"at{index}") for index in range(3)),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], "cast_in", to=FP16),
        helper.make_node("MatMul", ["x", "wqkv"], ["qkv"], "qkv"),
        helper.make_node("Reshape", ["qkv", "split"], ["s"], "heads"),
        helper.make_node("Transpose", ["s"], ["t"], "perm", perm=[2, 0, 3, 1, 4]),
        *(
            helper.make_node("Gather", ["t", f"at{index}"], [name], f"take_{name}", axis=0)
            for index, name in enumerate("qkv")
        ),
        helper.make_node("Mul", ["q", "scale"], ["qs"], "scaled"),
        helper.make_node("Transpose", ["k"], ["kt"], "turned", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["qs", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"], "mix"),
        helper.make_node("Transpose", ["o"], ["ot"], "merge", perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ot", "flat"], ["of"], "joined"),
        helper.make_node("MatMul", ["of", "wo"], ["y"], "proj"),
        helper.make_node("Cast", ["y"], ["logits"], "cast_out", to=FP32),
    ]
    return save(path, nodes, weights, [batch, tokens, width], [batch, tokens, width])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def fixed_fp16(folder: Path) -> Path:
    return linear(folder / "fixed_fp16.onnx", FP16, 4)


@pytest.fixture(scope="module")
def free_fp16(folder: Path) -> Path:
    return linear(folder / "free_fp16.onnx", FP16, "N")


@pytest.fixture(scope="module")
def free_fp32(folder: Path) -> Path:
    return linear(folder / "free_fp32.onnx", FP32, "N")


@pytest.fixture(scope="module")
def fixed_build(fixed_fp16: Path) -> EngineBuild:
    return build(fixed_fp16, sm=["86"])


@pytest.fixture(scope="module")
def free_build(free_fp32: Path) -> EngineBuild:
    return build(free_fp32, sm=["86"], profiles=[ShapeProfile(1, 2, 8)])


def test_what_a_build_tells(fixed_build: EngineBuild) -> None:
    assert fixed_build.backend == "tensorrt-rtx"
    assert fixed_build.backend_version == load_rtx().__version__
    assert fixed_build.sm == ("86",)
    assert fixed_build.profiles == (ShapeProfile(4, 4, 4),)
    assert fixed_build.inputs == (TensorSpec("image", "float32", (4, TOKENS, WIDTH)),)
    assert fixed_build.outputs == (TensorSpec("logits", "float32", (4, TOKENS, OUT)),)
    assert fixed_build.options.network_name == "t2t_deploy"
    assert fixed_build.build_s > 0
    assert len(fixed_build.engine) > 10_000
    assert "Layers:" in fixed_build.log


def test_figures_of_a_fixed_batch(fixed_build: EngineBuild) -> None:
    figures = fixed_build.figures
    assert figures.kernels_by_dtype == {"Float": 1, "Half": 2}  # the cast reads float32
    assert figures.gemms_by_dtype == {"Half": 1}
    assert figures.macs_by_dtype == {"Half": 4 * TOKENS * WIDTH * OUT}
    assert figures.macs_unplaced == 0
    rows = 4 * TOKENS
    moved = rows * WIDTH * (4 + 2) + rows * (WIDTH + OUT) * 2 + rows * OUT * (2 + 4)
    assert fixed_build.moved_bytes == figures.moved_bytes == moved
    assert fixed_build.pinned is None


def test_same_input_same_bytes(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    assert build(fixed_fp16, sm=["86"]).engine == fixed_build.engine


def test_same_bytes_in_another_process(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    code = (
        "import hashlib, pathlib, sys; from t2t_deploy.runtime import BuildOptions, build_engine; "
        "engine = build_engine(pathlib.Path(sys.argv[1]), BuildOptions(sm=['86'])).engine; "
        "print(hashlib.sha256(engine).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(fixed_fp16)], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == hashlib.sha256(fixed_build.engine).hexdigest()


def test_the_network_name_is_in_the_engine(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    assert b"t2t_deploy" in fixed_build.engine
    named = build(fixed_fp16, sm=["86"], network_name="by_another_name")
    assert b"by_another_name" in named.engine
    assert named.options.network_name == "by_another_name"


def test_same_input_same_bytes_with_a_free_batch(free_fp32: Path, free_build: EngineBuild) -> None:
    again = build(free_fp32, sm=["86", "86"], profiles=[ShapeProfile(1, 2, 8)], pin_figures=False)
    assert again.engine == free_build.engine
    assert again.pinned is None
    assert again.moved_bytes is None


def test_a_free_batch_is_counted_at_the_tuned_one(free_build: EngineBuild) -> None:
    assert free_build.inputs[0].shape == (None, TOKENS, WIDTH)
    assert free_build.figures.moved_bytes is None
    assert free_build.pinned is not None
    rows = 2 * TOKENS
    # one gemm, then bias and relu
    moved = rows * (WIDTH + OUT) * 4 + rows * (OUT + OUT) * 4
    assert free_build.moved_bytes == free_build.pinned.moved_bytes == moved
    assert free_build.figures.macs_by_dtype == {"Float": rows * WIDTH * OUT}


def test_a_free_batch_without_a_profile_takes_the_default(free_fp16: Path) -> None:
    built = build(free_fp16, pin_figures=False)
    assert built.profiles == (ShapeProfile(1, 1, 32),)
    assert "MinShape: [1,16,32], OptShape: [1,16,32], MaxShape: [32,16,32]" in built.log


def test_several_profiles(folder: Path) -> None:
    path = attention(folder / "free_attention.onnx", "N")
    profiles = [ShapeProfile(1, 2, 8), ShapeProfile(4, 4, 4)]
    built = build(path, sm=["86"], profiles=profiles)
    assert built.profiles == tuple(profiles)
    assert built.figures.profiles == 2
    assert (built.figures.kernels, built.figures.shape_ops) == (5, 5)
    assert built.figures.gemm_mha == 1
    assert built.pinned is not None
    assert built.pinned.profiles == 1
    # the attention's two products are in the same kernel
    assert built.figures.macs_by_dtype == {
        "Half": 2 * 64 * 128 * (4 * 128) + 2 * (2 * 4 * 64**2 * 32)
    }
    assert attest(built.figures, Precision.FP16).found == {"Half": 1.0}


def test_two_targets_in_any_order(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    built = build(fixed_fp16, sm=["89", "86"])
    assert built.sm == ("86", "89")
    assert "Number of target compute capabilities: 2" in built.log
    assert built.engine == build(fixed_fp16, sm=["86", "89"]).engine
    assert built.engine != fixed_build.engine
    # one list of kernels serves all targets
    assert built.log.count("Layers:\n") == 1
    assert built.figures.kernels == fixed_build.figures.kernels


@pytest.mark.parametrize("sm", [(), ("portable",)])
def test_portable(fixed_fp16: Path, sm: tuple[str, ...]) -> None:
    built = build(fixed_fp16, sm=sm)
    assert built.sm == ("portable",)
    assert built.figures.kernels == 3


def test_bf16(folder: Path) -> None:
    built = build(linear(folder / "bf16.onnx", BF16, 2), sm=["86"])
    assert attest(built.figures, Precision.BF16).status is Status.PASSED
    assert attest(built.figures, Precision.FP16).status is Status.FAILED


def test_the_wrong_precision_fails_attestation(
    fixed_build: EngineBuild, free_build: EngineBuild
) -> None:
    assert attest(fixed_build.figures, Precision.FP16).status is Status.PASSED
    assert attest(free_build.figures, Precision.FP32).status is Status.PASSED
    wrong = attest(free_build.figures, Precision.FP16)
    assert wrong.status is Status.FAILED
    assert wrong.found == {"Float": 1.0}
    assert wrong.reason is not None
    assert "fp16 was asked and 100.0% Float" in wrong.reason


def test_settings_reach_the_builder(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    trt = load_rtx()
    order = _engine_build._Order(fixed_fp16, (), BuildOptions(memory_limit_mib=64))
    builder = trt.Builder(new_logger(trt, BuilderLog()))
    config = _engine_build._config(trt, builder, order)
    assert config.max_aux_streams == 0
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)  # the default
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert build(fixed_fp16, sm=["86"], memory_limit_mib=64).engine
    with pytest.raises(EngineError, match="memory limit is 0 MiB; expected at least 1"):
        build(fixed_fp16, memory_limit_mib=0)


def test_a_fixed_batch_refuses_another(fixed_fp16: Path) -> None:
    built = build(fixed_fp16, profiles=[ShapeProfile(4, 4, 4)])
    assert built.profiles == (ShapeProfile(4, 4, 4),)
    with pytest.raises(
        EngineError, match=r"batches of exactly 4, and profile 1:1:8 .* --batch dynamic"
    ):
        build(fixed_fp16, profiles=[ShapeProfile(1, 1, 8)])


def test_more_than_the_batch_free_is_refused(folder: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["logits"], "act")]
    path = save(folder / "sizes.onnx", nodes, [], ["N", "side"], ["N", "side"])
    with pytest.raises(EngineError, match=r"input image float32 \(N, N\) leaves more than the ba"):
        build(path)


def test_inputs_that_disagree_about_the_batch_are_refused() -> None:
    inputs = [TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (None, 3))]
    with pytest.raises(EngineError, match=r"a float32 \(2, 3\); b .* disagree about the batch"):
        resolve_profiles(inputs, [])


def test_turing_refuses_float32_products_before_building(
    free_fp32: Path, free_fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(free_fp16, sm=["75"], pin_figures=False).sm == ("75",)
    monkeypatch.setattr(_engine_build, "_config", lambda *_: pytest.fail("the builder was asked"))
    with pytest.raises(
        EngineError, match=r"1 matrix products .* float32 \(fc\); SM 75 .* SM 80 .* fp16"
    ):
        build(free_fp32, sm=["75", "86"])


def fp8_linear(path: Path) -> Path:
    """A product whose operands are quantised to E4M3."""
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "s", "z"], ["xq"], "quantise"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["x"], "dequantise"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], "weights"),
        helper.make_node("MatMul", ["x", "wd"], ["logits"], "fc"),
    ]
    e4m3 = TensorProto.FLOAT8E4M3FN
    weights = [
        weight("w", e4m3, WIDTH, OUT),
        helper.make_tensor("s", FP32, [], [1.0]),
        helper.make_tensor("z", e4m3, [], [0.0]),
    ]
    opset = 19  # the first that quantises to 8-bit floats
    return save(path, nodes, weights, [4, TOKENS, WIDTH], [4, TOKENS, OUT], opset=opset)


@pytest.mark.parametrize("sm", [["86"], ["86", "89"], []])
def test_fp8_is_refused_below_ada(
    folder: Path, sm: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fp8_linear(folder / "fp8.onnx")
    monkeypatch.setattr(_engine_build, "_config", lambda *_: pytest.fail("the builder was asked"))
    who = "SM 86" if sm else "a portable engine, which runs from SM 80 on,"
    with pytest.raises(EngineError, match=rf"are fp8 \(fc\); {who} cannot .* SM 89 is the first"):
        build(path, sm=sm)


def test_fp8_builds_for_ada(folder: Path) -> None:
    figures = build(fp8_linear(folder / "fp8.onnx"), sm=["89", "120"]).figures
    assert attest(figures, Precision.FP8).status is Status.PASSED


def test_bf16_is_refused_on_turing(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"are bfloat16 \(fc\); SM 75 cannot"):
        build(linear(folder / "bf16_75.onnx", BF16, 2), sm=["75"])


def test_a_memory_limit_that_is_too_low_is_told_what_would_do(folder: Path) -> None:
    path = attention(folder / "hungry.onnx", "N")
    profile = ShapeProfile(1, 1, 256)
    with pytest.raises(EngineError) as caught:
        build(path, sm=["86"], profiles=[profile], memory_limit_mib=1)
    found = re.search(
        r"1 MiB of scratch memory; at batch 256 .* --memory-limit (\d+)", str(caught.value)
    )
    assert found
    assert build(path, sm=["86"], profiles=[profile], memory_limit_mib=int(found[1])).engine


def test_optimisation_levels(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    for level in (-1, 6):
        with pytest.raises(EngineError, match=f"level is {level}; expected 0 .* to 5"):
            build(fixed_fp16, optimization_level=level)
    least = build(fixed_fp16, sm=["86"], optimization_level=0)
    assert "at optimization level 0" in least.log
    assert "at optimization level 0" not in fixed_build.log


# -- the path of TensorRT, with TensorRT-RTX handed in -----------------------------------------


def classic() -> BuilderModule:
    return BuilderModule(BACKEND_CLASSIC, load_rtx())


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
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
    paths = {TimingCache.open(tmp_path, fixed_fp16, "10.0").path}
    paths.add(TimingCache.open(tmp_path, free_fp16, "10.0").path)
    paths.add(TimingCache.open(tmp_path, fixed_fp16, "10.1").path)
    monkeypatch.setattr(_timing_cache, "device_name", lambda: "another")
    paths.add(TimingCache.open(tmp_path, fixed_fp16, "10.0").path)
    assert len(paths) == 4


def test_which_builder_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: None)
    assert choose_builder().backend == BACKEND_RTX
    with pytest.raises(UsageError, match="no builder 'trt'; known: auto, tensorrt, tensorrt-rtx"):
        choose_builder("trt")
    monkeypatch.setattr(_trt_choice, "require", lambda name: load_rtx())
    with pytest.raises(BackendError, match=r"no CUDA device was found: build with --backend tens"):
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


def test_unknown_targets(fixed_fp16: Path) -> None:
    known = ", ".join(supported_sms(load_rtx()))
    with pytest.raises(EngineError, match=f"cannot target SM 61; it targets {known}"):
        build(fixed_fp16, sm=["61"])
    with pytest.raises(EngineError, match="TensorRT-RTX has no Hopper"):
        build(fixed_fp16, sm=["86", "90"])


def test_native_needs_a_device(fixed_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: None)
    with pytest.raises(BackendError, match="no CUDA device was found: name the targets"):
        build(fixed_fp16, sm=["native"])
    monkeypatch.setattr(_trt_choice, "device_capability", lambda: "89")
    assert build(fixed_fp16, sm=["native"]).sm == ("89",)


def test_a_missing_file(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no ONNX file at .*nowhere\.onnx"):
        build(folder / "nowhere.onnx")


def test_a_file_that_is_no_model(folder: Path) -> None:
    path = folder / "text.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"text\.onnx is no readable ONNX file \("):
        build(path)


def test_a_failed_build_leaves_no_builder_to_the_garbage_collector(folder: Path) -> None:
    """Collected inside a callback of the next build, one would hang the process."""
    node = helper.make_node("NoSuchOperator", ["image"], ["logits"], "mystery")
    path = save(folder / "refused.onnx", [node], [], [1, 3], [1, 3])
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(EngineError) as caught:
            build(path)
        kinds = [type(found) for found in gc.get_objects()]
    finally:
        gc.enable()
    assert caught.value.__traceback__ is not None
    assert EngineError in kinds
    # the collector sees none of TensorRT's own types; its logger is of ours, and held by a builder
    assert not [kind for kind in kinds if kind.__qualname__ == "new_logger.<locals>.Logger"]


def test_the_parser_names_the_node(folder: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["a"], "fine"),
        helper.make_node("NoSuchOperator", ["a"], ["logits"], "mystery"),
    ]
    path = save(folder / "unknown.onnx", nodes, [], [1, 3], [1, 3])
    with pytest.raises(EngineError, match=r"node 'mystery' \(NoSuchOperator\): ") as caught:
        build(path)
    assert "\n" not in str(caught.value)
    assert "Plugin not found" in str(caught.value)


def test_a_build_that_fails_tells_the_last_errors(
    free_fp32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine_build, "check_computable", lambda *_: None)
    with pytest.raises(EngineError, match=r"made no engine from .*FP32 GEMM is not supported"):
        build(free_fp32, sm=["75"])


def test_progress_counts_up(fixed_fp16: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    build(fixed_fp16, progress=lambda *step: steps.append(step))
    assert {phase for phase, _, _ in steps} >= {"Building engine"}
    assert all(1 <= done <= of for _, done, of in steps)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_progress_that_raises_cancels(
    fixed_fp16: Path, fixed_build: EngineBuild, error: BaseException
) -> None:
    calls: list[str] = []

    def progress(phase: str, done: int, steps: int) -> None:
        calls.append(phase)
        raise error

    before = sorted(fixed_fp16.parent.iterdir())
    with pytest.raises(type(error)) as caught:
        build(fixed_fp16, sm=["86"], progress=progress)
    assert caught.value is error
    assert len(calls) == 1
    assert sorted(fixed_fp16.parent.iterdir()) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "engine-build"]
    # nothing of the cancelled build is left in the process either
    assert build(fixed_fp16, sm=["86"]).engine == fixed_build.engine


def test_ctrl_c_cancels(fixed_fp16: Path) -> None:
    asked = threading.Event()

    def progress(phase: str, done: int, steps: int) -> None:
        if not asked.is_set():
            asked.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(fixed_fp16, sm=["86"], progress=progress)
    assert asked.is_set()


def test_ctrl_c_with_the_monitor_stopped(folder: Path) -> None:
    """The builder is told to stop: it does not go on to the end of its phases."""
    path = attention(folder / "cancelled.onnx", 2)
    whole: list[str] = []
    build(path, sm=["86"], progress=lambda phase, *_: whole.append(phase))
    seen: list[str] = []

    def progress(phase: str, done: int, steps: int) -> None:
        seen.append(phase)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, sm=["86"], progress=progress)
    assert len(seen) == 5 < len(whole)


def test_runnable_here_says_why_not(fixed_build: EngineBuild) -> None:
    if device_capability() is not None:
        pytest.skip("this machine has a CUDA device")
    verdict = runnable_here(fixed_build.engine)
    assert not verdict.runs
    assert verdict.why_not is not None
    assert re.fullmatch(r"no CUDA device: .+ \(cudaError \d+\)", verdict.why_not)


@pytest.mark.gpu
def test_a_portable_engine_loads_on_a_supported_device(fixed_fp16: Path) -> None:
    device = device_capability()
    assert device is not None
    if device not in supported_sms(load_rtx()):
        pytest.skip(f"TensorRT-RTX does not support SM {device}")
    assert runnable_here(build(fixed_fp16, sm=["native"]).engine).runs


def test_an_engine_that_is_none_does_not_run() -> None:
    verdict = runnable_here(b"not an engine")
    assert not verdict.runs
    assert verdict.why_not


def test_trtexec_line(fixed_build: EngineBuild, free_build: EngineBuild) -> None:
    assert trtexec_line(fixed_build, Path("a b.onnx"), Path("m.engine")) == (
        "tensorrt_rtx '--onnx=a b.onnx' --saveEngine=m.engine --skipInference "
        "--profilingVerbosity=detailed --maxAuxStreams=0 --noTF32 --computeCapabilities=86"
    )
    assert trtexec_line(free_build, Path("m.onnx"), Path("m.engine")).endswith(
        "--minShapes=image:1x16x32 --optShapes=image:2x16x32 --maxShapes=image:8x16x32"
    )
