"""Sums with norms, and biases with GELUs, as operators of ONNX Runtime's own."""

from __future__ import annotations

from collections import defaultdict

import onnx

from t2t_deploy.graph import CONTRIB_DOMAIN

_GELU = ["Div", "Erf", "Add", "Mul", "Mul"]


def fuse_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fewer nodes, each of which ONNX Runtime's CUDA provider has a kernel for.

    A sum and the LayerNormalization of it become SkipLayerNormalization, a bias and a GELU
    BiasGelu, which is the exact one, by erf. ONNX Runtime fuses some of them when it loads a graph,
    but leaves biases out, which are a kernel each. model: as traced, its products without biases.
    """
    # no tool infers types behind these operators
    fused = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    nodes = _Nodes(fused.graph)
    new: dict[str, onnx.NodeProto | None] = {}
    for node in fused.graph.node:
        if node.op_type == "LayerNormalization":
            new |= nodes.skip_norm(node)
        elif node.op_type == "Erf":
            new |= nodes.bias_gelu(node)
    found = [new.get(node.output[0], node) for node in fused.graph.node]
    used = {tensor.name for tensor in fused.graph.output}
    kept: list[onnx.NodeProto] = []
    for node in filter(None, reversed(found)):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    del fused.graph.node[:]
    fused.graph.node.extend(reversed(kept))
    if CONTRIB_DOMAIN not in {entry.domain for entry in fused.opset_import}:
        fused.opset_import.append(onnx.helper.make_opsetid(CONTRIB_DOMAIN, 1))
    return fused


class _Nodes:
    """The nodes of a graph by what they make and read."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.stored = {tensor.name: len(tensor.dims) for tensor in graph.initializer}

    def skip_norm(self, norm: onnx.NodeProto) -> dict[str, onnx.NodeProto | None]:
        """What stands where a norm and the sum before it stood; nothing where there is no sum."""
        total = self.makers.get(norm.input[0])
        if total is None or total.op_type != "Add" or self.stored.keys() & {*total.input}:
            return {}
        skip, value = total.input
        value, bias = self._without_bias(value, reads=1)
        if not bias:
            skip, (value, bias) = value, self._without_bias(skip, reads=1)
        (epsilon,) = (one.f for one in norm.attribute if one.name == "epsilon")
        made = onnx.helper.make_node(
            "SkipLayerNormalization",
            [value, skip, *norm.input[1:], *([bias] if bias else [])],
            [norm.output[0], "", "", total.output[0]],
            total.name,
            domain=CONTRIB_DOMAIN,
            epsilon=epsilon,
        )
        return {total.output[0]: made, norm.output[0]: None}

    def bias_gelu(self, erf: onnx.NodeProto) -> dict[str, onnx.NodeProto]:
        """What stands where the last node of a GELU stood; nothing where it is none."""
        chain = [self.makers[erf.input[0]], erf]
        while len(chain) < len(_GELU) and len(self.readers[chain[-1].output[0]]) == 1:
            chain += self.readers[chain[-1].output[0]]
        value = chain[0].input[0]
        if [node.op_type for node in chain] != _GELU or value not in chain[3].input:
            return {}
        value, bias = self._without_bias(value, reads=2)
        made = onnx.helper.make_node(
            *("BiasGelu" if bias else "Gelu", [value, bias] if bias else [value]),
            *(chain[-1].output, chain[-1].name),
            domain=CONTRIB_DOMAIN,
        )
        return {chain[-1].output[0]: made}

    def _without_bias(self, name: str, reads: int) -> tuple[str, str]:
        """A tensor before its bias, and the bias; none where it is read more often than that."""
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Add" or len(self.readers[name]) != reads:
            return name, ""
        value, bias = maker.input
        return (value, bias) if self.stored.get(bias) == 1 else (name, "")
