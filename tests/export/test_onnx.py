from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.errors import ExportError, UsageError
from t2t_deploy.export import onnx_from_deploy
from t2t_deploy.export._fused_nodes import fuse_nodes
from t2t_deploy.graph import check_graph, summarise_graph
from t2t_deploy.model import (
    T2TViT,
    config_for_variant,
    random_state_dict,
    reference_from_state_dict,
)
from t2t_deploy.types import Precision, Target

from ..onnx_models import Shape, constants, model_of
from .conftest import KINDS, deployed, drawn, graph_error, reference_of


def exported(
    reference: T2TViT | str,
    soft_split: str = "auto",
    performer: str = "auto",
    *,
    batch: int | None = None,
    precision: Precision = Precision.FP32,
    opset: int = 18,
    target: Target = Target.PORTABLE,
) -> onnx.ModelProto:
    deploy = deployed(reference, target, soft_split, performer, precision)
    traced = onnx_from_deploy(deploy, batch=batch, opset=opset)
    return check_graph(traced, batch=batch, contrib=deploy.strategies.contrib)


@pytest.mark.parametrize("soft_split", ["unfold", "conv"])
def test_dynamic_batch_equals_the_reference_at_any_batch(
    reference: T2TViT, soft_split: str
) -> None:
    model = exported(reference, soft_split)
    for batch in (1, 2, 5):
        assert graph_error(model, reference, batch) < 2e-6


def test_fixed_batch_has_no_free_dimension(reference: T2TViT) -> None:
    model = exported(reference, batch=3)
    assert [spec.shape for spec in summarise_graph(model).inputs] == [(3, 3, 32, 32)]
    assert graph_error(model, reference) < 2e-6


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("opset", [18, 23])
def test_the_cpu_graph_has_one_operator_for_attention(
    kind: str, reference: T2TViT, batch: int | None, opset: int
) -> None:
    """All its tensors are typed, which `check_graph` holds, although no tool infers its types."""
    model = exported(reference, target=Target.CPU, batch=batch, opset=opset)
    blocks = KINDS[kind].depth
    summary = summarise_graph(model)
    assert summary.opset == opset
    fused = summary.ops["MultiHeadAttention" if opset == 18 else "Attention"]
    assert ("com.microsoft" in {entry.domain for entry in model.opset_import}) == (opset == 18)
    assert fused == (blocks if kind == "se" else blocks - 1)
    assert graph_error(model, reference) < 2e-6
    for node in model.graph.node:  # the wrong version
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f = 3.0
    assert graph_error(model, reference) > 1e-5


@pytest.mark.parametrize("batch", [None, 3])
def test_the_cuda_graph_has_one_operator_for_each_kernel(
    kind: str, reference: T2TViT, batch: int | None
) -> None:
    model = exported(reference, target=Target.CUDA, batch=batch)
    config = KINDS[kind]
    ops = summarise_graph(model).ops
    tokens = 2 if kind == "transformer" else 0
    assert ops["MultiHeadAttention"] == config.depth + tokens
    # the norms that no sum precedes: of splits, of the first block, the last, and of dense blocks
    alone = 4 + (3 if kind == "dense" else 0)
    assert ops["LayerNormalization"] == alone
    assert ops["SkipLayerNormalization"] == 2 + 2 * config.depth + 1 + 2 - alone
    assert ops["BiasGelu"] == 2 + config.depth + (1 if kind == "dense" else 0)
    assert ops.get("Gelu", 0) == (2 * config.depth if kind == "ghost" else 0)
    assert not {"Erf", "Gemm"} & ops.keys()
    assert graph_error(model, reference) < 2e-6


def test_the_ncnn_graph_has_no_operator_whose_axis_is_lost(kind: str, reference: T2TViT) -> None:
    model = exported(reference, target=Target.NCNN)
    assert not [op for op in summarise_graph(model).ops if op.startswith("Reduce")]
    assert graph_error(model, reference) < 2e-6


