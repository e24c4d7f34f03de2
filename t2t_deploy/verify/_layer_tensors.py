"""Where an exported graph has the reference's layers, and a session that gives them."""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy._preparation import Preparation
from t2t_deploy.export import PerformerForm
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    Session,
    SessionRequest,
    fill_batch,
    open_session,
)
from t2t_deploy.types import GraphIO, Precision
from t2t_deploy.verify._nodewise_session import NodewiseSession
from t2t_deploy.workspace import Manifest

if TYPE_CHECKING:
    import onnx

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


def _layer_tensors(
    model: onnx.ModelProto, manifest: Manifest, layers: Iterable[str]
) -> dict[str, LayerTensor]:
    """Those of the reference's layers that a graph has a tensor of.

    Tensors keep the names of the modules that gave them, through onnxsim and through quantisation;
    what a rewrite folds away has none.
    """
    from t2t_deploy.model import config_from_dict

    graph = _Graph(model)
    kqv = _kqv_tensors(
        PerformerForm((manifest.strategies or {})["performer"]),
        config_from_dict(manifest.config).token_dim,
    )
    units, patches = _units(manifest), config_from_dict(manifest.config).num_patches
    found = {}
    for layer in layers:
        tensor, unit = _tensor_of(layer, graph, kqv), units.get(layer, 1.0)
        if tensor is not None and tensor.tensor in graph.producers and unit is not None:
            found[layer] = replace(tensor, factor=tensor.factor * unit)
            if layer == "tokens_to_token.project":  # rows behind them are repeats
                found[layer] = replace(found[layer], rows=slice(patches))
            elif not layer.startswith("tokens_to_token."):
                found[layer] = replace(found[layer], rows=slice(patches + 1))
    return found


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


def _tensor_of(layer: str, graph: _Graph, kqv: Mapping[str, LayerTensor]) -> LayerTensor | None:
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
        part = kqv.get(inside)
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


# -- a session of them ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LayerValues:
    """What a graph computed for one picture.

    picture: (1, 3, S, S) float64, as the model in the graph saw it. layers: layer of the reference
    -> (1, rows, channels) float64; rows 1 where only the class row was computed. outputs: all that
    the session gave.
    """

    picture: np.ndarray
    layers: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class InstrumentedGraph:
    """A session whose outputs are a graph's logits, its layers and the picture it made of pixels.

    tensors: layer of the reference -> where it is; what has no comparable tensor is left out.
    """

    session: Session
    tensors: Mapping[str, LayerTensor]
    graph_io: GraphIO
    preparation: Preparation

    def run(self, picture: np.ndarray) -> LayerValues:
        """The layers for a picture (3, S, S) float32, normalised."""
        from t2t_deploy.graph import NORMALISED_NAME

        taken = self.session.inputs[0]
        fed = fill_batch(picture[None], taken.shape[0])
        given = self.preparation.pixels_of(fed) if self.graph_io.embed_preprocess else fed
        outputs = self.session.run({taken.name: np.ascontiguousarray(given)})
        seen = outputs[NORMALISED_NAME] if self.graph_io.embed_preprocess else fed
        layers = {
            layer: tensor.of(outputs[tensor.tensor], len(fed))
            for layer, tensor in self.tensors.items()
        }
        return LayerValues(seen[:1].astype(np.float64), layers, outputs)


@contextlib.contextmanager
def instrumented_graph(
    model: onnx.ModelProto, manifest: Manifest, layers: Sequence[str]
) -> Iterator[InstrumentedGraph]:
    """Open a copy of a graph with those of the reference's layers as outputs that it has.

    Raises ExportError for a tensor without a type, BackendError.
    """
    import onnx

    from t2t_deploy.graph import NORMALISED_NAME, expose_tensors
    from t2t_deploy.model import config_from_dict

    graph_io = manifest.graph_io
    tensors = _layer_tensors(model, manifest, layers)
    exposed = [
        *config_from_dict(manifest.config).output_shapes,
        *(tensor.tensor for tensor in tensors.values()),
    ]
    if graph_io.embed_preprocess:
        exposed.append(NORMALISED_NAME)
    model = expose_tensors(model, exposed)
    with contextlib.ExitStack() as stack:
        if manifest.precision is Precision.BF16:  # of which no kernel is here
            session: Session = NodewiseSession(model)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="t2t-deploy-locate-"))
            path = Path(folder) / "exposed.onnx"
            onnx.save(model, path)
            session = open_session(
                SessionRequest(DEFAULT_BACKEND, path, precision=manifest.precision)
            )
        opened = stack.enter_context(session)
        yield InstrumentedGraph(opened, tensors, graph_io, manifest.preparation)


def _units(manifest: Manifest) -> dict[str, float | None]:
    """What brings layers of an equalised graph back to the reference's units.

    None where each channel has a unit of its own: the layers that read them take that back, and
    are compared.
    """
    units: dict[str, float | None] = {}
    for pair in manifest.quantization.equalised:
        producer = pair.producer
        if pair.factor is not None:
            path = producer.removesuffix(".q")
            units |= dict.fromkeys((f"{path}.qkv (queries)", f"{path}.q"), pair.factor)
            units |= dict.fromkeys((f"{path}.qkv (keys)", f"{path}.k"), 1 / pair.factor)
        elif in_tokens := re.fullmatch(r"tokens\.blocks\.(\d)\.tail\.norm", producer):
            units[f"tokens_to_token.attention{int(in_tokens[1]) + 1}.norm2"] = None
        elif values := re.fullmatch(r"(blocks\.\d+)\.attn\.v", producer):
            of_values = (".attn.qkv (values)", ".attn.v", " (attention)")
            units |= dict.fromkeys(f"{values[1]}{layer}" for layer in of_values)
        else:
            units[producer] = None
    return units
