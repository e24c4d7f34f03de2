"""Where a picture's time goes on a CPU, node by node, and how far off the limit is.

Each file is timed under its runtime's own profiler, ONNX Runtime's, or OpenVINO's for files made
for it, between measurements of how fast large products run on this machine: float32 through torch
(oneDNN) and ONNX Runtime, bf16 through torch, 8-bit through ONNX Runtime, unsigned by unsigned and
by signed. The limit of a file is the time its products would take at the fastest of those rates.

    python tools/cpu_profile.py --variant 14          # plain, --target cpu, 8-bit
    python tools/cpu_profile.py FILE.onnx ...
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy._processor import read_processor
from t2t_deploy.commands import (
    QuantizationMode,
    export_onnx,
    quantize_onnx,
)
from t2t_deploy.commands._baselines import plain_export
from t2t_deploy.model import config_from_dict, load_reference
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Manifest, Workspace, manifest_path_for, read_manifest

PEAK_SIDE = 1024
PEAK_SECONDS = 0.7
WARM_UP = 5
KINDS = {
    "8-bit products": {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"}
    | {"QLinearMatMul", "QGemm"},
    "float products": {"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"},
    "attention": {"MultiHeadAttention", "Attention"},
    "normalisation": {"LayerNormalization", "SkipLayerNormalization", "Softmax", "MVN"},
    "activation": {"Gelu", "BiasGelu", "FastGelu", "Erf", "QuickGelu"},
    "quantising": {"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"},
    "moving": {"Reshape", "Transpose", "Slice", "Concat", "Pad", "Split", "Gather", "Unsqueeze"}
    | {"Squeeze", "Expand", "Cast", "Shape", "ReorderInput", "ReorderOutput", "DepthToSpace"}
    | {"Concatenation", "StridedSlice", "Reorder", "Broadcast"},  # OpenVINO's names
}
OTHER = "other arithmetic"


@dataclass(frozen=True, slots=True)
class Profile:
    """ms of one call, by kind of operator and by operator; multiply-adds by kind of product."""

    run_ms: float
    kind_ms: dict[str, float]
    operators: dict[str, tuple[int, float]]
    float_macs: float
    eight_bit_macs: float
    bf16_macs: float = 0.0


@dataclass(frozen=True, slots=True)
class Peaks:
    """10^9 multiply-adds per second of a large product on this machine, by who computes it."""

    torch_float: float
    ort_float: float
    torch_bf16: float
    ort_unsigned: float
    """codes of both operands unsigned"""
    ort_signed: float
    """unsigned by signed codes, as this processor multiplies them exactly"""

    def limit_ms(self, profile: Profile) -> float:
        """What the products of a profile take at the fastest rate of their type."""
        fastest_float = max(self.torch_float, self.ort_float)
        eight_bit = max(self.ort_unsigned, self.ort_signed)
        parts = (
            profile.float_macs / fastest_float,
            profile.bf16_macs / max(fastest_float, self.torch_bf16),
            profile.eight_bit_macs / eight_bit,
        )
        return sum(parts) / 1e6


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--variant", help="Make the plain export, --target cpu and 8 bits of this variant.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True, help="In a round.")
def main(files: Sequence[Path], variant: str | None, threads: int, rounds: int, runs: int) -> None:
    """Profile ONNX files in ONNX Runtime on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = {path.name: path for path in files}
        if variant is not None:
            chosen |= _made(variant, Path(folder))
        if not chosen:
            raise click.UsageError("nothing to profile; give files, or --variant such as 14")
        peaks: list[Peaks] = []
        found: dict[str, list[Profile]] = {name: [] for name in chosen}
        for _ in range(rounds):
            peaks.append(measure_peaks(threads))
            for name, path in chosen.items():
                known = _manifest(path)
                if known is not None and known.target == Target.OPENVINO.value:
                    lowered = Precision.BF16 in (known.base, known.precision)
                    found[name].append(
                        profile_openvino(path, bf16=lowered, threads=threads, runs=runs)
                    )
                else:
                    found[name].append(
                        profile(path, threads=threads, runs=runs, folder=Path(folder))
                    )
        _print(peaks, found, threads)


def measure_peaks(threads: int, side: int = PEAK_SIDE) -> Peaks:
    """Rates of (side, side) x (side, side) products."""
    rng = np.random.default_rng(0)
    left = rng.standard_normal((side, side)).astype(np.float32)
    codes = rng.integers(0, 256, (side, side)).astype(np.uint8)
    torch.set_num_threads(threads)
    tensor = torch.from_numpy(left)
    halves = tensor.bfloat16()
    multiply = _product("MatMul", left, threads)
    unsigned = _product("MatMulInteger", codes, threads)
    signed = _product("MatMulInteger", codes.view(np.int8), threads)
    return Peaks(
        torch_float=_rate(lambda: torch.mm(tensor, tensor), side),
        ort_float=_rate(lambda: multiply(left), side),
        torch_bf16=_rate(lambda: torch.mm(halves, halves), side),
        ort_unsigned=_rate(lambda: unsigned(codes), side),
        ort_signed=_rate(lambda: signed(codes), side),
    )


