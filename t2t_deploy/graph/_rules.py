"""Rules for an ONNX graph before a parser gets it: order, shapes, functions, versions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from t2t_deploy._untrusted import shortened
from t2t_deploy.graph._tree import LENGTH, ModelTree, Tree

# of ONNX 1.23, the newest that this version of t2t-deploy knows
MAX_IR_VERSION = 14
MAX_OPSET = 28
MAX_ELEMENTS = 1 << 31
"""Of one tensor; as float32 that many take 8 GiB."""
MAX_NODES = 1_000_000
MAX_CALLS = 64
"""How deep functions may call each other."""

_STANDARD = ("", "ai.onnx")
_STRING = 8
# Bits of an element, by TensorProto.DataType.
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64,
    15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6,
    28: 6,
}  # fmt: skip
_EXTERNAL = 1

ExternalCheck = Callable[[dict[str, str], int, str], None]
"""Checks a tensor's external data: entries, bytes that its shape takes, name."""


def check_tree(tree: ModelTree, external: ExternalCheck) -> None:
    """Raise ValueError, with the reason, for a graph that must not reach a parser."""
    model = tree.root
    (graph,) = model.get(7, [None])
    if graph is None:
        raise LookupError
    version = last(model, 1, 0)
    if not 1 <= version <= MAX_IR_VERSION:
        raise ValueError(f"its IR version is {version}; known are 1 to {MAX_IR_VERSION}")
    _check_opsets(model.get(8, []))
    functions = _functions(model.get(25, []))
    _check_calls(graph, functions)
    for sparse in tree.sparse_tensors:
        _check_dims(sparse.get(3, []), "of a sparse kind")
    for tensor in tree.tensors:
        _check_tensor(tensor, external)
    for info in tree.infos:
        _check_shape(info)
    for info in (*graph.get(11, []), *graph.get(12, [])):
        _check_numeric(info)
    training = (of for one in model.get(20, []) for of in (*one.get(1, []), *one.get(2, [])))
    for inside in (graph, *training):
        _check_order(inside, [])
    for function in model.get(25, []):
        _check_opsets(function.get(9, []))
        _check_nodes(function.get(7, []), [set(function.get(4, []))])


def foreign_operators(tree: ModelTree) -> Iterator[tuple[str, str]]:
    """Domain and name of each node that is no function of the model and no operator of ONNX."""
    model = tree.root
    functions = _functions(model.get(25, []))
    waiting = [*(graph.get(1, []) for graph in model.get(7, [])), *functions.values()]
    while waiting:
        for node in waiting.pop():
            waiting += [inner.get(1, []) for inner in _inner_graphs(node)]
            domain, op, _ = called = _called(node)
            if domain not in _STANDARD and called not in functions:
                yield domain, op


def _check_opsets(opsets: list[Tree]) -> None:
    """Raise ValueError for unknown versions of the standard operators."""
    for entry in opsets:
        version = last(entry, 2, 0)
        if last(entry, 1, "") in _STANDARD and not 1 <= version <= MAX_OPSET:
            raise ValueError(f"its opset is {version}; known are 1 to {MAX_OPSET}")


def _check_order(graph: Tree, scopes: list[set[str]]) -> None:
    """Raise ValueError where a node reads what no earlier node writes, as in every cycle.

    scopes: names that the graphs around it have written.
    """
    stored = (last(tensor, 8, "") for tensor in graph.get(5, []))
    sparse = (last(one[1][0], 8, "") for one in graph.get(15, []) if 1 in one)
    names = {*(last(info, 1, "") for info in graph.get(11, [])), *stored, *sparse}
    scopes = [*scopes, names]
    _check_nodes(graph.get(1, []), scopes)


def _check_nodes(nodes: list[Tree], scopes: list[set[str]]) -> None:
    names = scopes[-1]
    written: set[str] = set()
    for node in nodes:
        for name in node.get(1, []):
            if name and not any(name in scope for scope in scopes):
                own, op = shortened(last(node, 3, "")), shortened(last(node, 4, ""))
                raise ValueError(
                    f"node {own} ({op}) reads {shortened(name)}, which no earlier node writes: the "
                    "graph is cyclic, unsorted or incomplete"
                )
        for inner in _inner_graphs(node):
            _check_order(inner, scopes)
        for name in node.get(2, []):
            if name and name in written:
                raise ValueError(f"{shortened(name)} is written by two nodes")
            written.add(name)
            names.add(name)


def _check_shape(info: Tree) -> None:
    """Raise ValueError for a negative dimension, or too many elements."""
    for kind in info.get(2, []):
        for tensor in (*kind.get(1, []), *kind.get(8, [])):
            dims = [
                last(dim, 1, 0)
                for shape in tensor.get(2, [])
                for dim in shape.get(1, [])
                if 1 in dim
            ]
            _check_dims(dims, last(info, 1, ""))


