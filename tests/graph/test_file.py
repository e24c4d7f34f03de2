"""ONNX files made to harm: refused, in one line, before any parser gets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper
from onnx import onnx_ml_pb2 as protocol

from t2t_deploy.errors import ArtifactError, DeployError
from t2t_deploy.graph import _file as files
from t2t_deploy.graph import _rules as rules
from t2t_deploy.graph import _tree as trees
from t2t_deploy.graph import check_onnx_file, read_onnx
from t2t_deploy.graph._tree import message as encoded

from .harmful_onnx import Change, readers, refusal

# -- shapes and types ----------------------------------------------------------------------------


def dims(*sizes: int) -> Change:
    def change(made: onnx.ModelProto) -> None:
        made.graph.initializer[0].dims[:] = sizes

    return change


def input_dims(*sizes: int) -> Change:
    def change(made: onnx.ModelProto) -> None:
        shape = made.graph.input[0].type.tensor_type.shape
        for dim, size in zip(shape.dim, sizes, strict=True):
            dim.dim_value = size

    return change


def weight(**fields: int) -> Change:
    def change(made: onnx.ModelProto) -> None:
        for name, value in fields.items():
            setattr(made.graph.initializer[0], name, value)

    return change


def image_of_type_77(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = 77


def untyped_logits(made: onnx.ModelProto) -> None:
    made.graph.output[0].ClearField("type")


def typed_data(made: onnx.ModelProto) -> None:
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data[:] = [1.0]
    tensor.dims[:] = [1000, 1000]


SHAPES = [
    (dims(-3, 4), "tensor 'w' has the dimension -3"),
    (dims(1 << 62, 4), "elements; expected at most 2,147,483,648"),
    (dims(1 << 32, 1 << 32), "elements; expected at most 2,147,483,648"),
    (dims(30, 40), "tensor 'w' has 48 bytes of data; its shape takes 4800"),
    (typed_data, "tensor 'w' has 1,000,000 elements in"),
    (input_dims(1, 3, -1, 1), "tensor 'image' has the dimension -1"),
    (input_dims(1 << 20, 3, 1 << 20, 1), "tensor 'image' has 3.3e+12 elements"),
    (weight(data_type=99), "tensor 'w' has data type 99, which is unknown"),
    (weight(data_location=1), "expected a file of the same folder"),
    (image_of_type_77, "its input or output 'image' is no tensor of numbers"),
    (untyped_logits, "its input or output 'logits' is no tensor of numbers"),
]


# -- order, nesting, calls -----------------------------------------------------------------------


def cycle(made: onnx.ModelProto) -> None:
    made.graph.node[0].input[0] = "logits"


def made_twice(made: onnx.ModelProto) -> None:
    made.graph.node[1].output[0] = "flat"


def nested(depth: int) -> Change:
    def change(made: onnx.ModelProto) -> None:
        graph = helper.make_graph([], "innermost", [], [])
        for _ in range(depth):
            node = helper.make_node("If", ["image"], ["z"])
            attribute = AttributeProto(name="then_branch", type=AttributeProto.GRAPH, g=graph)
            node.attribute.append(attribute)
            graph = helper.make_graph([node], "outer", [], [])
        made.graph.node.extend(graph.node)

    return change


def nested_types(made: onnx.ModelProto) -> None:
    kind = onnx.TypeProto()
    for _ in range(40):
        outer = onnx.TypeProto()
        outer.sequence_type.elem_type.CopyFrom(kind)
        kind = outer
    made.graph.value_info.add(name="x", type=kind)


def calls(
    count: int, *, times: int = 1, ring: bool = False, branch: bool = False, used: bool = True
) -> Change:
    """Functions, each of which calls the one before it so many times, the last one first.

    branch: from within a branch. used: by the graph.
    """

    def change(made: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        made.opset_import.append(opsets[1])
        for index in range(count):
            name = f"f{index - 1}" if index else f"f{count - 1}"
            callee = ("local", name) if index or ring else ("", "Identity")
            nodes = [
                helper.make_node(callee[1], ["x"], [f"y{turn}"], domain=callee[0])
                for turn in range(times)
            ]
            if branch:
                inner = helper.make_graph(nodes, "inner", [], [])
                nodes = [helper.make_node("If", ["x"], ["y0"], then_branch=inner)]
            made.functions.insert(
                0, helper.make_function("local", f"f{index}", ["x"], ["y0"], nodes, opsets)
            )
        if used:
            node = helper.make_node(f"f{count - 1}", ["image"], ["z"], domain="local")
            made.graph.node.append(node)

    return change


def twice(made: onnx.ModelProto) -> None:
    calls(1)(made)
    made.functions.append(made.functions[0])


ENDLESS = [
    (cycle, "node 'flatten' ('Flatten') reads 'logits', which no earlier node writes"),
    (made_twice, "'flat' is written by two nodes"),
    (nested(25), "messages nest deeper than 64"),
    (nested_types, "messages nest deeper than 64"),
    (calls(3, ring=True), "(its function 'f2' calls itself); export it again"),
    (calls(1, ring=True, used=False), "(its function 'f0' calls itself); export it again"),
    (calls(3, ring=True, branch=True), "(its function 'f2' calls itself); export it again"),
    (calls(70), "its functions call each other through more than 64"),
    (calls(70, branch=True), "its functions call each other through more than 64"),
    # more than Python can follow
    (calls(5000), "its functions call each other through more than 64"),
    (calls(30, times=2), "it has more than 1,000,000 nodes, its functions written out"),
    (twice, "it has two functions 'f0'"),
]


def test_functions_and_subgraphs_that_end_are_read(write: Callable[..., Path]) -> None:
    for change in (nested(5), calls(5, times=3)):
        check_onnx_file(write(change))


# -- wherever it stands ----------------------------------------------------------------------------

OPSETS = [helper.make_opsetid("", 18)]
READS_NOWHERE = helper.make_node("Relu", ["nowhere"], ["y"], name="lost")


def branch(*nodes: onnx.NodeProto, **parts: Any) -> onnx.NodeProto:
    inner = helper.make_graph(list(nodes), "inner", [], [], **parts)
    return helper.make_node("If", ["image"], ["z"], then_branch=inner)


def in_graph(node: onnx.NodeProto) -> Change:
    return lambda made: made.graph.node.append(node)


def in_function(*nodes: onnx.NodeProto, opsets: Any = OPSETS, **parts: Any) -> Change:
    made_of = helper.make_function("local", "f", ["x"], ["y"], list(nodes), opsets, **parts)
    return lambda made: made.functions.append(made_of)


def negative_info() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("odd", TensorProto.FLOAT, [-7])


def trained(**parts: Any) -> Change:
    """With a graph of how it was trained."""

    def change(made: onnx.ModelProto) -> None:
        graph = helper.make_graph(parts.get("nodes", []), "training", [], [])
        graph.initializer.extend(parts.get("tensors", []))
        graph.value_info.extend(parts.get("infos", []))
        made.training_info.add().algorithm.CopyFrom(graph)

    return change


def sparse(made: onnx.ModelProto) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [0], [])
    made.graph.sparse_initializer.add(values=values, dims=[-3])


def in_a_default(made: onnx.ModelProto) -> None:
    lost = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[-7])
    attribute = AttributeProto(name="a", type=AttributeProto.TENSOR, t=lost)
    in_function(attribute_protos=[attribute])(made)


def raw_text(made: onnx.ModelProto) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.STRING, dims=[3], raw_data=b"abc")
    made.graph.initializer.append(tensor)


LOST = "(node 'lost' ('Relu') reads 'nowhere', which no earlier node writes: the graph is cyclic, "
NEGATIVE = "(tensor 'odd' has the dimension -7); export it again"
LOST_TENSOR = TensorProto(name="odd", data_type=TensorProto.FLOAT, dims=[-7])


PARTS = [
    (in_graph(branch(READS_NOWHERE)), LOST),
    (in_function(READS_NOWHERE), LOST),
    (trained(nodes=[READS_NOWHERE]), LOST),
    (in_graph(branch(value_info=[negative_info()])), NEGATIVE),
    (in_function(value_info=[negative_info()]), NEGATIVE),
    (in_function(branch(value_info=[negative_info()])), NEGATIVE),
    (trained(infos=[negative_info()]), NEGATIVE),
    (trained(tensors=[LOST_TENSOR]), NEGATIVE),
    (in_a_default, "(tensor 'c' has the dimension -7); export it again"),
    (sparse, "(tensor 'of a sparse kind' has the dimension -3); export it again"),
    (raw_text, "(tensor 't' has 3 bytes of data; its shape takes 3); export it again"),
    (
        in_function(opsets=[helper.make_opsetid("", 9999)]),
        "(its opset is 9999; known are 1 to 28); export it again",
    ),
]


# -- versions ------------------------------------------------------------------------------------


def versions(ir: int = 10, opset: int = 18) -> Change:
    def change(made: onnx.ModelProto) -> None:
        made.ir_version, made.opset_import[0].version = ir, opset

    return change


VERSIONS = [
    (versions(ir=999), "its IR version is 999; known are 1 to 14"),
    (versions(ir=-1), "its IR version is -1"),
    (versions(opset=9999), "its opset is 9999; known are 1 to 28"),
    (versions(opset=0), "its opset is 0"),
]


@pytest.mark.parametrize(("change", "message"), SHAPES + ENDLESS + PARTS + VERSIONS)
def test_changed_to_harm(write: Callable[..., Path], change: Change, message: str) -> None:
    assert message in refusal(write(change))


def test_the_known_versions_are_those_of_the_installed_onnx() -> None:
    assert onnx.IR_VERSION == rules.MAX_IR_VERSION
    assert onnx.defs.onnx_opset_version() == rules.MAX_OPSET
    kinds = {code for name, code in TensorProto.DataType.items() if name != "UNDEFINED"}
    assert kinds == rules.BITS.keys() | {TensorProto.STRING}


def test_an_unknown_domain_is_the_runtimes_to_refuse(write: Callable[..., Path]) -> None:
    def change(made: onnx.ModelProto) -> None:
        made.graph.node[2].domain = "nobody.knows"
        made.opset_import.append(helper.make_opsetid("nobody.knows", 1))

    path = write(change)
    for read in readers(path)[1:]:
        with pytest.raises(DeployError) as refused:
            read()
        assert "\n" not in str(refused.value)
    assert len(read_onnx(path).graph.node) == 3


# -- bytes ---------------------------------------------------------------------------------------


def test_every_cut_and_what_is_no_file(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    whole = path.read_bytes()
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        try:
            check_onnx_file(path)
        except ArtifactError:
            refused += 1
    assert refused > len(whole) * 0.9
    for other, message in ((tmp_path, "is no file"), (tmp_path / "none", "No such file")):
        with pytest.raises(ArtifactError, match=message):
            check_onnx_file(other)


def test_a_file_beyond_protobufs_limit(tmp_path: Path) -> None:
    path = tmp_path / "vast.onnx"
    with path.open("wb") as file:
        file.truncate((1 << 31) + 1000)
    assert "has 2.0 GiB and an ONNX file at most 2" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x3a\x02\x12\x00\x3a\x02\x12\x00\x08\x04", "is there a second time"),
        (b"\x0b\x0c\x3a\x00", "wire type 3"),
        (b"\x3d\x00\x00\x00\x00", "has wire type 5"),
        (b"\x02\x00\x3a\x00", "has the number 0"),
        (b"\x3a\x04\x12\x02\xff\xfe", "is no UTF-8"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\x0a\x01\x09\x3a\x00", "has wire type 2"),
        (b"\x08\x09\xa3\x06\x3a\x00", "(wire type 3 at byte 2 is none of protobuf's)"),
        (b"\x08\x09\x3a\x00\x12\x05ab", "(the field at byte 4 ends after its message)"),
        # a tensor whose data lie in a place of number 5
        (b"\x08\x09\x3a\x09\x2a\x07\x10\x01\x42\x01w\x70\x05", "has the data location 5"),
        # an input that is a tensor and a sequence
        (
            b"\x08\x09" + encoded(7, encoded(11, encoded(2, encoded(1, b"\x08\x01") + b"\x22\0"))),
            "(its input or output '' is no tensor of numbers)",
        ),
        (b"", "holds no ONNX graph; name an .onnx file"),
    ],
)
def test_what_parsers_could_differ_on(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    assert message in refusal(path)


def test_fields_are_counted(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    monkeypatch.setattr(trees, "MAX_FIELDS", 20)
    assert "it has more than 20 fields" in refusal(path)


def test_packed_dims_are_counted_and_read(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = b"\x0a\x02\x03\x04" + b"\x10\x01" + b"\x42\x01w"  # dims packed, FLOAT, "w"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    path = write()
    path.write_bytes(b"\x08\x09\x3a" + bytes([len(graph)]) + graph)
    assert list(read_onnx(path).graph.initializer[0].dims) == [3, 4]
    monkeypatch.setattr(trees, "MAX_FIELDS", 6)
    assert "it has more than 6 fields" in refusal(path)
    # where nothing stands behind them
    last = b"\x10\x01" + b"\x42\x01w" + b"\x0a\x09" + bytes(9)
    path.write_bytes(b"\x08\x09" + encoded(7, encoded(5, last)))
    assert "it has more than 6 fields" in refusal(path)


def test_the_schema_is_onnxs() -> None:
    """Every message and text of onnx.proto is read, but for what no reader here follows."""
    skipped = {"segment", "device_configurations", "configuration"}
    seen = set()

    def walk(descriptor: Any, schema: dict[int, Any]) -> None:
        if descriptor.full_name in seen:
            return
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            kind = schema.get(field.number)
            if field.message_type is not None:
                if kind is None:
                    assert field.name in skipped
                    continue
                assert (kind.holds, kind.many) == ("m", field.is_repeated)
                walk(field.message_type, kind.message)
            elif field.type == field.TYPE_STRING:
                assert kind is not None and kind.holds == "s", field.full_name
        assert schema.keys() <= {field.number for field in descriptor.fields}

    walk(protocol.ModelProto.DESCRIPTOR, trees._MODEL)
    assert {"onnx.GraphProto", "onnx.TypeProto.Map", "onnx.FunctionProto"} <= seen


def test_an_honest_file_goes_through_every_reader(write: Callable[..., Path]) -> None:
    for read in readers(write()):
        opened = read()
        if hasattr(opened, "close"):
            opened.close()
    assert files.MAX_BYTES == (1 << 31) - 1