def _product(operator: str, weight: np.ndarray, threads: int) -> Callable[[np.ndarray], Any]:
    integers = operator == "MatMulInteger"
    kind = TensorProto.UINT8 if integers else TensorProto.FLOAT
    given = TensorProto.INT32 if integers else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, weight.shape)],
        [helper.make_tensor_value_info("y", given, weight.shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), _options(threads), providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x})


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # as the tool's own sessions: exact 8-bit products on processors without VNNI
    exact = "0" if read_processor().has_vnni else "1"
    options.add_session_config_entry("session.x64quantprecision", exact)
    return options


def _rate(multiply: Callable[[], object], side: int) -> float:
    multiply()
    samples = []
    end = time.perf_counter() + PEAK_SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        multiply()
        samples.append(time.perf_counter() - start)
    return side**3 / statistics.median(samples) / 1e9


def profile(path: Path, *, threads: int, runs: int, folder: Path) -> Profile:
    """Time a file's nodes over ``runs`` calls at batch 1, after a few that do not count."""
    options = _options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    shape = [dim if isinstance(dim, int) else 1 for dim in taken.shape]
    picture = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for _ in range(WARM_UP + runs):
        session.run(None, {taken.name: picture})
    written = Path(session.end_profiling())
    events = json.loads(written.read_text())
    written.unlink()
    calls = [event for event in events if event["name"] == "model_run"][WARM_UP:]
    kind_ms: dict[str, float] = defaultdict(float)
    operators: dict[str, list[float]] = defaultdict(list)
    macs: dict[str, float] = defaultdict(float)
    for event in events:
        name = event["name"]
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        if event["ts"] < calls[0]["ts"]:
            continue
        operator = event["args"]["op_name"]
        kind = kind_of(operator)
        kind_ms[kind] += event["dur"] / 1e3 / runs
        operators[operator].append(event["dur"] / 1e3)
        macs[kind] += multiply_adds(operator, event["args"]) / runs
    return Profile(
        run_ms=statistics.median(call["dur"] for call in calls) / 1e3,
        kind_ms=dict(kind_ms),
        operators={op: (len(ms) // runs, sum(ms) / runs) for op, ms in operators.items()},
        float_macs=macs["float products"] + macs["attention"],
        eight_bit_macs=macs["8-bit products"],
    )


def _manifest(path: Path) -> Manifest | None:
    """What is known of a file; None of one that this project did not make."""
    known = manifest_path_for(path)
    return read_manifest(known) if known.is_file() else None


def profile_openvino(path: Path, *, bf16: bool, threads: int, runs: int) -> Profile:
    """Time the layers that OpenVINO compiled, as `profile` does. bf16: as its hint."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    (taken,) = model.inputs
    shape = [dim.get_length() if dim.is_static else 1 for dim in taken.get_partial_shape()]
    model.reshape(shape)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
    }
    compiled = core.compile_model(model, "CPU", settings | {"PERF_COUNT": "YES"})
    plain = core.compile_model(model, "CPU", settings).create_infer_request()
    request = compiled.create_infer_request()
    picture = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    layers = {}
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        names = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
        layers[layer.get_friendly_name()] = (layer, info["runtimePrecision"].astype(str), names)
    kind_ms: dict[str, float] = defaultdict(float)
    operators: dict[str, list[float]] = defaultdict(list)
    macs: dict[str, float] = defaultdict(float)
    calls = []
    for turn in range(WARM_UP + runs):
        start = time.perf_counter()
        plain.infer([picture])
        calls.append((time.perf_counter() - start) * 1e3)
        request.infer([picture])
        if turn < WARM_UP:
            continue
        for seen in request.profiling_info:
            ms = seen.real_time.total_seconds() * 1e3
            layer, computes, names = layers.get(seen.node_name, (None, "", ""))
            if not ms or layer is None:
                continue
            kind, count = _openvino_layer(layer, seen.node_type, computes, names)
            kind_ms[kind] += ms / runs
            operators[f"{seen.node_type} {computes}"].append(ms)
            number = "8-bit" if kind == "8-bit products" else computes
            macs[number] += count / runs
    return Profile(
        run_ms=statistics.median(calls[WARM_UP:]),
        kind_ms=dict(kind_ms),
        operators={op: (len(ms) // runs, sum(ms) / runs) for op, ms in operators.items()},
        float_macs=macs["f32"],
        eight_bit_macs=macs["8-bit"],
        bf16_macs=macs["bf16"],
    )


def _openvino_layer(layer: Any, operator: str, computes: str, names: str) -> tuple[str, float]:
    """The kind of a compiled layer, and its multiply-adds."""
    out = [int(dim) for dim in layer.get_output_shape(0)]
    inputs = [[int(dim) for dim in one.get_shape()] for one in layer.inputs()]
    if operator in ("FullyConnected", "MatMul") or operator.startswith("FullyConnected"):
        kind = "8-bit products" if computes in ("i8", "u8") else "float products"
        return kind, float(math.prod(out) * inputs[0][-1])
    if operator == "Subgraph" and "Softmax" in names and "MatMul" in names:
        keys = max(inputs[1][1:3])  # tokens are more than heads
        return "attention", 2.0 * math.prod(out) * keys
    return kind_of(operator), 0.0


def kind_of(operator: str) -> str:
    """What an operator does with its inputs, in the words of the table."""
    return next((kind for kind, members in KINDS.items() if operator in members), OTHER)


def multiply_adds(operator: str, args: dict[str, Any]) -> float:
    """Multiply-adds of a profiled node, by the shapes the profiler tells; 0 of no product."""
    shapes: list[list[int]] = [next(iter(one.values())) for one in args["input_type_shape"]]
    out: list[int] = next(iter(args["output_type_shape"][0].values()))
    if operator in KINDS["attention"]:
        (batch, queries, dim), (_, keys, _) = shapes[0], shapes[1]
        return 2.0 * batch * queries * keys * dim
    if kind_of(operator) not in ("8-bit products", "float products"):
        return 0.0
    if "Conv" in operator:
        return float(math.prod(out) * math.prod(shapes[1][1:]))
    left = shapes[0]  # the second operand's shape is lost where its weights are packed
    transposed = len(left) > 1 and left[-2] != out[-2] and left[-1] == out[-2]
    return float(math.prod(out) * left[-2 if transposed else -1])


def _made(variant: str, folder: Path) -> dict[str, Path]:
    """The plain export, the one for the CPU, and that one in 8 bits."""
    workspace = Workspace(folder)
    artifact = export_onnx(variant=variant, target=Target.CPU, workspace=workspace)
    plain = folder / "plain.onnx"
    manifest = artifact.require_manifest()
    reference = load_reference(workspace.weights(manifest), config_from_dict(manifest.config))
    plain_export(reference, plain, batch=1, dynamo=False)
    request: dict[str, Any] = {
        "artifact": artifact.path,
        "mode": QuantizationMode.DYNAMIC,
        "speed": False,
    }
    eight_bit = quantize_onnx(**request, workspace=workspace)
    return {"plain": plain, "--target cpu": artifact.path, "8-bit": eight_bit.path}


def _print(peaks: Sequence[Peaks], found: dict[str, list[Profile]], threads: int) -> None:
    def middle(values: Sequence[float]) -> float:
        return statistics.median(values)

    click.echo(f"{threads} threads; medians of {len(peaks)} rounds; 10^9 multiply-adds per second:")
    for label, rates in (
        ("float32, torch (oneDNN)", [p.torch_float for p in peaks]),
        ("float32, ONNX Runtime", [p.ort_float for p in peaks]),
        ("bf16, torch (oneDNN)", [p.torch_bf16 for p in peaks]),
        ("8-bit unsigned, ONNX Runtime", [p.ort_unsigned for p in peaks]),
        ("8-bit u8 x s8, ONNX Runtime", [p.ort_signed for p in peaks]),
    ):
        click.echo(f"  {label:30} {middle(rates):7.1f}")
    names = list(found)
    click.echo("\n| ms of a call | " + " | ".join(names) + " |")
    click.echo("|---|" + "---|" * len(names))
    kinds = [*KINDS, OTHER]
    for kind in kinds:
        cells = [middle([p.kind_ms.get(kind, 0.0) for p in found[name]]) for name in names]
        click.echo(f"| {kind} | " + " | ".join(f"{ms:.2f}" for ms in cells) + " |")
    rows: dict[str, list[str]] = defaultdict(list)
    for name in names:
        profiles = found[name]
        whole = middle([p.run_ms for p in profiles])
        limits = [peak.limit_ms(p) for p, peak in zip(profiles, peaks, strict=True)]
        products = ("8-bit products", "float products", "attention")
        spent = [sum(p.kind_ms.get(kind, 0.0) for kind in products) for p in profiles]
        rows["whole call"].append(f"{whole:.2f}")
        rows["nodes"].append(str(sum(count for count, _ in profiles[0].operators.values())))
        macs = (profiles[0].float_macs, profiles[0].bf16_macs, profiles[0].eight_bit_macs)
        rows["10^9 multiply-adds, float / bf16 / 8-bit"].append(
            " / ".join(f"{one / 1e9:.2f}" for one in macs)
        )
        rows["products at those rates: the limit"].append(f"{middle(limits):.2f}")
        ratios = [p.run_ms / limit for p, limit in zip(profiles, limits, strict=True)]
        rows["whole call / limit"].append(f"{middle(ratios):.2f}")
        shares = [limit / ms for limit, ms in zip(limits, spent, strict=True)]
        rows["products and attention, share of those rates"].append(f"{middle(shares):.0%}")
    for label, words in rows.items():
        click.echo(f"| {label} | " + " | ".join(words) + " |")
    for name in names:
        last = found[name][-1].operators
        click.echo(f"\n{name}, by operator (count, ms; last round):")
        for operator, (count, ms) in sorted(last.items(), key=lambda item: -item[1][1])[:12]:
            click.echo(f"  {operator:28} {count:4d} {ms:8.2f}")


if __name__ == "__main__":
    main()
