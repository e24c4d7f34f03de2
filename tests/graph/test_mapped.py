"""Weights mapped from the file: the same model, the same numbers, less memory."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph._file import MIN_MAPPED_BYTES, mappable_model
from t2t_deploy.runtime import Session, SessionRequest, _ort, open_session

from ..onnx_models import constants, model_of
from ..program import finish

RNG = np.random.default_rng(0)
LARGE = RNG.standard_normal((64, 48)).astype(np.float32)
SMALL = RNG.standard_normal(48).astype(np.float32)
INPUT = RNG.standard_normal((2, 64)).astype(np.float32)


def product_with(large: np.ndarray = LARGE) -> onnx.ModelProto:
    """logits = image @ large + small."""
    nodes = [
        helper.make_node("MatMul", ["image", "large"], ["product"]),
        helper.make_node("Add", ["product", "small"], ["logits"]),
    ]
    return model_of(nodes, constants({"large": large, "small": SMALL}), ["n", 64], ["n", 48])


def opened(path: Path) -> Session:
    return open_session(SessionRequest("ort-cpu", path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a model.onnx"
    onnx.save(product_with(), path)
    return path


def test_the_graph_and_the_file_are_the_model(file: Path) -> None:
    mapped = mappable_model(file)
    assert mapped.mapped_bytes == LARGE.nbytes >= MIN_MAPPED_BYTES
    assert len(mapped.graph) < file.stat().st_size - LARGE.nbytes + 100
    model = onnx.load_model_from_string(mapped.graph)
    (large, small) = model.graph.initializer
    assert large.data_location == TensorProto.EXTERNAL
    assert small.data_location == TensorProto.DEFAULT
    load_external_data_for_model(model, str(file.parent))
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
        del tensor.external_data[:]
    assert model == product_with()


def test_a_session_computes_the_same_bits(file: Path) -> None:
    import onnxruntime

    direct = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = direct.run(None, {"image": INPUT})
    with opened(file) as session:
        assert np.array_equal(session.run({"image": INPUT})["logits"], expected)


def test_an_open_session_outlives_its_file(file: Path) -> None:
    with opened(file) as session:
        before = session.run({"image": INPUT})["logits"]
        other = file.with_name("other.onnx")
        onnx.save(product_with(LARGE * 2), other)
        other.replace(file)
        assert np.array_equal(session.run({"image": INPUT})["logits"], before)


def test_a_file_replaced_while_it_is_loaded_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = file.with_name("other.onnx")
    onnx.save(product_with(LARGE * 2), other)

    def swapped(path: Path) -> object:
        found = mappable_model(path)
        shutil.copy(other, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        return found

    monkeypatch.setattr(_ort, "mappable_model", swapped)
    with pytest.raises(ArtifactError, match="was replaced while it was being loaded"):
        opened(file)


def test_external_data_of_the_file_itself_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(product_with(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert mappable_model(path).mapped_bytes == 0
    assert mappable_model(path).graph == path.read_bytes()
    with opened(path) as session:
        whole = session.run({"image": INPUT})["logits"]
    np.testing.assert_allclose(whole, INPUT @ LARGE + SMALL, rtol=1e-4, atol=1e-4)
    # beside what the file holds
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(LARGE, "large"))
    onnx.save(model, path)
    assert mappable_model(path).mapped_bytes == LARGE.nbytes
    with opened(path) as session:
        assert np.array_equal(session.run({"image": INPUT})["logits"], whole)


def test_damaged_files_are_refused_in_one_line(file: Path) -> None:
    whole = file.read_bytes()
    cut = file.with_name("cut.onnx")
    refused = 0
    for length in [*range(200), *range(200, len(whole), 101)]:
        cut.write_bytes(whole[:length])
        try:
            mappable_model(cut)
        except ValueError:
            refused += 1
        with pytest.raises(ArtifactError, match=r"holds no ONNX graph|is no readable ONNX file"):
            opened(cut)
    assert refused > 250  # the others end where a field ends


def test_flipped_bytes_end_in_an_answer_or_in_a_refusal(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    flipped = file.with_name("flipped.onnx")
    rng = np.random.default_rng(1)
    outcomes = {"read": 0, "refused": 0}
    for position in rng.choice(len(whole), 400, replace=False):
        damaged = whole.copy()
        damaged[position] ^= 1 << int(rng.integers(8))
        flipped.write_bytes(damaged)
        try:
            mappable_model(flipped)
            outcomes["read"] += 1
        except ValueError:
            outcomes["refused"] += 1
    # nearly all of the file is weights, which are not looked at
    assert outcomes["read"] > 300 and sum(outcomes.values()) == 400


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_of_a_session_of_variant_14(tmp_path: Path) -> None:
    """At most 1.45 times the weights, after the imports, batch 1, float32."""
    from t2t_deploy.commands import export_onnx
    from t2t_deploy.types import Target
    from t2t_deploy.workspace import Workspace

    artifact = export_onnx(variant="14", target=Target.CPU, workspace=Workspace(tmp_path))
    script = """
import sys
from pathlib import Path
import numpy, onnxruntime
from t2t_deploy.bench._environment import peak_resident_bytes, resident_bytes
from t2t_deploy.runtime import SessionRequest, open_session
path = Path(sys.argv[1])
image = numpy.zeros((1, 3, 224, 224), numpy.float32)
before = resident_bytes()
with open_session(SessionRequest("ort-cpu", path, threads=2)) as session:
    for _ in range(3):
        session.run({"image": image})
print((peak_resident_bytes() - before) / path.stat().st_size)
"""
    done = finish(artifact.path, code=script, status=0)
    print(f"peak growth over the size of the weights: {done.out.strip()}")
    assert float(done.out) <= 1.45
