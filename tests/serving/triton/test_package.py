"""What `package` writes, refuses and replaces; no server is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from t2t_deploy._files import file_sha256
from t2t_deploy.commands import Package
from t2t_deploy.errors import ArtifactError, DeployError, UsageError
from t2t_deploy.serving.triton import (
    Accelerator,
    ServingFormat,
    choose_accelerator,
    choose_batching,
    choose_format,
    signature_from_onnx,
    write_folders,
)
from t2t_deploy.types import BARE, GraphIO, Precision, ShapeProfile, Tail, Target
from t2t_deploy.workspace import Artifact, Workspace

from ...program import finish

Make = Callable[..., Package]
OfBatch = Callable[[int | None], Artifact]
ALL = tuple(ServingFormat)


def written(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_every_file_of_a_python_package(package: Make, tmp_path: Path, labels: Path) -> None:
    made = package(format=ServingFormat.PYTHON, labels=labels, name="tiny")
    step = ("config.pbtxt", "t2t-deploy.json")
    sources = (
        f"1/t2t_deploy/{name}.py" for name in ("__init__", "_preparation", "errors", "images")
    )
    modules = ("__init__", "_limits", "_processor")
    share = ("1/model.py", *(f"1/t2t_deploy/{name}.py" for name in modules))
    expected = {
        "tiny": (*step, "labels.txt", "1/model.onnx", "1/model.onnx.manifest.json", *share),
        "tiny_preprocess": (*step, "1/model.py", *sources),
        "tiny_postprocess": (*step, "1/model.py", "labels.txt"),
        "tiny_images": (*step, "1/.keep"),
    }
    assert written(tmp_path / "models") == {
        f"{folder}/{name}" for folder, names in expected.items() for name in names
    }
    assert [folder.name for folder in made.folders][-1] == "tiny_images"
    model, manifest = tmp_path / "models/tiny/1/model.onnx", made.artifact.require_manifest()
    assert file_sha256(model) == manifest.sha256
    # its manifest fits it where it lies
    assert Workspace(tmp_path / "none").open(model).require_manifest() == manifest
    note = json.loads((tmp_path / "models/tiny_images/t2t-deploy.json").read_text())
    assert note["artifact"]["sha256"] == manifest.sha256
    assert list(tmp_path.glob(".t2t-tmp-*")) == []


def test_the_newest_is_taken_and_named(package: Make, workspace: Workspace) -> None:
    newest = workspace.artifacts()[-1]
    made = package(artifact=None)
    assert made.artifact == newest
    assert made.service.name == "t2t_vit_tiny_fp32"
    assert made.service.format is ServingFormat.ONNXRUNTIME


def test_our_own_folders_are_replaced_and_said(package: Make, tmp_path: Path) -> None:
    package(name="tiny", format=ServingFormat.PYTHON)
    (tmp_path / "models/tiny/1/__pycache__").mkdir()
    (tmp_path / "models/tiny/1/__pycache__/model.pyc").write_bytes(b"as a server leaves it")
    again = package(name="tiny")
    assert again.notes == ("replaced tiny, tiny_preprocess, tiny_postprocess, tiny_images",)
    assert not (tmp_path / "models/tiny/1/model.py").exists()


@pytest.mark.parametrize("name", ["tiny", "tiny_preprocess", "tiny_images"])
def test_a_foreign_folder_is_left_alone(package: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "models" / name).mkdir(parents=True)
    with pytest.raises(ArtifactError, match=f"{name} is there and not made by t2t-deploy"):
        package(name="tiny")
    assert written(tmp_path / "models") == set()


def test_a_changed_folder_is_left_alone(package: Make, tmp_path: Path) -> None:
    package(name="tiny")
    config = tmp_path / "models/tiny/config.pbtxt"
    config.write_text(config.read_text().replace("1000", "9"))
    with pytest.raises(ArtifactError, match=r"was changed after .* \(config\.pbtxt\)"):
        package(name="tiny")
    assert "microseconds: 9" in config.read_text()
    (tmp_path / "models/tiny/2").mkdir()
    (tmp_path / "models/tiny/2/model.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"\(2/model\.onnx, config\.pbtxt\)"):
        package(name="tiny")


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two folders does not arrive: what it was to replace is back."""
    models = tmp_path / "models"
    write_folders(models, {name: {"1/model.py": name} for name in ("a", "b")}, {})
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.parent.name == "new":  # next to the repository: one file system, not polled
            assert self.parents[2] == tmp_path
        if self.parent.name == "new" and self.name == "b":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_folders(models, {name: {"1/model.py": "new"} for name in ("a", "b")}, {})
    assert (models / "a/1/model.py").read_text() == "new"
    assert (models / "b/1/model.py").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_a_failed_artifact_is_refused(
    package: Make, workspace: Workspace, artifact: OfBatch
) -> None:
    workspace.update(artifact(None), verification={"status": "failed", "reason": "off"})
    with pytest.raises(ArtifactError, match=r"failed its check \(off\)"):
        package()
    assert package(force=True).service.name == "t2t_vit_tiny_fp32"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (9, "has 9 labels and the artifact 10 classes"),
        (11, "has 11 labels and the artifact 10 classes"),
        ("ab defghij", "line 3 of .* is empty"),
        ([*"abcdefghi", "zw\u2028ei"], "the label 'zw.u2028ei' of .* has a line break"),
    ],
)
def test_labels_that_do_not_fit(
    package: Make, tmp_path: Path, lines: int | Sequence[str], message: str
) -> None:
    labels = tmp_path / "other.txt"
    labels.write_text("\n".join("x" * lines if isinstance(lines, int) else lines) + "\n")
    with pytest.raises(UsageError, match=message):
        package(labels=labels)


