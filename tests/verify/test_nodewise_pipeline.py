"""Exported models node by node: verdicts, manifests, the picture, the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from t2t_deploy._files import file_sha256
from t2t_deploy.commands import VerifiedArtifact, verify_artifacts
from t2t_deploy.engine import engine_version
from t2t_deploy.errors import ArtifactError, MissingDependencyError, UsageError
from t2t_deploy.types import Precision, Status
from t2t_deploy.workspace import Workspace, manifest_path_for, manifest_text

from ..cli.command import manifest_of
from ..noise import write_noise
from ..program import called
from ..small import tiny_exports

Result = dict[str, Any]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one model in each precision; fp32 with a dynamic batch."""
    folder = tmp_path_factory.mktemp("exported")
    typed = ({"precision": p, "batch": 1} for p in (Precision.FP16, Precision.BF16))
    return tiny_exports(folder, {}, *typed).root


@pytest.fixture
def root(exported: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A picture takes a second: those who test it ask for `matplotlib`.
    monkeypatch.setattr("t2t_deploy.commands._verify.is_installed", lambda module: False)
    return Path(shutil.copytree(exported, empty_folder / "artifacts"))


def file_of(root: Path, precision: str) -> Path:
    (path,) = (root / "onnx").glob(f"*-{precision}-*.onnx")
    return path


def change(path: Path, model: onnx.ModelProto) -> None:
    """Put another graph in the place of an artifact, the manifest knowing of it."""
    onnx.save(model, path)
    values = manifest_of(path) | {"sha256": file_sha256(path)}
    manifest_path_for(path).write_text(manifest_text(values))


@pytest.fixture
def overflowing(root: Path) -> Path:
    """The fp16 file with its last fp16 LayerNorm taken up 2**24 times and down again."""
    path = file_of(root, "fp16")
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    graph = model.graph
    halves = {i.name for i in graph.value_info if i.type.tensor_type.elem_type == 10}
    *_, (index, node) = (
        (index, node)
        for index, node in enumerate(graph.node)
        if node.op_type == "LayerNormalization" and node.output[0] in halves
    )
    kept, node.output[0] = node.output[0], "before"
    names = ["before", "up_once", "up_twice", "down_once", kept]
    factors = ["up", "up", "down", "down"]
    for a, b, by in zip(names, names[1:], factors, strict=False):
        index += 1
        graph.node.insert(index, helper.make_node("Mul", [a, by], [b], name=f"to_{b}"))
    for name, value in (("up", 4096.0), ("down", 1 / 4096)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float16), name))
    change(path, model)
    return path


def verified(path: Path, **options: Any) -> VerifiedArtifact:
    (result,) = verify_artifacts([path], workspace=path.parents[1], **options)
    return result


# -- exported models -------------------------------------------------------------------------------


def test_a_bf16_export_has_a_verdict(root: Path) -> None:
    found = manifest_of(file_of(root, "bf16"))["verification"]
    assert found["status"] == "passed"
    assert 1e-4 < found["rel_l2"] < found["tolerance"] == 4e-2
    assert len(found["pictures"]) == 3
    assert found["reason"] == (
        "evaluated node by node on 3 pictures: ONNX Runtime's CPU kernels have no bf16 matrix "
        "product"
    )


def test_a_wrong_bf16_file_fails(root: Path) -> None:
    path = file_of(root, "bf16")
    model = onnx.load(path)
    (scale,) = (t for t in model.graph.initializer if t.name.endswith("head.bias"))
    values = numpy_helper.to_array(scale)
    scale.CopyFrom(
        numpy_helper.from_array((values.astype(np.float32) + 1).astype(values.dtype), scale.name)
    )
    change(path, model)
    result = verified(path)
    assert result.verification.status is Status.FAILED and result.failed
    reason = str(result.verification.reason)
    assert reason.startswith("relative error ") and "; evaluated node by node on 3" in reason
    assert result.artifact.require_manifest().failed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_exports_pass_node_by_node(root: Path, precision: str) -> None:
    path = file_of(root, precision)
    result = verified(path, nodewise=True)
    found = result.nodewise
    assert found is not None and found.status is Status.PASSED, found and found.reason
    names = list(found.logits.pictures)
    assert (names[0], names[-1]) == ("noise 0", "cream")
    assert found.logits.rel_l2 is not None and found.weights_rel_l2 is not None
    assert found.weights_rel_l2 < found.logits.tolerance
    model = onnx.load(path)
    assert {n.dtype for n in found.nodes} == {
        "fp32": {"float32"},
        "fp16": {"float16", "float32"},
        "bf16": {"bfloat16", "float32"},
    }[precision]
    assert 0.8 * len(model.graph.node) < len(found.nodes) <= 1.2 * len(model.graph.node)
    assert found.nodes[-1].tensor == "logits"
    stored = manifest_of(path)["details"]["nodewise"]
    assert stored == json.loads(json.dumps(found.summary()))


def test_what_a_runtime_hides_fails_and_is_refused_from_then_on(overflowing: Path) -> None:
    workspace = Workspace(overflowing.parents[1])
    plain = verified(overflowing)
    assert plain.verification.status is Status.PASSED and not plain.failed
    result = verified(overflowing, nodewise=True)
    assert result.verification.status is Status.PASSED
    found = result.nodewise
    assert found is not None and found.status is Status.FAILED and result.failed
    assert found.first_overflow is not None
    assert (found.first_overflow.name, found.first_overflow.op) == ("to_up_twice", "Mul")
    with pytest.raises(ArtifactError, match=r"failed its check \(Mul overflows first in up_twice"):
        workspace.open(overflowing)
    # a runtime that hides it does not clear it
    verified(overflowing)
    with pytest.raises(ArtifactError, match="failed its check"):
        workspace.open(overflowing)