def last(tree: Tree, number: int, default: Any) -> Any:
    """The value of a single field: the last one counts."""
    return tree[number][-1] if tree.get(number) else default


def _check_numeric(info: Tree) -> None:
    kind: Tree = info.get(2, [{}])[0]
    tensors = kind.get(1, [])
    # of several types readers may pick different ones
    others = any(number in kind for number in (4, 5, 7, 8, 9))
    if others or not tensors or last(tensors[0], 1, 0) not in BITS:
        raise ValueError(
            f"its input or output {shortened(last(info, 1, ''))} is no tensor of numbers"
        )


def _check_dims(dims: list[int], name: str) -> int:
    if any(dim < 0 for dim in dims):
        raise ValueError(f"tensor {shortened(name)} has the dimension {min(dims)}")
    count = math.prod(dims)
    if count > MAX_ELEMENTS:
        raise ValueError(
            f"tensor {shortened(name)} has {count:.3g} elements; expected at most {MAX_ELEMENTS:,}"
        )
    return count


def _check_tensor(tensor: Tree, external: ExternalCheck) -> None:
    name = last(tensor, 8, "")
    count = _check_dims(tensor.get(1, []), name)
    dtype = last(tensor, 2, 0)
    if dtype != _STRING and dtype not in BITS:
        raise ValueError(f"tensor {shortened(name)} has data type {dtype}, which is unknown")
    needed = (count * BITS.get(dtype, 8) + 7) // 8
    entries = [(last(entry, 1, ""), last(entry, 2, "")) for entry in tensor.get(13, [])]
    location = last(tensor, 14, 0)
    if location not in (0, _EXTERNAL):
        raise ValueError(f"tensor {shortened(name)} has the data location {location}")
    if entries or location == _EXTERNAL:
        if len(dict(entries)) != len(entries):
            raise ValueError(f"tensor {shortened(name)} gives the location of its data twice")
        external(dict(entries), needed, name)
        return
    if tensor.get(9):
        size = last(tensor, 9, 0)
        if dtype == _STRING or size != needed:
            raise ValueError(
                f"tensor {shortened(name)} has {size} bytes of data; its shape takes {needed}"
            )
    elif count > 8 * tensor[LENGTH][0]:  # the densest encoding has four elements in a byte
        raise ValueError(
            f"tensor {shortened(name)} has {count:,} elements in {tensor[LENGTH][0]} bytes"
        )


def _inner_graphs(node: Tree) -> Iterator[Tree]:
    for attribute in node.get(5, []):
        yield from (*attribute.get(6, []), *attribute.get(11, []))


# -- functions -----------------------------------------------------------------------------------

_Key = tuple[str, str, str]


def _called(node: Tree) -> _Key:
    """Domain, name and overload of a node's operator."""
    return last(node, 7, ""), last(node, 4, ""), last(node, 8, "")


def _functions(functions: list[Tree]) -> dict[_Key, list[Tree]]:
    nodes: dict[_Key, list[Tree]] = {}
    for one in functions:
        key = (last(one, 10, ""), last(one, 1, ""), last(one, 13, ""))
        if key in nodes:
            raise ValueError(f"it has two functions {shortened(key[1])}")
        nodes[key] = one.get(7, [])
    return nodes


def _check_calls(graph: Tree, functions: dict[_Key, list[Tree]]) -> None:
    """Raise ValueError where functions call themselves, or expand beyond memory."""
    sizes: dict[_Key, tuple[int, int]] = {}

    def size(nodes: list[Tree], calling: tuple[_Key, ...]) -> tuple[int, int]:
        """Nodes with all calls expanded, and the depth of calls."""
        total = depth = 0
        for node in nodes:
            total += 1
            key = _called(node)
            inner_sizes = [size(inner.get(1, []), calling) for inner in _inner_graphs(node)]
            if key in functions:
                if key in calling:
                    raise ValueError(f"its function {shortened(key[1])} calls itself")
                if key not in sizes and len(calling) < MAX_CALLS:
                    sizes[key] = size(functions[key], (*calling, key))
                called, deeper = sizes.get(key, (0, MAX_CALLS))
                inner_sizes.append((called, deeper + 1))
            total += sum(count for count, _ in inner_sizes)
            depth = max([depth, *(deeper for _, deeper in inner_sizes)])
            if depth > MAX_CALLS:
                raise ValueError(f"its functions call each other through more than {MAX_CALLS}")
            if total > MAX_NODES:
                raise ValueError(f"it has more than {MAX_NODES:,} nodes, its functions written out")
        return total, depth

    for key, nodes in functions.items():
        if key not in sizes:
            sizes[key] = size(nodes, (key,))
    size(graph.get(1, []), ())
