"""Where in an exported graph the reference's layers are found again.

Tensors keep the names of the modules that gave them, through onnxsim and through quantisation; what
a rewrite folds away has no tensor, and the comparison goes on at the next layer that has one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from t2t_deploy.errors import ExportError
from t2t_deploy.export._strategies import PerformerForm

_TOKEN_BLOCK = re.compile(r"tokens_to_token\.attention([12])")
_BLOCK = re.compile(r"blocks\.\d+")
# What stands between a product and the tensor its layer gives, and between it and what it reads.
_AFTER_PRODUCT = frozenset({"Add", "Reshape", "Cast", "Mul"})
_BEFORE_PRODUCT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger"})
_NORM = "LayerNormalization"


@dataclass(frozen=True, slots=True)
class LayerTensor:
    """A layer's tensor in a graph: all or some of its rows and columns, times a factor."""

    tensor: str
    rows: slice | None = None
    columns: slice | None = None
    factor: float = 1.0

    def of(self, values: np.ndarray, batch: int = 1) -> np.ndarray:
        """The layer's numbers of the first picture: (1, rows, channels) float64."""
        wide = values.astype(np.float64).reshape(batch, -1, values.shape[-1])[:1]
        every = slice(None)
        return wide[:, self.rows or every, self.columns or every] * self.factor


def layer_tensors(
    model: onnx.ModelProto, layers: Iterable[str], performer: PerformerForm, token_dim: int
) -> dict[str, LayerTensor]:
    """Those of the reference's layers that a graph has a tensor of.

    model: float, quantised, or with ends. performer, token_dim: of the model it was made of.
    """
    graph = _Graph(model)
    found = {layer: _tensor_of(layer, graph, performer, token_dim) for layer in layers}
    return {
        layer: tensor
        for layer, tensor in found.items()
        if tensor is not None and tensor.tensor in graph.producers
    }


