"""What a TensorRT makes of an ONNX file that others wrote, where it is not what the file says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy._progress import Progress
from t2t_deploy.errors import EngineError

if TYPE_CHECKING:
    import onnx

_SHOWN = 3


def check_foreign(model: onnx.ModelProto, name: str, progress: Progress) -> None:
    """Refuse what an engine would compute otherwise, and say what it takes otherwise.

    Codes of QuantizeLinear without a zero, or with an unsigned one, are 0 to 255 by ONNX;
    TensorRT-RTX 1.7.1 takes them for signed ones, so that 200 becomes 127. A float64 input becomes
    float32. Raises EngineError naming the nodes.
    """
    from onnx import TensorProto

    graph = model.graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            types[node.output[0]] = node.attribute[0].t.data_type
    unsigned = [
        node.name or node.output[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and _is_unsigned(node, types)
    ]
    if unsigned:
        more = f" and {len(unsigned) - _SHOWN} more" if len(unsigned) > _SHOWN else ""
        raise EngineError(
            f"{name} quantises to unsigned codes, 0 to 255, in {', '.join(unsigned[:_SHOWN])}"
            f"{more}; TensorRT would take them for signed ones and clip at 127: quantise it with "
            "int8 zeros"
        )
    stored = set(types)
    for info in graph.input:
        if info.name not in stored and info.type.tensor_type.elem_type == TensorProto.DOUBLE:
            progress.note(f"input {info.name} of {name} is float64; the engine takes it as float32")


def _is_unsigned(node: onnx.NodeProto, types: dict[str, int]) -> bool:
    from onnx import TensorProto

    told = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
    if told:
        return bool(told[0] == TensorProto.UINT8)
    zero = node.input[2] if len(node.input) > 2 else ""
    # a zero that is computed has a type that only inference tells; engines take constants
    return not zero or bool(types.get(zero) == TensorProto.UINT8)
