"""Deploy form -> ONNX ModelProto: trace, simplify, strip traces of the machine."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch.jit._trace import TracerWarning

from t2t_deploy import __version__
from t2t_deploy._optional import require
from t2t_deploy.errors import ExportError
from t2t_deploy.export._deploy import DeployT2TViT
from t2t_deploy.export._fused_nodes import fuse_nodes
from t2t_deploy.graph import CONTRIB_DOMAIN
from t2t_deploy.types import ATTENTION_OPSET, INPUT_NAME

# From 20 on exporters may turn the deploy form's GELU into an operator that ONNX Runtime's CPU
# kernels run slower than the form it fuses itself.
DEFAULT_OPSET = 18
_TRACED_BATCH = 2
_ATTENTION_IR = 10
_MERGE_BIAS = ("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched")


def onnx_from_deploy(
    deploy: DeployT2TViT,
    *,
    batch: int | None = None,
    opset: int = DEFAULT_OPSET,
    merge_bias: bool = True,
) -> onnx.ModelProto:
    """Trace the deploy form into a self-contained, simplified ONNX model.

    Torch's TorchScript exporter maps operations one to one, where the default exporter's optimiser
    removes the performer's epsilon (docs/architecture.md).

    batch: fixed batch size; None leaves it dynamic. Input ``image`` (batch, C, H, W) float32,
    outputs as of the config, such as ``logits`` (batch, classes), float32. The same module gives
    the same bytes. merge_bias: whether a product and its bias may become one Gemm, which takes
    matrices only, between two Reshapes; a graph to be quantised keeps them separate, and so does
    one whose operators take biases.

    Raises UsageError for an opset out of range, ExportError where a stage refuses the graph.
    """
    strategies = deploy.strategies
    strategies.check_opset(opset, deploy.precision)
    fuses = strategies.fuse_kernels and deploy.precision in strategies.fused_in
    onnxsim = require("onnxsim")
    outputs = list(deploy.config.output_shapes)
    traced_batch = _TRACED_BATCH if batch is None else batch
    example = torch.zeros(traced_batch, *deploy.config.input_shape)
    buffer = io.BytesIO()
    with _quiet_exporter():
        torch.onnx.export(
            deploy.eval(),
            (example,),
            buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes a stream
            dynamo=False,
            opset_version=DEFAULT_OPSET if opset == ATTENTION_OPSET else opset,
            dynamic_axes={name: {0: "batch"} for name in (INPUT_NAME, *outputs)}
            if batch is None
            else None,
            input_names=[INPUT_NAME],
            output_names=outputs,
            do_constant_folding=False,  # onnxsim folds more, and without warnings
        )
    traced = onnx.load_from_string(buffer.getvalue())
    # Queries, keys and values stay three products: TensorRT merges them itself, and would have to
    # split merged ones.
    skipped = ["fuse_qkv"] if merge_bias and not fuses else ["fuse_qkv", *_MERGE_BIAS]
    model, same = onnxsim.simplify(traced, skipped_optimizers=skipped)
    if not same:
        raise ExportError(
            "onnxsim's simplified graph differs from the traced one; report this with the variant "
            "and the options used"
        )
    strip_provenance(model)
    _set_contrib_batch(model, batch)
    if fuses:
        model = fuse_nodes(model)
    if merge_bias:  # ranges files are of the bytes of a graph to be quantised
        _write_gelu(model)
    if opset == ATTENTION_OPSET:
        _write_attention(model)
    return model


def _write_gelu(model: onnx.ModelProto) -> None:
    """(x / 2) (erf(..) + 1) instead of (x (erf(..) + 1)) / 2: the same bits in float32.

    ONNX Runtime fuses either into one GELU. MNN takes the other form for a function that is nearer
    the tanh form: 2e-4 off over 14 blocks (findings/mnn-gelu-is-another-function.sh).
    """
    nodes = model.graph.node
    erfs = {node.output[0] for node in nodes if node.op_type == "Erf"}
    sums = {node.output[0] for node in nodes if node.op_type == "Add" and node.input[0] in erfs}
    wholes = {
        node.output[0]: node for node in nodes if node.op_type == "Mul" and node.input[1] in sums
    }
    for node in nodes:
        if node.op_type == "Mul" and node.input[0] in wholes:
            whole, half = wholes[node.input[0]], node.input[1]
            node.input[1] = whole.input[1]
            whole.input[1] = half


def _write_attention(model: onnx.ModelProto) -> None:
    """Attention of opset 23 instead of ONNX Runtime's own operator.

    torch's exporter writes no opset beyond 20. The other operators of a graph of opset 18 mean the
    same in 23, whose versions of them take more types.
    """
    for node in model.graph.node:
        if node.domain == CONTRIB_DOMAIN:
            (heads,) = (one.i for one in node.attribute if one.name == "num_heads")
            made = onnx.helper.make_node(
                "Attention",
                node.input,
                node.output,
                node.name,
                q_num_heads=heads,
                kv_num_heads=heads,
                scale=1.0,  # it is in the queries' weights
            )
            node.CopyFrom(made)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", ATTENTION_OPSET))
    model.ir_version = max(model.ir_version, _ATTENTION_IR)


def _set_contrib_batch(model: onnx.ModelProto, batch: int | None) -> None:
    """Give the outputs of contrib operators the graph's batch, unknown to the exporter."""
    graph = model.graph
    contrib = {out for n in graph.node if n.domain == CONTRIB_DOMAIN for out in n.output}
    for info in graph.value_info:
        if info.name in contrib:
            first = info.type.tensor_type.shape.dim[0]
            first.Clear()
            if batch is not None:
                first.dim_value = batch


def strip_provenance(model: onnx.ModelProto) -> None:
    """Remove stack traces and paths of this machine."""
    graph = model.graph
    holders = (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for holder in (model, graph, *holders):
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    model.producer_name = "t2t-deploy"
    model.producer_version = __version__
    graph.name = "t2t_vit"


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's deprecation and tracing notes off stderr.

    TracerWarning: the deploy form branches on ranks and sizes, which its config fixes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # onnxsim folds more
        yield