def expose_tensors(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy with more outputs, all else as it was. Raises ExportError for one without a type."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    infos = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    added = dict.fromkeys(tensors).keys() - {info.name for info in model.graph.output}
    untyped = sorted(added - infos.keys())
    if untyped:
        raise ExportError(
            f"tensor {untyped[0]} of the graph has no type; expected one with inferred types: "
            "export the model again"
        )
    made.graph.output.extend(infos[name] for name in sorted(added))
    kept = [info for info in model.graph.value_info if info.name not in added]
    del made.graph.value_info[:]
    made.graph.value_info.extend(kept)
    return made


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.producers = {out: node for node in model.graph.node for out in node.output if out}

    def output(self, name: str) -> str | None:
        """The tensor itself."""
        return name if name in self.producers else None

    def input(self, output: str) -> str | None:
        """What the node reads that gives a tensor."""
        node = self.producers.get(output)
        return None if node is None else str(node.input[0])

    def product_input(self, output: str) -> str | None:
        """What the product reads whose layer gives a tensor, before it is quantised."""
        node = self.producers.get(output)
        while node is not None and node.op_type in _AFTER_PRODUCT:
            computed = next((name for name in node.input if name in self.producers), "")
            node = self.producers.get(computed)
        if node is None or node.op_type not in _PRODUCTS:
            return None
        name = str(node.input[0])
        while (before := self.producers.get(name)) is not None:
            if before.op_type not in _BEFORE_PRODUCT:
                break
            name = str(before.input[0])
        return name


def _tensor_of(
    layer: str, graph: _Graph, performer: PerformerForm, token_dim: int
) -> LayerTensor | None:
    if layer == "head":
        return LayerTensor("logits")
    token_block, block = _TOKEN_BLOCK.match(layer), _BLOCK.match(layer)
    scope, inside, nodes = "", layer, _AROUND_BLOCKS
    if token_block is not None:
        scope, nodes = f"/tokens/blocks.{int(token_block[1]) - 1}", _IN_TOKEN_BLOCK
        inside = layer[token_block.end() :]
    elif block is not None:
        scope, inside, nodes = f"/{block[0]}", layer[block.end() :], _IN_BLOCK
    if inside.startswith(".kqv "):
        part = _kqv_tensors(performer, token_dim).get(inside)
        return None if part is None else replace(part, tensor=f"{scope}/{part.tensor}")
    find = _FINDERS.get(inside, _Graph.output)
    tensors = [find(graph, f"{scope}/{name}_output_0") for name in nodes[inside].split()]
    return next((LayerTensor(tensor) for tensor in tensors if tensor is not None), None)


_FINDERS: Mapping[str, Callable[[_Graph, str], str | None]] = {
    "tokens_to_token.project": _Graph.input,
    "pos_embed": _Graph.input,
    " (sum after attention)": _Graph.input,
    " (attention)": _Graph.product_input,
    ".mlp.1": _Graph.product_input,
    ".mlp.act": _Graph.product_input,
}
"""How a layer's tensor is found from the node in the tables below; without a word, it gives it."""
_AROUND_BLOCKS = {
    "tokens_to_token.project": "Pad",
    "pos_embed": f"blocks.0/norm1/{_NORM}",
    "norm": f"norm/{_NORM}",
}
_IN_TOKEN_BLOCK = {
    # a bias may be merged with the product before it and the reshaping after it
    ".attn.qkv (queries)": "Reshape",
    ".attn.qkv (keys)": "Add_1 Unsqueeze",
    ".attn.qkv (values)": "Add_2",
    " (attention)": "proj/Add",
    ".proj": "proj/Add",
    ".attn.proj": "proj/Add",
    " (sum after attention)": f"tail/norm/{_NORM}",
    ".norm2": f"tail/norm/{_NORM}",
    ".mlp.0": "tail/mlp/fc1/Add",
    ".mlp.1": "tail/mlp/fc2/Add",
    ".mlp.2": "tail/mlp/fc2/Add",
    ".mlp.fc1": "tail/mlp/fc1/Add",
    ".mlp.act": "tail/mlp/fc2/Add",
    ".mlp.fc2": "tail/mlp/fc2/Add",
    " (sum after mlp)": "tail/Add",
}
_IN_BLOCK = {
    ".norm1": f"norm1/{_NORM}",
    **{f".attn.qkv ({word})": f"attn/{word[0]}/MatMul" for word in ("queries", "keys", "values")},
    **{f".attn.{letter}": f"attn/{letter}/MatMul" for letter in "qkv"},
    " (attention)": "attn/proj/Add",
    ".attn.proj": "attn/proj/Add",
    ".attn.se_layer": "attn/gate/Mul",
    " (sum after attention)": f"norm2/{_NORM}",
    ".norm2": f"norm2/{_NORM}",
    ".mlp.fc1": "mlp/fc1/Add",
    ".mlp.act": "mlp/fc2/Add",
    ".mlp.fc2": "mlp/fc2/Add",
    " (sum after mlp)": "Add_1",
    ".dense_linear": "dense_linear/Add",
    ".linear": "linear/Add",
    ".act": "Mul_1",
}


def _kqv_tensors(performer: PerformerForm, e: int) -> dict[str, LayerTensor]:
    """Keys, queries and values as the forms of the performer hold them.

    A stable performer has keys and queries in turn, and adds the values' bias at the end; a softmax
    one has both over sqrt(2), and the projection's bias in the values.
    """
    if performer is PerformerForm.PLAIN:
        return {
            f".kqv ({word})": LayerTensor("Add_output_0", columns=slice(i * e, (i + 1) * e))
            for i, word in enumerate(("keys", "queries", "values"))
        }
    if performer is PerformerForm.STABLE:
        return {
            ".kqv (keys)": LayerTensor("Reshape_output_0", rows=slice(0, None, 2)),
            ".kqv (queries)": LayerTensor("Reshape_output_0", rows=slice(1, None, 2)),
        }
    return {
        ".kqv (keys)": LayerTensor("Add_output_0", factor=math.sqrt(2)),
        ".kqv (queries)": LayerTensor("Add_1_output_0", factor=math.sqrt(2)),
    }