@pytest.mark.parametrize("soft_split", ["conv", "centred,folded,folded"])
def test_every_split_of_the_cuda_graph_gives_typed_tensors(soft_split: str) -> None:
    reference = reference_of(KINDS["transformer"])
    model = exported(reference, soft_split, target=Target.CUDA)
    assert graph_error(model, reference) < 2e-6


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        ("MultiHeadAttention", {"scale": 3.0}),
        ("SkipLayerNormalization", {"epsilon": 0.1}),
        ("SkipLayerNormalization", {"bias": None}),
        ("BiasGelu", {"op": "FastGelu"}),  # by tanh
    ],
)
def test_a_wrong_operator_of_the_cuda_graph_is_seen(op: str, wrong: dict[str, Any]) -> None:
    reference = reference_of(KINDS["performer"])
    model = exported(reference, target=Target.CUDA)
    for node in model.graph.node:
        if node.op_type == op:
            node.op_type = wrong.get("op", op)
            if "bias" in wrong:
                del node.input[4:]
            for attribute in node.attribute:
                if attribute.name in wrong:
                    attribute.f = wrong[attribute.name]
    assert graph_error(model, reference) > 1e-5


def test_a_bias_that_something_else_reads_stays_a_sum() -> None:
    shape = (1, 2, 4)
    nodes = [
        helper.make_node("Add", ["image", "b"], ["biased"]),
        helper.make_node("Add", ["image", "biased"], ["total"]),
        helper.make_node("LayerNormalization", ["total", "b", "b"], ["normed"], epsilon=1e-5),
        helper.make_node("Mul", ["normed", "biased"], ["logits"]),
    ]
    model = fuse_nodes(model_of(nodes, constants({"b": np.ones(4, np.float32)}), shape, shape))
    assert [node.op_type for node in model.graph.node] == ["Add", "SkipLayerNormalization", "Mul"]
    assert len(model.graph.node[1].input) == 4


@pytest.mark.parametrize(
    ("target", "precision", "opset", "said"),
    [
        (Target.CPU, Precision.FP32, 21, "opset is 21; expected 17 to 20, or 23"),
        (Target.CPU, Precision.FP32, 16, "opset is 16; expected 17 to 20, or 23"),
        (Target.CPU, Precision.FP16, 23, "which target cpu has in fp32; expected 17 to 20"),
        (Target.CUDA, Precision.FP32, 23, "which target cpu has in fp32; expected 17 to 20"),
        (Target.PORTABLE, Precision.FP32, 23, "which target cpu has in fp32; expected 17 to 20"),
    ],
)
def test_an_opset_that_nothing_writes(
    target: Target, precision: Precision, opset: int, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        exported("performer", target=target, precision=precision, opset=opset)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("opset", [17, 20])
def test_typed_graphs_pass_full_inference(precision: Precision, opset: int) -> None:
    model = exported("performer", precision=precision, opset=opset)
    summary = summarise_graph(model)
    assert summary.opset == opset
    assert [spec.dtype for spec in (*summary.inputs, *summary.outputs)] == ["float32"] * 2
    typed = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision.value]
    floats = {k: n for k, n in summary.weight_bytes.items() if k.startswith(("float", "bfloat"))}
    assert max(floats, key=lambda name: floats[name]) == typed


