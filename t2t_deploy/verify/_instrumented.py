"""A graph in a session with the tensors of its layers as outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy.images import pixels_of
from t2t_deploy.runtime import DEFAULT_BACKEND, Session, SessionRequest, open_session
from t2t_deploy.types import OUTPUT_NAME, GraphIO, Precision
from t2t_deploy.verify._nodewise_session import NodewiseSession
from t2t_deploy.workspace import Manifest

if TYPE_CHECKING:
    import onnx

    from t2t_deploy.export import LayerTensor


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

    def run(self, picture: np.ndarray) -> LayerValues:
        """The layers for a picture (3, S, S) float32, normalised."""
        from t2t_deploy.graph import NORMALISED_NAME

        taken = self.session.inputs[0]
        batch = taken.shape[0] or 1
        fed = np.repeat(picture[None], batch, axis=0)
        given = pixels_of(fed) if self.graph_io.embed_preprocess else fed
        outputs = self.session.run({taken.name: np.ascontiguousarray(given)})
        seen = outputs[NORMALISED_NAME] if self.graph_io.embed_preprocess else fed
        layers = {
            layer: tensor.of(outputs[tensor.tensor], batch)
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
    from t2t_deploy.export import PerformerForm, expose_tensors, layer_tensors
    from t2t_deploy.graph import NORMALISED_NAME
    from t2t_deploy.model import config_from_dict

    graph_io = manifest.graph_io
    scaled = _equalised_layers(manifest)
    tensors = layer_tensors(
        model,
        [layer for layer in layers if layer not in scaled],
        PerformerForm((manifest.strategies or {})["performer"]),
        config_from_dict(manifest.config).token_dim,
    )
    for layer, factor in _factors(manifest).items():
        if layer in tensors:
            tensors[layer] = dataclasses.replace(
                tensors[layer], factor=tensors[layer].factor * factor
            )
    shown = [OUTPUT_NAME, *(tensor.tensor for tensor in tensors.values())]
    if graph_io.embed_preprocess:
        shown.append(NORMALISED_NAME)
    with _opened(expose_tensors(model, shown), manifest.precision) as session:
        yield InstrumentedGraph(session, tensors, graph_io)


def _equalised_layers(manifest: Manifest) -> set[str]:
    """Layers whose channels an 8-bit graph holds in other units than the reference.

    The layers that read them take it back, and are compared.
    """
    scaled: set[str] = set()
    for layer in manifest.quantization.equalised:
        if layer.factor is not None:
            continue  # in units that are known
        producer = layer.producer
        in_tokens = re.fullmatch(r"tokens\.blocks\.(\d)\.tail\.norm", producer)
        values = re.fullmatch(r"(blocks\.\d+)\.attn\.v", producer)
        if in_tokens is not None:
            scaled.add(f"tokens_to_token.attention{int(in_tokens[1]) + 1}.norm2")
        elif values is not None:
            path = values[1]
            scaled |= {f"{path}.attn.qkv (values)", f"{path}.attn.v", f"{path} (attention)"}
        else:
            scaled.add(producer)
    return scaled


def _factors(manifest: Manifest) -> dict[str, float]:
    """What brings queries and keys of an 8-bit graph back to the reference's units."""
    found: dict[str, float] = {}
    for layer in manifest.quantization.equalised:
        if layer.factor is None:
            continue
        path, factor = layer.producer.removesuffix(".q"), layer.factor
        for queries, keys in (
            (f"{path}.qkv (queries)", f"{path}.qkv (keys)"),
            (f"{path}.q", f"{path}.k"),
        ):
            found |= {queries: factor, keys: 1 / factor}
    return found


@contextlib.contextmanager
def _opened(model: onnx.ModelProto, precision: Precision) -> Iterator[Session]:
    """A session on a copy of a graph; bf16, of which no kernel is here, is rounded node by node."""
    if precision is Precision.BF16:
        with NodewiseSession(model) as session:
            yield session
        return
    import onnx

    with tempfile.TemporaryDirectory(prefix="t2t-deploy-locate-") as folder:
        path = Path(folder) / "shown.onnx"
        onnx.save(model, path)
        with open_session(SessionRequest(DEFAULT_BACKEND, path, precision=precision)) as session:
            yield session
