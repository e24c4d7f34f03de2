"""ONNX files whose numbers lie in other files: those of the same folder are read, no others."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2t_deploy.engine._network import parse_network
from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import BACKENDS, SessionRequest, open_session

from .harmful_onnx import WEIGHT, Change, refusal


def lies_in(**entries: str) -> Change:
    def change(made: onnx.ModelProto) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)

    return change


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """48 bytes beside the folder of the model, and links to them in it."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "inside"
    folder.mkdir(exist_ok=True)
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    (folder / "circle").symlink_to(folder / "circle")
    return secret


@pytest.mark.parametrize(
    "location",
    [
        *("../secret.bin", "./../secret.bin", "x/../../secret.bin", "{absolute}", "link.bin"),
        *("linked/secret.bin", "circle", "..\\secret.bin", "C:secret.bin", "\\\\host\\share\\x"),
        *("", "*/_ORT_MEM_ADDR_/*", "a\0b"),
    ],
)
def test_data_outside_the_folder(write: Callable[..., Path], outside: Path, location: str) -> None:
    path = write(lies_in(location=location.format(absolute=outside)))
    message = refusal(path)
    assert "expected a file of the same folder, by a relative name" in message
    with pytest.raises(ArtifactError, match="expected a file of the same folder"):
        read_onnx(path)  # though it would not read them


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "none.bin"}, "lies in 'none.bin', which is no file"),
        ({"location": "."}, "which is no file"),
        ({"location": "pipe"}, "which is no file"),
        ({"location": "beside.bin", "offset": "4"}, "takes 48 bytes, and 'beside.bin' does not"),
        ({"location": "beside.bin", "length": "4"}, "takes 48 bytes, and 'beside.bin' does not"),
        ({"location": "beside.bin", "offset": "-4"}, "has the offset '-4'"),
        ({"location": "beside.bin", "length": "9" * 30}, "has the length '999"),
    ],
)
def test_data_that_are_not_there(
    write: Callable[..., Path], tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    path = write(lies_in(**entries))
    (path.parent / "beside.bin").write_bytes(WEIGHT.tobytes())
    os.mkfifo(path.parent / "pipe")
    assert message in refusal(path)


def test_a_place_that_is_told_twice(write: Callable[..., Path]) -> None:
    def change(made: onnx.ModelProto) -> None:
        lies_in(location="beside.bin")(made)
        made.graph.initializer[0].external_data.add(key="location", value="other.bin")

    assert "gives the location of its data twice" in refusal(write(change))


SECRET = TensorProto(
    name="c", data_type=TensorProto.FLOAT, dims=[0], data_location=TensorProto.EXTERNAL
)
SECRET.external_data.add(key="location", value="../secret.bin")
HOLDS_IT = helper.make_node("Constant", [], ["c"], value=SECRET)


def in_an_attribute(made: onnx.ModelProto) -> None:
    made.graph.node.insert(0, HOLDS_IT)


def in_a_subgraph(made: onnx.ModelProto) -> None:
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    graph = helper.make_graph([HOLDS_IT], "then", [], [])
    made.graph.node.insert(0, helper.make_node("If", ["yes"], ["z"], then_branch=graph))
    made.graph.node.insert(0, yes)


def in_a_function(made: onnx.ModelProto) -> None:
    opsets = [helper.make_opsetid("", 18)]
    made.functions.append(helper.make_function("local", "f", [], ["c"], [HOLDS_IT], opsets))


def in_a_sparse_tensor(made: onnx.ModelProto) -> None:
    made.graph.sparse_initializer.add(values=SECRET, dims=[3])


@pytest.mark.parametrize(
    "change", [in_an_attribute, in_a_subgraph, in_a_function, in_a_sparse_tensor]
)
def test_no_tensor_is_overlooked(write: Callable[..., Path], outside: Path, change: Change) -> None:
    assert "expected a file of the same folder" in refusal(write(change))


def test_data_in_the_folder_are_read(write: Callable[..., Path]) -> None:
    path = write(lies_in(location="sub/beside.bin", offset="8", length="48"))
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "beside.bin").write_bytes(bytes(8) + WEIGHT.tobytes())
    read = read_onnx(path, external_data=True)
    assert np.array_equal(numpy_helper.to_array(read.graph.initializer[0]), WEIGHT)
    image = np.ones((1, 3, 1, 1), np.float32)
    with open_session(SessionRequest("ort-cpu", path, threads=1)) as session:
        assert np.array_equal(session.run({"image": image})["logits"], WEIGHT.sum(0)[None])


class Untouched:
    """A library that gets nothing of a file that is refused."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


def nobodys_relu(made: onnx.ModelProto) -> None:
    made.graph.node[2].domain = "nobody.knows"
    made.opset_import.append(helper.make_opsetid("nobody.knows", 1))


LIES_OUTSIDE = (
    "{path} is no readable ONNX file (tensor 'w' lies in '../secret.bin'; expected a file of the "
    "same folder, by a relative name); export it again"
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lies_in(location="../secret.bin"), LIES_OUTSIDE),
        (
            nobodys_relu,
            "{path} has the operator 'Relu' of the domain 'nobody.knows', which this parser does "
            "not know and would take for ONNX's own; replace it, or take another backend",
        ),
    ],
    ids=["data outside", "another domain"],
)
def test_tensorrts_parser_gets_no_file_that_is_refused(
    write: Callable[..., Path], outside: Path, change: Change, message: str
) -> None:
    path = write(change)
    library: Any = Untouched()
    with pytest.raises(ArtifactError) as refused:
        parse_network(library, library, library, path, "a")
    assert str(refused.value) == message.format(path=path)


@pytest.mark.parametrize("backend", ["ort-cuda", "ort-tensorrt"])
def test_a_session_on_a_gpu_gets_no_file_that_is_refused(
    write: Callable[..., Path], outside: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("onnxruntime.InferenceSession", Untouched())
    path = write(lies_in(location="../secret.bin"))
    with pytest.raises(ArtifactError, match=re.escape(LIES_OUTSIDE.format(path=path))):
        BACKENDS[backend].open(SessionRequest(backend, path))