@pytest.mark.parametrize("target", [Target.PORTABLE, Target.CPU, Target.CUDA])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_an_export_prints_nothing(
    precision: Precision, target: Target, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxsim prints a traceback for each constant it cannot fold, as a sliced one in bfloat16."""
    exported("performer", precision=precision, target=target)
    assert capfd.readouterr() == ("", "")


def test_the_same_model_gives_the_same_bytes_which_say_nothing_of_the_machine() -> None:
    model = exported("performer")
    content = model.SerializeToString()
    assert content == exported("performer").SerializeToString()
    assert b"t2t_deploy/" not in content and b".py" not in content
    assert model.producer_name == "t2t-deploy"


@pytest.mark.parametrize("target", [Target.CPU, Target.CUDA])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_operators_of_one_runtime_stay_out_of_other_graphs(
    precision: Precision, target: Target
) -> None:
    deploy = deployed("performer", target, precision=precision)
    fused = precision in deploy.strategies.fused_in
    assert fused is (precision.value in {"cpu": ("fp32",), "cuda": ("fp32", "fp16")}[target.value])
    assert ("fused_attention" in deploy.report.applied) is fused
    refused = pytest.raises(ExportError, match=re.escape("domains ['com.microsoft']"))
    with refused if fused else nullcontext():
        check_graph(onnx_from_deploy(deploy), batch=None)


def test_graph_of_the_performer_is_what_it_should_be() -> None:
    """Exact counts of what matters: one product per linear layer, no reshaping of sizes."""
    ops = summarise_graph(exported("performer", "conv", batch=1)).ops
    assert ops["Conv"] == 3
    assert ops["Softmax"] == 2
    assert ops["LayerNormalization"] == 2 + 2 + 2 * 2 + 1
    assert ops["Erf"] == 2 + 2
    assert ops["ReduceMax"] == 4  # the largest key of a feature, the largest feature of a query
    assert not {"Shape", "Range", "Expand", "Where", "ConstantOfShape"} & ops.keys()


def test_a_gelu_halves_before_it_multiplies_which_mnn_computes_as_written() -> None:
    model = exported("performer")
    makers = {name: node for node in model.graph.node for name in node.output}
    erfs = {name for name, node in makers.items() if node.op_type == "Erf"}
    sums = {name for name, node in makers.items() if erfs & set(node.input)}
    found = [node for node in model.graph.node if sums & set(node.input)]
    assert len(found) == len(sums) == len(erfs) > 0
    for node in found:
        (half,) = (makers[name] for name in node.input if name not in sums)
        assert (node.op_type, half.op_type) == ("Mul", "Mul")
        assert numpy_helper.to_array(makers[half.input[1]].attribute[0].t) == 0.5


def large_keys(kind: str, scale: float) -> T2TViT:
    """A performer whose keys and queries are so large that many denominators are near epsilon."""
    state = random_state_dict(KINDS[kind])
    for block in ("attention1", "attention2"):
        for name in ("weight", "bias"):
            rows = state[f"tokens_to_token.{block}.kqv.{name}"]
            rows[: len(rows) * 2 // 3] *= scale
    return reference_from_state_dict(state, KINDS[kind])


@pytest.mark.parametrize("performer", ["plain", "stable"])
@pytest.mark.parametrize("scale", [1.0, 4.0, 12.0])
def test_epsilon_survives_the_exporter(performer: str, scale: float) -> None:
    """torch's default exporter drops it, and then 0/0 gives NaN where eager is finite."""
    reference = large_keys("performer", scale)
    model = exported(reference, performer=performer)
    assert graph_error(model, reference, 4) < 1e-5  # and so no NaN


def test_without_epsilon_the_same_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2t_deploy.export._token_block.PERFORMER_EPSILON", 0.0)
    reference = large_keys("performer", 12.0)
    assert not np.isfinite(graph_error(exported(reference, performer="plain"), reference, 4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("performer", ["plain", "stable"])
def test_the_default_exporter_would_do_as_well(performer: str) -> None:
    """Should the TorchScript exporter go: forms and epsilon survive the other one's optimiser."""
    reference = large_keys("performer", 12.0)
    deploy = deployed(reference, performer=performer).eval()
    program = torch.onnx.export(
        deploy,
        (drawn(reference, 2),),
        dynamo=True,
        opset_version=18,
        input_names=["image"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    assert graph_error(program.model_proto, reference, 2) < 1e-5


def test_opsets_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="opset is 16; expected 17 to 20"):
        exported("performer", opset=16)


def relu(shape: Shape, *, source: str = "image") -> onnx.ModelProto:
    return model_of([helper.make_node("Relu", [source], ["logits"])], [], shape, shape)


def cast_of(op: str, out: Shape) -> onnx.ModelProto:
    """An operator's whole numbers as logits."""
    back = helper.make_node("Cast", ["n"], ["logits"], to=TensorProto.FLOAT)
    return model_of([helper.make_node(op, ["image"], ["n"]), back], [], (1, 4), out)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (relu((1, 4), source="missing"), 1, "graph is invalid"),
        (cast_of("NonZero", ("a", "b")), 1, "graph has NonZero; expected static shapes"),
        (cast_of("Shape", (2,)), 1, "graph has 1 Shape operators; expected none"),
        (relu(("b", 4)), 1, r"tensor image has free dimensions \[0\]; expected none"),
        (relu(("b", "n")), None, r"free dimensions \[0, 1\]; expected at most"),
    ],
)
def test_graphs_that_break_the_contract_are_refused(
    model: onnx.ModelProto, batch: int | None, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        check_graph(model, batch=batch)


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 384])
def test_a_released_size_exports_at_other_resolutions(size: int) -> None:
    reference = reference_of(config_for_variant("7").with_(image_size=size))
    assert graph_error(exported(reference), reference, 2) < 2e-6
