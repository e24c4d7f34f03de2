"""Channels of very different size made alike, the function unchanged, before ranges are taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from t2t_deploy.calibration._layers import LinearLayer, readers_of

GELU_BETWEEN = "GELU(x / s) is not GELU(x) / s"
SKIP_READS_VALUES = "the residual sum reads the values too"
_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class EqualisedPair:
    """A producer of channels and the layers that read them.

    producer: a LayerNorm's, a value or a query layer's name. tensor: what the layers read. scale:
    (K,) float64, what its channels are divided by. spread_before, spread_after: largest over median
    channel of ``tensor``. columns: the layers are keys, which are multiplied by what divides the
    queries, one number for all channels; ``tensor`` is what the queries give, spreads are of their
    weights' columns.
    """

    producer: str
    layers: tuple[str, ...]
    tensor: str
    scale: np.ndarray
    spread_before: float
    spread_after: float
    columns: bool = False

    @property
    def factor(self) -> float | None:
        """What queries were divided by and keys multiplied; None of other pairs."""
        return float(self.scale[0]) if self.columns else None


@dataclass(frozen=True, slots=True)
class Equalisation:
    """What was made alike, in this order, and what was not, with the reason."""

    applied: tuple[EqualisedPair, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def plan_equalisation(
    model: onnx.ModelProto,
    layers: Sequence[LinearLayer],
    channel_max: Mapping[str, np.ndarray],
    *,
    alike: bool = True,
) -> Equalisation:
    """Choose scales for a float32 graph; nothing of it is changed.

    One scale for a whole tensor leaves small channels no codes where others are a hundred times as
    large, as in trained ViTs. A channel that only linear layers read can be divided by any s, their
    weights' rows times s:

        LayerNorm (gamma, beta) -> layers    gamma / s, beta / s; rows of the layers' weights * s
        v -> proj of an attention            columns of v / s; rows of proj * s
        q and k of an attention              q / s, k * s, one s for all channels

    s = sqrt(largest activation / largest weight) of a channel gives both the same size. The last
    gives q and k one size, and v is given it too: one scale then does for all weights that read one
    tensor. Source: Xiao et al., SmoothQuant (ICML 2023), with its exponent of a half.

    channel_max: the largest magnitude of each channel of the tensors that layers read; pairs whose
    tensor is not in it are refused. alike: queries, keys and values get one size, for weights that
    share a scale.
    """
    plan = _Plan(model, layers, channel_max)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            plan.after_norm(node)
    by_name = plan.weights.layers
    for layer in layers:
        stem, _, last = layer.name.rpartition(".")
        # queries and keys of a token block have biases, which would have to be divided as well
        if alike and last == "q" and stem.endswith(".attn") and f"{stem}.k" in by_name:
            plan.queries_and_keys(layer, by_name[f"{stem}.k"])
        elif last == "v" and f"{stem}.proj" in by_name:
            # channel j of the values is channel j of what the projection reads, whatever the head
            projection, keys = by_name[f"{stem}.proj"], by_name.get(f"{stem}.k")
            plan.equalise(layer.name, projection.source, [projection], keys if alike else None)
        elif last == "fc2":
            plan.refused[layer.name] = GELU_BETWEEN
        elif layer.name.startswith("tokens.blocks.") and last == "proj":
            plan.refused[layer.name] = SKIP_READS_VALUES
    return Equalisation(tuple(plan.applied), plan.refused)


def equalised_weights(
    model: onnx.ModelProto, layers: Sequence[LinearLayer], pairs: Sequence[EqualisedPair]
) -> dict[str, np.ndarray]:
    """The initializers that an equalisation changes, float64, from a float32 graph's own."""
    weights = _Weights(model, layers)
    for pair in pairs:
        weights.move(pair)
    return weights.changed


