"""Where in an exported graph the reference's layers are found again.

Tensors keep the names of the modules that gave them, through onnxsim and through quantisation; what
a rewrite folds away has no tensor, and the comparison goes on at the next layer that has one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from t2t_deploy.errors import ExportError
from t2t_deploy.export._strategies import PerformerForm

_TOKEN_BLOCK = re.compile(r"tokens_to_token\.attention([12])")
# What stands between a product and the tensor its layer gives, and between it and what it reads.
_AFTER_PRODUCT = frozenset({"Add", "Reshape", "Cast", "Mul"})
_BEFORE_PRODUCT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulInteger"})
_NORM = "LayerNormalization"
# A bias may be merged with the product before it and the reshaping after it.
_QKV_TENSORS = {
    "queries": ("Reshape_output_0",),
    "keys": ("Add_1_output_0", "Unsqueeze_output_0"),
    "values": ("Add_2_output_0",),
}


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
    kqv = _kqv_tensors(performer, token_dim)
    found = {}
    for layer in layers:
        tensor = _tensor_of(layer, graph, kqv)
        if tensor is not None and tensor.tensor in graph.tensors:
            found[layer] = tensor
    return found


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
        self.tensors = self.producers.keys()
        self._stored = {tensor.name for tensor in model.graph.initializer}

    def first_of(self, names: Iterable[str]) -> LayerTensor | None:
        """The first of some names that the graph has."""
        return _named(next((name for name in names if name in self.tensors), None))

    def read_by_norm(self, scope: str) -> str | None:
        """What the LayerNorm of a module reads."""
        node = self.producers.get(f"{scope}/{_NORM}_output_0")
        return None if node is None else str(node.input[0])

    def read_by_product(self, output: str) -> str | None:
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


def _tensor_of(layer: str, graph: _Graph, kqv: Mapping[str, LayerTensor]) -> LayerTensor | None:
    path, _, word = layer.partition(" (")
    word = word.removesuffix(")")
    block = _TOKEN_BLOCK.match(path)
    if block is not None:
        scope = f"/tokens/blocks.{int(block[1]) - 1}"
        return _in_token_block(scope, path[block.end() :], word, graph, kqv)
    if layer == "tokens_to_token.project":
        return _named(_read(graph, "/Pad_output_0"))
    if layer == "pos_embed":
        return _named(graph.read_by_norm("/blocks.0/norm1"))
    if layer == "head":
        return LayerTensor("logits")
    if layer == "norm":
        return LayerTensor(f"/norm/{_NORM}_output_0")
    _, index, *inside = path.split(".")
    return _in_block(f"/blocks.{index}", ".".join(inside), word, graph)


def _in_token_block(
    scope: str, inside: str, word: str, graph: _Graph, kqv: Mapping[str, LayerTensor]
) -> LayerTensor | None:
    if inside == ".kqv":
        part = kqv.get(word)
        if part is None:
            return None
        return replace(part, tensor=f"{scope}/{part.tensor}")
    if inside == ".attn.qkv":
        return graph.first_of(f"{scope}/{name}" for name in _QKV_TENSORS[word])
    if word == "attention":
        return _named(graph.read_by_product(f"{scope}/proj/Add_output_0"))
    if word == "sum after attention":
        return _named(graph.read_by_norm(f"{scope}/tail/norm"))
    if word == "sum after mlp":
        return LayerTensor(f"{scope}/tail/Add_output_0")
    if inside in (".proj", ".attn.proj"):
        return LayerTensor(f"{scope}/proj/Add_output_0")
    if inside == ".norm2":
        return LayerTensor(f"{scope}/tail/norm/{_NORM}_output_0")
    return _in_mlp(f"{scope}/tail/mlp", inside.rpartition(".")[2], graph)


def _in_block(scope: str, inside: str, word: str, graph: _Graph) -> LayerTensor | None:
    letters = {"queries": "q", "keys": "k", "values": "v"}
    if inside == "attn.qkv":
        return LayerTensor(f"{scope}/attn/{letters[word]}/MatMul_output_0")
    if inside in ("attn.q", "attn.k", "attn.v"):
        return LayerTensor(f"{scope}/attn/{inside[-1]}/MatMul_output_0")
    if word == "attention":
        return _named(graph.read_by_product(f"{scope}/attn/proj/Add_output_0"))
    if word == "sum after attention":
        return _named(graph.read_by_norm(f"{scope}/norm2"))
    if word == "sum after mlp":
        return LayerTensor(f"{scope}/Add_1_output_0")
    if inside in ("norm1", "norm2"):
        return LayerTensor(f"{scope}/{inside}/{_NORM}_output_0")
    if inside == "attn.se_layer":
        return LayerTensor(f"{scope}/attn/gate/Mul_output_0")
    if inside == "act":
        return LayerTensor(f"{scope}/Mul_1_output_0")
    if inside in ("attn.proj", "linear", "dense_linear"):
        return LayerTensor(f"{scope}/{inside.replace('.', '/')}/Add_output_0")
    return _in_mlp(f"{scope}/mlp", inside.rpartition(".")[2], graph)


def _in_mlp(scope: str, inside: str, graph: _Graph) -> LayerTensor | None:
    if inside in ("0", "fc1"):
        return LayerTensor(f"{scope}/fc1/Add_output_0")
    if inside in ("1", "act"):
        return _named(graph.read_by_product(f"{scope}/fc2/Add_output_0"))
    return LayerTensor(f"{scope}/fc2/Add_output_0")


def _kqv_tensors(performer: PerformerForm, e: int) -> dict[str, LayerTensor]:
    """Keys, queries and values as the forms of the performer hold them.

    A stable performer has keys and queries in turn, and adds the values' bias at the end; a softmax
    one has both over sqrt(2), and the projection's bias in the values.
    """
    if performer is PerformerForm.PLAIN:
        words = ("keys", "queries", "values")
        cut = (slice(0, e), slice(e, 2 * e), slice(2 * e, 3 * e))
        return {
            word: LayerTensor("Add_output_0", columns=columns)
            for word, columns in zip(words, cut, strict=True)
        }
    if performer is PerformerForm.STABLE:
        return {
            "keys": LayerTensor("Reshape_output_0", rows=slice(0, None, 2)),
            "queries": LayerTensor("Reshape_output_0", rows=slice(1, None, 2)),
        }
    return {
        "keys": LayerTensor("Add_output_0", factor=math.sqrt(2)),
        "queries": LayerTensor("Add_1_output_0", factor=math.sqrt(2)),
    }


def _read(graph: _Graph, output: str) -> str | None:
    node = graph.producers.get(output)
    return None if node is None else str(node.input[0])


def _named(tensor: str | None) -> LayerTensor | None:
    return None if tensor is None else LayerTensor(tensor)