def test_own_pictures_leave_the_manifest_alone(root: Path, tmp_path: Path) -> None:
    write_noise(*(tmp_path / f"{index}.png" for index in range(5)))
    path = file_of(root, "fp16")
    before = manifest_of(path)
    result = verified(path, images=tmp_path, nodewise=True)
    assert result.nodewise is not None
    assert list(result.nodewise.logits.pictures) == ["0.png", "1.png", "2.png"]
    assert manifest_of(path) == before


def test_a_graph_it_cannot_take(root: Path) -> None:
    """Named, it is an error; among all of a workspace, not run with the reason."""
    path = file_of(root, "fp32")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "almost"
    for a, b, to in (("almost", "wide", TensorProto.DOUBLE), ("wide", "logits", 1)):
        model.graph.node.append(helper.make_node("Cast", [a], [b], to=to))
    change(path, model)
    with pytest.raises(ArtifactError, match="tensor 'wide', a result of Cast, has type DOUBLE"):
        verified(path, nodewise=True)
    for other in (file_of(root, "bf16"), manifest_path_for(file_of(root, "bf16"))):
        other.unlink()
    found = verify_artifacts([], workspace=root, nodewise=True)
    statuses = [result.nodewise.status for result in found if result.nodewise is not None]
    assert statuses == [Status.NOT_RUN, Status.PASSED]


# -- the picture -----------------------------------------------------------------------------------


@pytest.fixture
def matplotlib(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("t2t_deploy.commands._verify.is_installed", lambda module: True)


@pytest.mark.usefixtures("matplotlib")
def test_the_picture_goes_to_the_logs_or_where_it_is_asked_for(
    overflowing: Path, tmp_path: Path
) -> None:
    logs = overflowing.parents[1] / "logs"
    result = verified(overflowing, nodewise=True)
    assert result.plot == logs / f"{overflowing.stem}.nodewise.png"
    with Image.open(result.plot) as picture:
        assert (picture.format, picture.size) == ("PNG", (1320, 825))
    target = tmp_path / "new" / "growth.png"
    assert verified(overflowing, nodewise=True, plot=target).plot == target
    assert target.read_bytes() == result.plot.read_bytes()
    assert [path.name for path in logs.iterdir()] == [result.plot.name]


def test_pictures_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(root, "fp16")
    with pytest.raises(UsageError, match=r"plot is 'a\.svg'; expected a path that ends in \.png"):
        verified(path, nodewise=True, plot="a.svg")
    done = called("verify", "--plot", "a.png")
    assert (done.status, done.err) == (
        2,
        "error: plot draws what nodewise finds; give nodewise too\n",
    )
    with pytest.raises(UsageError, match="names one picture and 3 artifacts are verified"):
        verify_artifacts([], workspace=root, nodewise=True, plot="a.png")
    # where none was asked for, its absence is a note
    done = called("verify", path, "--nodewise")
    assert done.status == 0
    assert "node by node: passed" in done.out and "first overflow: none" in done.out
    assert "picture:" not in done.out
    assert "note: no picture of it: pip install 't2t-deploy[plot]' brings matplotlib" in done.err
    assert not (root / "logs").exists()
    monkeypatch.setattr("t2t_deploy._optional._installed_name", lambda module: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 't2t-deploy\[plot\]'"):
        verified(path, nodewise=True, plot="a.png")


# -- the command line ------------------------------------------------------------------------------


def test_the_command_line(overflowing: Path) -> None:
    done = called("verify", overflowing, "--nodewise")
    assert done.status == 3
    assert f"{overflowing.name}, node by node: failed" in done.out
    assert "first overflow: up_twice (Mul, float16)" in done.out
    for heading in ("largest range", "largest error added"):
        assert heading in done.out
    assert done.err.splitlines()[-1] == f"error: failed verification: {overflowing.name}"

    done = called("verify", overflowing, "--nodewise", "--json")
    (result,) = done.json["results"]
    assert done.status == 3
    assert result["status"] == "passed"
    found = result["nodewise"]
    assert found["status"] == "failed"
    assert found["reason"].startswith("Mul overflows first in up_twice on noise 0: ")
    assert found["first_overflow"]["op"] == "Mul"
    assert len(found["largest_range"]) == len(found["largest_jumps"]) == 5
    assert set(found["nodes"][0]) >= {
        *("name", "op", "tensor", "dtype", "max_abs", "min_nonzero_abs", "non_finite"),
        *("overflow", "underflow", "subnormal_share", "rel_error"),
    }


@pytest.fixture
def engine(root: Path) -> Path:
    """A manifest that says its file is an engine: nothing of it is read."""
    path = root / "engines" / "e.engine"
    path.parent.mkdir()
    path.write_bytes(b"engine")
    values = manifest_of(file_of(root, "fp16"))
    values |= {"kind": "engine", "file": path.name, "sha256": file_sha256(path)}
    version = engine_version("tensorrt-rtx")
    built = {"backend": "tensorrt-rtx", "backend_version": version, "sm": ["portable"]}
    manifest_path_for(path).write_text(manifest_text(values | {"details": {"engine": built}}))
    return path


@pytest.mark.usefixtures("matplotlib")
def test_an_engine_is_not_run(engine: Path) -> None:
    done = called("verify", engine, "--nodewise", "--json")
    assert done.status == 1  # it was asked for, and is not there
    found = done.json["results"][0]["nodewise"]
    assert (found["status"], found["nodes"], found["plot"]) == ("not_run", [], None)
    assert found["reason"] == "an engine has no nodes; name the ONNX file it is of"