@pytest.mark.parametrize("name", ["", "../x", "a b", ".hidden", "ä"])
def test_names_that_are_no_folder(package: Make, name: str) -> None:
    with pytest.raises(UsageError, match="name is"):
        package(name=name)


def test_a_fixed_batch(package: Make, artifact: OfBatch) -> None:
    with pytest.raises(ArtifactError, match=r"takes exactly 4 pictures, Triton sends 1 to 4"):
        package(artifact=artifact(4).path)
    filled = package(artifact=artifact(4).path, format=ServingFormat.PYTHON).service.batching
    assert (filled.max_size, filled.preferred) == (4, (4,))
    single = package(artifact=artifact(1).path).service.batching
    assert (single.max_size, single.preferred) == (1, ())
    with pytest.raises(UsageError, match=r"--max-batch is 8 and the batch of .* fixed at 4"):
        package(artifact=artifact(4).path, format=ServingFormat.PYTHON, max_batch=8)


@pytest.mark.parametrize(
    ("profiles", "max_batch", "expected"),
    [
        (["1:8:32"], None, (32, (8, 32))),
        (["1:1:32"], None, (32, (32,))),
        (["1:8:32"], 16, (16, (8, 16))),
        (["1:1:1"], None, (1, ())),
        (["9:16:64", "1:4:8"], None, (64, (4, 8, 16, 64))),
        ([], None, (32, (4, 8, 16, 32))),
        ([], 6, (6, (4, 6))),
        ([], 1, (1, ())),
        (["4:8:32"], None, "Triton sends all from 1"),
        (["1:1:1", "8:8:8"], None, "Triton sends all from 1"),
        (["1:8:32"], 33, "takes up to 32"),
    ],
)
def test_batches_of_profiles(
    artifact: OfBatch, profiles: list[str], max_batch: int | None, expected: Any
) -> None:
    signature = signature_from_onnx(artifact(None).path, {}, 10)
    parsed = [ShapeProfile.parse(text) for text in profiles]
    ask = ("file", signature.batch, ServingFormat.TENSORRT, parsed, max_batch)
    if isinstance(expected, str):
        with pytest.raises(DeployError, match=expected):
            choose_batching(*ask)
    else:
        found = choose_batching(*ask)
        assert (found.max_size, found.preferred) == expected


def test_formats_by_kind() -> None:
    assert choose_format("engine", None) is ServingFormat.TENSORRT
    assert choose_format("onnx", None) is ServingFormat.ONNXRUNTIME
    for kind, asked in (("engine", ServingFormat.PYTHON), ("onnx", ServingFormat.TENSORRT)):
        with pytest.raises(UsageError, match="--format is"):
            choose_format(kind, asked)


# format, accelerator asked for, target, precision -> what computes it, None where refused
CHOICES = [
    ("onnxruntime", None, "portable", "fp32", "none"),
    ("onnxruntime", None, "tensorrt", "fp16", "tensorrt"),
    ("onnxruntime", None, "tensorrt", "fp8", "none"),
    ("onnxruntime", None, "openvino", "fp32", "openvino"),
    ("onnxruntime", None, "openvino", "bf16", None),
    ("onnxruntime", None, "cuda", "fp16", "cuda"),
    ("onnxruntime", None, "cuda", "bf16", None),
    ("onnxruntime", "tensorrt", "cuda", "fp16", None),
    ("onnxruntime", "tensorrt", "portable", "int8", "tensorrt"),
    ("onnxruntime", "tensorrt", "cpu", "fp32", None),
    ("onnxruntime", "openvino", "portable", "fp16", None),
    ("onnxruntime", "cuda", "portable", "fp16", "cuda"),
    ("onnxruntime", "cuda", "portable", "int8", None),
    ("onnxruntime", None, "portable", "bf16", None),
    ("python", None, "tensorrt", "fp16", "none"),
    ("python", None, "portable", "bf16", None),
    ("python", "cuda", "portable", "fp32", None),
    ("tensorrt", "tensorrt", "tensorrt", "fp16", None),
    ("tensorrt", None, "tensorrt", "bf16", "none"),
]


