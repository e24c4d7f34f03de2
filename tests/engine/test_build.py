"""Real engines of tiny graphs, built without a GPU."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import threading
from pathlib import Path

import pytest

from t2t_deploy.engine import BACKEND_RTX, device_capability, supported_sms, why_not_loaded
from t2t_deploy.engine import _worker as _engine_worker
from t2t_deploy.engine._build import BuildJob, BuildOptions, EngineBuild, trtexec_line
from t2t_deploy.engine._figures import attest
from t2t_deploy.engine._module import BuilderLog, load_tensorrt, new_logger
from t2t_deploy.errors import EngineError
from t2t_deploy.types import Precision, ShapeProfile, Status, TensorSpec

from ..children import children
from ..needs import needs_tensorrt_rtx
from ..program import finish
from .graphs import BF16, OUT, TOKENS, WIDTH, attention, build, linear

pytestmark = needs_tensorrt_rtx


def test_what_a_build_holds(fixed_build: EngineBuild) -> None:
    assert fixed_build.backend == "tensorrt-rtx"
    assert fixed_build.backend_version == load_tensorrt().__version__
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
    assert fixed_build.sized.moved_bytes == figures.moved_bytes == moved
    assert fixed_build.pinned is None


def test_same_bytes_here_and_in_another_process(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    assert build(fixed_fp16, sm=["86"]).engine == fixed_build.engine
    code = (
        "import hashlib, pathlib, sys; from t2t_deploy.engine import BuildOptions, build_engine; "
        "engine = build_engine(pathlib.Path(sys.argv[1]), BuildOptions(sm=['86'])).engine; "
        "print(hashlib.sha256(engine).hexdigest())"
    )
    done = finish(fixed_fp16, code=code)
    assert done.out.strip() == hashlib.sha256(fixed_build.engine).hexdigest()


def test_the_network_name_is_in_the_engine(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    assert b"t2t_deploy" in fixed_build.engine
    named = build(fixed_fp16, sm=["86"], network_name="by_another_name")
    assert b"by_another_name" in named.engine
    assert named.options.network_name == "by_another_name"


def test_same_input_same_bytes_with_a_free_batch(free_fp32: Path, free_build: EngineBuild) -> None:
    again = build(free_fp32, sm=["86", "86"], profiles=[ShapeProfile(1, 2, 8)], pin_figures=False)
    assert again.engine == free_build.engine
    assert again.pinned is None
    assert again.sized.moved_bytes is None


def test_a_free_batch_is_counted_at_the_tuned_one(free_build: EngineBuild) -> None:
    assert free_build.inputs[0].shape == (None, TOKENS, WIDTH)
    assert free_build.figures.moved_bytes is None
    assert free_build.pinned is not None
    rows = 2 * TOKENS
    # one gemm, then bias and relu
    moved = rows * (WIDTH + OUT) * 4 + rows * (OUT + OUT) * 4
    assert free_build.sized.moved_bytes == free_build.pinned.moved_bytes == moved
    assert free_build.figures.macs_by_dtype == {"Float": rows * WIDTH * OUT}


def test_a_free_batch_without_a_profile_takes_the_default(free_fp16: Path) -> None:
    built = build(free_fp16, pin_figures=False)
    assert built.profiles == (ShapeProfile(1, 1, 32),)
    assert "MinShape: [1,16,32], OptShape: [1,16,32], MaxShape: [32,16,32]" in built.log


def test_several_profiles(graph_folder: Path) -> None:
    path = attention(graph_folder / "free_attention.onnx", "N")
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


def test_the_wrong_precision_fails_attestation(
    fixed_build: EngineBuild, free_build: EngineBuild, tmp_path: Path
) -> None:
    bf16 = build(linear(tmp_path / "bf16.onnx", BF16, 2), sm=["86"])
    for built, precision in (
        (fixed_build, Precision.FP16),
        (free_build, Precision.FP32),
        (bf16, Precision.BF16),
    ):
        assert attest(built.figures, precision).status is Status.PASSED
    assert attest(bf16.figures, Precision.FP16).status is Status.FAILED
    wrong = attest(free_build.figures, Precision.FP16)
    assert (wrong.status, wrong.found) == (Status.FAILED, {"Float": 1.0})
    assert wrong.reason is not None and "fp16 was asked and 100.0% Float" in wrong.reason


def test_settings_reach_the_builder(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    trt = load_tensorrt()
    options = BuildOptions(memory_limit_mib=64)
    order = BuildJob(fixed_fp16, BACKEND_RTX, trt.__name__, (), options)
    builder = trt.Builder(new_logger(trt, BuilderLog()))
    config = _engine_worker._config(trt, builder, order)
    assert config.max_aux_streams == 0
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)  # the default
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert build(fixed_fp16, sm=["86"], memory_limit_mib=64).engine
    with pytest.raises(EngineError, match="memory limit is 0 MiB; expected at least 1"):
        build(fixed_fp16, memory_limit_mib=0)


def test_optimisation_levels(fixed_fp16: Path, fixed_build: EngineBuild) -> None:
    for level in (-1, 6):
        with pytest.raises(EngineError, match=f"level is {level}; expected 0 .* to 5"):
            build(fixed_fp16, optimization_level=level)
    least = build(fixed_fp16, sm=["86"], optimization_level=0)
    assert "at optimization level 0" in least.log
    assert "at optimization level 0" not in fixed_build.log


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

    before, running = sorted(fixed_fp16.parent.iterdir()), children()
    with pytest.raises(type(error)) as caught:
        build(fixed_fp16, sm=["86"], progress=progress)
    assert caught.value is error
    assert len(calls) == 1
    assert sorted(fixed_fp16.parent.iterdir()) == before
    assert children() <= running
    assert build(fixed_fp16, sm=["86"]).engine == fixed_build.engine


def test_ctrl_c_cancels(fixed_fp16: Path) -> None:
    asked, running = threading.Event(), children()

    def progress(*_: object) -> None:
        if not asked.is_set():
            asked.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        build(fixed_fp16, sm=["86"], progress=progress)
    assert asked.is_set() and children() <= running


def test_loading_says_why_not(fixed_build: EngineBuild) -> None:
    assert why_not_loaded(b"not an engine")
    if device_capability() is not None:
        pytest.skip("this machine has a CUDA device")
    why_not = why_not_loaded(fixed_build.engine)
    assert why_not is not None
    assert re.fullmatch(r"no CUDA device: .+ \(cudaError \d+\)", why_not)


@pytest.mark.gpu
def test_a_portable_engine_loads_on_a_supported_device(fixed_fp16: Path) -> None:
    device = device_capability()
    assert device is not None
    if device not in supported_sms(load_tensorrt()):
        pytest.skip(f"TensorRT-RTX does not support SM {device}")
    assert why_not_loaded(build(fixed_fp16, sm=["native"]).engine) is None


def test_trtexec_line(fixed_build: EngineBuild, free_build: EngineBuild) -> None:
    assert trtexec_line(fixed_build, Path("a b.onnx"), Path("m.engine")) == (
        "tensorrt_rtx '--onnx=a b.onnx' --saveEngine=m.engine --skipInference "
        "--profilingVerbosity=detailed --maxAuxStreams=0 --noTF32 --computeCapabilities=86"
    )
    assert trtexec_line(free_build, Path("m.onnx"), Path("m.engine")).endswith(
        "--minShapes=image:1x16x32 --optShapes=image:2x16x32 --maxShapes=image:8x16x32"
    )
