"""A typed ONNX graph evaluated one node at a time, each result rounded to its tensor's type.

Why not the whole graph: ONNX Runtime's CPU provider runs chains of fp16 nodes in float32, so that a
value beyond 65504 passes unseen, and it has no bf16 matrix product. Here every node is a model of
its own, computed in float32 on inputs that are exact values of their types, and its result is
rounded to nearest even, to infinity where the type ends. That is float32 accumulation with 16-bit
storage, as on tensor cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy.errors import BackendError
from t2t_deploy.runtime import ClosingSession, check_feeds
from t2t_deploy.verify._nodewise_graph import Step, TypedGraph, typed_graph_from_onnx
from t2t_deploy.verify._nodewise_kernels import NodeKernels

if TYPE_CHECKING:
    import onnx


class Evaluation:
    """The tensors of one run through a graph; a tensor is freed after its last use.

    wide: np.float32 for the run that is rounded after every node; np.float64, where ONNX Runtime
    has such kernels, for the one that is never rounded.
    """

    def __init__(
        self, graph: TypedGraph, kernels: NodeKernels, wide: type[np.floating[Any]]
    ) -> None:
        self._graph = graph
        self._kernels = kernels
        self._wide = wide
        self._values: dict[str, np.ndarray] = {}

    def start(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Take the graph's inputs. Raises InputError where one does not fit."""
        check_feeds(self._graph.inputs, feeds)
        self._values = dict(feeds)

    def compute(self, step: Step) -> list[np.ndarray]:
        """What a node computes from the values at hand, before any rounding."""
        arrays = [self._value(name) if name else None for name in step.inputs]
        return self._kernels.run(step, arrays, self._wide)

    def keep(self, step: Step, results: Sequence[np.ndarray]) -> None:
        """Store a node's outputs and free what nobody reads any more."""
        self._values.update(zip(step.outputs, results, strict=True))
        for name in step.last_use:
            self._values.pop(name, None)

    def results(self) -> dict[str, np.ndarray]:
        """The graph's outputs."""
        return {spec.name: self._value(spec.name) for spec in self._graph.outputs}

    def _value(self, name: str) -> np.ndarray:
        value = self._values[name] if name in self._values else self._graph.constants[name]
        return value.astype(self._wide, copy=False) if name in self._graph.floats else value


def rounded(step: Step, computed: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A node's outputs as their types hold them, floats kept in float32."""
    return [
        array if form is None else form.round(array)
        for form, array in zip(step.formats, computed, strict=True)
    ]


class NodewiseSession(ClosingSession):
    """A typed graph as a `Session` that rounds after every node.

    Several times slower than a runtime, and right about overflow and bf16. Raises
    ArtifactError where the graph cannot be evaluated node by node.
    """

    backend = "nodewise"

    def __init__(self, source: Path | onnx.ModelProto, *, threads: int | None = None) -> None:
        graph = typed_graph_from_onnx(source)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph: TypedGraph | None = graph
        self._kernels = NodeKernels(graph, threads=threads)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs. Raises InputError, or BackendError on a closed session."""
        if self._graph is None:
            raise BackendError("the session is closed; open a new one")
        run = Evaluation(self._graph, self._kernels, np.float32)
        run.start(feeds)
        for step in self._graph.steps:
            run.keep(step, rounded(step, run.compute(step)))
        return run.results()

    def close(self) -> None:
        """Free the graph."""
        self._graph = None