@pytest.mark.parametrize(("form", "asked", "target", "precision", "expected"), CHOICES)
def test_accelerators_by_format_target_and_precision(
    form: str, asked: str | None, target: str, precision: str, expected: str | None
) -> None:
    accelerator = None if asked is None else Accelerator(asked)
    ask = (ServingFormat(form), accelerator, Target(target), Precision(precision))
    if expected is None:
        with pytest.raises(UsageError):
            choose_accelerator(*ask)
    else:
        assert choose_accelerator(*ask).value == expected


def test_dynamic_ranges_stay_on_the_cpu() -> None:
    form, precision = ServingFormat.ONNXRUNTIME, Precision.INT8
    found = choose_accelerator(form, None, Target.CPU, precision, dynamic_ranges=True)
    assert found is Accelerator.NONE
    with pytest.raises(UsageError, match="int8 with dynamic ranges"):
        choose_accelerator(
            form, Accelerator.TENSORRT, Target.PORTABLE, precision, dynamic_ranges=True
        )


FLOATS, PIXELS = "float[N,3,8,8] image", "uint8[N,8,8,3] image"
SCORES, TOP = "float[N,10] scores", "float[N,5] probabilities, int64[N,5] indices"


def foreign(path: Path, inputs: str, outputs: str) -> Path:
    """A file whose graph has these inputs and outputs, and no nodes."""
    header = '<ir_version: 9, opset_import: ["": 18]>'
    onnx.save(onnx.parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{}}"), path)
    return path


@pytest.mark.parametrize(
    ("inputs", "outputs", "details", "graph_io"),
    [
        (FLOATS, SCORES, {}, BARE),
        (FLOATS, TOP, {}, GraphIO(tail=Tail.TOPK)),
        (
            *(PIXELS, SCORES, {"image_input": "uint8_nhwc", "tail": "softmax"}),
            GraphIO(embed_preprocess=True, tail=Tail.SOFTMAX),
        ),
        (PIXELS, TOP, {"tail": "topk"}, GraphIO(embed_preprocess=True, tail=Tail.TOPK)),
    ],
)
def test_signature_is_of_the_tensors_and_the_manifest(
    tmp_path: Path, inputs: str, outputs: str, details: dict[str, str], graph_io: GraphIO
) -> None:
    path = foreign(tmp_path / "m.onnx", inputs, outputs)
    found = signature_from_onnx(path, details, 10)
    assert (found.graph_io, found.classes, found.batch) == (graph_io, 10, None)
    assert found.preparation.size == (8, 8)
    assert ", ".join(spec.name for spec in found.outputs) in ("scores", "probabilities, indices")
    unknown = signature_from_onnx(path, details, None).classes
    assert unknown == (None if graph_io.tail is Tail.TOPK else 10)


@pytest.mark.parametrize(
    ("inputs", "outputs", "details", "message"),
    [
        (f"{FLOATS}, {PIXELS}2", SCORES, {}, "expected pictures, uint8"),
        ("float[N,8,8,3] x", SCORES, {}, "expected pictures, "),
        ("uint8[N,3,8,8] x", SCORES, {}, "expected pictures, "),
        (FLOATS, f"{SCORES}, {SCORES}2", {}, r"expected scores \(N, classes\)"),
        (FLOATS, "float[N,4,10] y", {}, r"expected scores \(N, classes\)"),
        (FLOATS, SCORES, {"image_input": "uint8_nhwc"}, "expected pictures, uint8"),
        (FLOATS, SCORES, {"tail": "topk"}, "of the tail topk"),
        (FLOATS, TOP, {"tail": "softmax"}, "of the tail softmax"),
        (FLOATS, "float[N,9] y", {}, "its manifest says 10 classes"),
        (FLOATS, "float16[N,10] y", {}, "expected float32"),
    ],
)
def test_a_model_that_is_no_classifier_is_refused(
    tmp_path: Path, inputs: str, outputs: str, details: dict[str, str], message: str
) -> None:
    path = foreign(tmp_path / "m.onnx", inputs, outputs)
    with pytest.raises(ArtifactError, match=message):
        signature_from_onnx(path, details, 10)


def test_a_file_that_is_no_onnx(package: Make, tmp_path: Path) -> None:
    for content in (b"", b"no graph at all"):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"m\.onnx"):
            package(artifact=tmp_path / "m.onnx")


def test_the_copied_transform_runs_without_this_package(package: Make, tmp_path: Path) -> None:
    """It comes before one that is installed."""
    copy = package(name="tiny").folders[1] / "1"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import t2t_deploy.images as images; print(images.__file__)\n"
        "print(sorted(name for name in sys.modules if name.startswith('t2t_deploy')))"
    )
    path, modules = finish(copy, code=program, cwd=tmp_path, status=0).out.splitlines()
    assert path == str(copy / "t2t_deploy/images.py")
    assert modules == str(
        [f"t2t_deploy{name}" for name in ("", "._preparation", ".errors", ".images")]
    )