def replace_weights(model: onnx.ModelProto, values: Mapping[str, np.ndarray]) -> None:
    """Put values in the place of a graph's initializers, each in the type it has there."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            value = np.ascontiguousarray(values[tensor.name].astype(dtype))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def norm_channel_max(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """A guess at the size of LayerNorms' output channels without a picture: 3 |gamma| + |beta|.

    Good where a normalised channel is nowhere near three deviations for long.
    """
    stored = stored_arrays(model)
    return {
        node.output[0]: 3 * np.abs(stored[node.input[1]]) + np.abs(stored[node.input[2]])
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
        and len(node.input) == 3
        and all(name in stored for name in node.input[1:])
    }


class _Weights:
    """Initializers as they are, and as an equalisation makes them. layers: by name."""

    def __init__(self, model: onnx.ModelProto, layers: Sequence[LinearLayer]) -> None:
        self.stored = stored_arrays(model)
        self.changed: dict[str, np.ndarray] = {}
        self.layers = {layer.name: layer for layer in layers}

    def now(self, name: str) -> np.ndarray:
        """The present value, float64."""
        value = self.changed.get(name)
        return self.stored[name].astype(np.float64) if value is None else value

    def largest(self, layer: LinearLayer, axis: int | None = None) -> np.ndarray:
        """The largest magnitude of a layer's weight, along an axis or in all."""
        return np.asarray(np.abs(self.now(layer.weight)).max(axis=axis))

    def move(self, pair: EqualisedPair) -> None:
        """Divide the producer's channels, multiply what reads them."""
        for name in pair.layers:
            weight = self.layers[name].weight
            along = pair.scale if pair.columns else pair.scale[:, None]
            self.changed[weight] = self.now(weight) * along
        producer = self.layers.get(pair.producer)
        norm = (f"{pair.producer}.weight", f"{pair.producer}.bias")
        for name in norm if producer is None else (producer.weight,):
            self.changed[name] = self.now(name) / pair.scale


class _Plan:
    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[LinearLayer],
        channel_max: Mapping[str, np.ndarray],
    ) -> None:
        self.readers = readers_of(model.graph.node)
        self.by_node = {layer.node: layer for layer in layers}
        self.channel_max = channel_max
        self.weights = _Weights(model, layers)
        self.applied: list[EqualisedPair] = []
        self.refused: dict[str, str] = {}

    def after_norm(self, node: onnx.NodeProto) -> None:
        """A LayerNorm with a scale and shift of its own, read by nothing but layers."""
        name = node.input[1].removesuffix(".weight")
        if tuple(node.input[1:]) != (f"{name}.weight", f"{name}.bias"):
            return  # folded into the layers: there is nothing to move
        found = self._layers_reading(node.output[0])
        if found is None:
            self.refused[name] = "something other than a linear layer reads it"
        elif any(len(self.readers[word]) > 1 for word in node.input[1:]):
            self.refused[name] = "another norm shares its weights"
        else:
            self.equalise(name, node.output[0], found)

    def queries_and_keys(self, queries: LinearLayer, keys: LinearLayer) -> None:
        """Queries meet keys and nothing else. One factor: queries are seen in its units again."""
        of_q, of_k = (
            np.maximum(self.weights.largest(layer, axis=0), _TINY) for layer in (queries, keys)
        )
        scale = np.full(len(of_q), np.sqrt(of_q.max() / of_k.max()))
        spread = _spread(of_q)
        self._apply(
            EqualisedPair(
                queries.name, (keys.name,), queries.result, scale, spread, spread, columns=True
            )
        )

    def _layers_reading(self, tensor: str) -> list[LinearLayer] | None:
        """The layers that read a tensor, or its class row; None where something else does too."""
        found = []
        for node in self.readers.get(tensor, []):
            if node.op_type in ("Slice", "Gather") and node.input[0] == tensor:
                beyond = self._layers_reading(node.output[0])
                if beyond is None:
                    return None
                found += beyond
            elif node.name in self.by_node and node.input[0] == tensor:
                found.append(self.by_node[node.name])
            else:
                return None
        return found

    def equalise(
        self,
        producer: str,
        tensor: str,
        layers: Sequence[LinearLayer],
        beside: LinearLayer | None = None,
    ) -> None:
        """beside: a layer whose largest weight the producer's is to be; None keeps its size."""
        if tensor not in self.channel_max or not layers:
            self.refused[producer] = "no pictures told the size of its channels"
            return
        largest = self.channel_max[tensor].astype(np.float64)
        rows = np.max([self.weights.largest(layer, axis=1) for layer in layers], axis=0)
        scale = np.sqrt(np.maximum(largest, _TINY) / np.maximum(rows, _TINY))
        scale[(largest <= _TINY) | (rows <= _TINY)] = 1.0
        if beside is None:
            scale /= np.exp(np.log(scale).mean())
        else:
            even = self.weights.largest(self.weights.layers[producer], axis=0) / scale
            scale *= even.max() / max(self.weights.largest(beside), _TINY)
        names = tuple(layer.name for layer in layers)
        spreads = _spread(largest), _spread(largest / scale)
        self._apply(EqualisedPair(producer, names, tensor, scale, *spreads))

    def _apply(self, pair: EqualisedPair) -> None:
        self.weights.move(pair)
        self.applied.append(pair)


def _spread(largest: np.ndarray) -> float:
    return float(largest.max() / max(float(np.median(largest)), float(_TINY)))


def stored_arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers of a graph."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
