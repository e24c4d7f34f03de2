"""The profile of a file on a CPU: what is counted, and that the table adds up."""

from __future__ import annotations

from pathlib import Path

import cpu_profile
import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

from .needs import needs_openvino
from .onnx_models import constants, save_model

BATCH, TOKENS, WIDTH, OUT = 1, 24, 32, 48


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One product with constant weights, one of two activations, one transposition."""
    weight = np.random.default_rng(0).standard_normal((WIDTH, OUT)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["y"]),
        helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "turned"], ["product"]),
        helper.make_node("Softmax", ["product"], ["weights"]),
        helper.make_node("Transpose", ["weights"], ["logits"], perm=[1, 0, 2]),
    ]
    shapes = ([BATCH, TOKENS, WIDTH], [TOKENS, BATCH, TOKENS])
    return save_model(tmp_path / "model.onnx", nodes, constants({"weight": weight}), *shapes)


def test_products_are_counted_by_shape(file: Path, tmp_path: Path) -> None:
    found = cpu_profile.profile(file, threads=1, runs=3, folder=tmp_path)
    assert found.float_macs == TOKENS * WIDTH * OUT + TOKENS * OUT * TOKENS
    assert found.eight_bit_macs == 0
    assert sum(count for count, _ in found.operators.values()) in (4, 5)  # one may be fused
    assert sum(found.kind_ms.values()) == pytest.approx(
        sum(ms for _, ms in found.operators.values())
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@needs_openvino
def test_products_of_openvino_are_counted(file: Path) -> None:
    found = cpu_profile.profile_openvino(file, bf16=False, threads=1, runs=3)
    constant, activations = TOKENS * WIDTH * OUT, TOKENS * OUT * TOKENS
    assert found.float_macs == constant + activations
    assert found.eight_bit_macs == found.bf16_macs == 0
    assert found.kind_ms["float products"] > 0 and found.run_ms > 0


def test_the_limit_is_at_the_fastest_rate_of_each_type() -> None:
    peaks = cpu_profile.Peaks(100, 50, torch_bf16=200, ort_unsigned=150, ort_signed=400)
    profile = cpu_profile.Profile(9.0, {}, {}, 1e9, 4e9, bf16_macs=2e9)
    assert peaks.limit_ms(profile) == pytest.approx(10 + 10 + 10)
    slow = cpu_profile.Peaks(100, 50, torch_bf16=10, ort_unsigned=150, ort_signed=40)
    assert slow.limit_ms(profile) == pytest.approx(10 + 20 + 4e9 / 150 / 1e6)


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "macs"),
    [
        ("MatMul", [[2, 6, 5, 7], [2, 6, 7, 3]], [2, 6, 5, 3], 2 * 6 * 5 * 7 * 3),
        ("Gemm", [[10, 7], [3]], [10, 3], 10 * 7 * 3),  # packed weights lost their shape
        ("FusedMatMul", [[1, 7, 5], [1, 7, 3]], [1, 5, 3], 5 * 7 * 3),  # the first transposed
        ("DynamicQuantizeMatMul", [[1, 10, 7], []], [1, 10, 3], 10 * 7 * 3),
        ("MultiHeadAttention", [[1, 9, 8], [1, 9, 8], [1, 9, 8]], [1, 9, 8], 2 * 9 * 9 * 8),
        ("Conv", [[1, 4, 8, 8], [6, 2, 3, 3]], [1, 6, 8, 8], 6 * 64 * 2 * 9),
        ("Add", [[1, 4], [4]], [1, 4], 0),
    ],
)
def test_multiply_adds(
    operator: str, inputs: list[list[int]], output: list[int], macs: int
) -> None:
    args = {
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    assert cpu_profile.multiply_adds(operator, args) == macs


def test_the_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_profile, "PEAK_SECONDS", 0.01)
    done = CliRunner().invoke(cpu_profile.main, [str(file), "--rounds", "1", "--runs", "2"])
    assert done.exit_code == 0, done.output
    lines = [line.split("|") for line in done.output.splitlines() if line.startswith("|")]
    cells = {line[1].strip(): line[2].strip() for line in lines}
    assert cells["ms of a call"] == "model.onnx"
    assert float(cells["8-bit products"]) == 0
    assert float(cells["whole call / limit"]) > 0
    nothing = CliRunner().invoke(cpu_profile.main, [])
    assert nothing.exit_code == 2
    assert "nothing to profile; give files, or --variant such as 14" in nothing.output
