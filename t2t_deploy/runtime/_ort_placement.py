"""On which execution provider ONNX Runtime put each node, and whether that is the one asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy.errors import BackendError
from t2t_deploy.graph import read_onnx

if TYPE_CHECKING:
    import onnx

# set on the session's options, so that it can tell afterwards
RECORD_PLACEMENT = ("session.record_ep_graph_assignment_info", "1")
_SHAPE_SOURCES = ("Shape", "Size", "Constant")
_SHOWN_NODES = 3


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node of the graph as it was before fusion, and its execution provider."""

    provider: str
    name: str
    op: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every node of a graph runs."""

    nodes: tuple[PlacedNode, ...]

    @property
    def by_provider(self) -> Mapping[str, int]:
        """How many nodes each provider runs."""
        providers = [node.provider for node in self.nodes]
        return {name: providers.count(name) for name in dict.fromkeys(providers)}

    def elsewhere(self, provider: str) -> tuple[PlacedNode, ...]:
        """Nodes that another provider runs."""
        return tuple(node for node in self.nodes if node.provider != provider)


def read_placement(session: Any) -> Placement | None:
    """Where the session's nodes are; None where this release of ONNX Runtime cannot tell.

    session: opened with `RECORD_PLACEMENT`.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return Placement(
        tuple(
            PlacedNode(part.ep_name, node.name, node.op_type)
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        )
    )


def check_placement(placement: Placement, provider: str, path: Path) -> None:
    """Raise BackendError where a node that computes is not on ``provider``.

    Sizes computed on the host are no such node: a GPU provider leaves them there on purpose.
    """
    elsewhere = placement.elsewhere(provider)
    if not elsewhere:
        return
    sizes = shape_work(read_onnx(path).graph.node)
    wrong = [node for node in elsewhere if node.name not in sizes]
    if wrong:
        shown = ", ".join(f"{node.op} {node.name!r}" for node in wrong[:_SHOWN_NODES])
        more = f" and {len(wrong) - _SHOWN_NODES} more" if len(wrong) > _SHOWN_NODES else ""
        raise BackendError(
            f"{len(wrong)} of {len(placement.nodes)} nodes of {path.name} are not on {provider}: "
            f"{shown}{more} on {wrong[0].provider}; export with --target tensorrt, or choose "
            "another backend"
        )


def shape_work(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    """Names of the nodes that compute sizes: from shapes and constants alone, never from values.

    nodes: sorted, as ONNX requires.
    """
    sizes: set[str] = set()
    values: set[str] = set()
    names = set()
    for node in nodes:
        inputs = [name for name in node.input if name]
        from_sizes = inputs and any(name in sizes for name in inputs)
        if node.op_type in _SHAPE_SOURCES or (
            from_sizes and not any(name in values for name in inputs)
        ):
            sizes.update(node.output)
            names.add(node.name)
        else:
            values.update(node.output)
    return frozenset(names)
