"""Backbones without classifier: what their graphs give in every precision, against float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.nn import functional

from t2t_deploy.commands import (
    Package,
    evaluate_artifacts,
    export_onnx,
    load_session,
    package_artifact,
    predict_images,
    quantize_onnx,
    verify_artifacts,
)
from t2t_deploy.errors import ArtifactError, UsageError
from t2t_deploy.model import (
    ModelOutput,
    config_from_dict,
    config_from_toml,
    random_state_dict,
    reference_from_state_dict,
)
from t2t_deploy.types import Tail, Target
from t2t_deploy.workspace import Artifact, Workspace

from ..small import tiny_model

SIZE = (32, 48)
OUTPUTS: dict[Tail, dict[str, tuple[int, ...]]] = {
    Tail.EMBEDDING: {"embedding": (64,)},
    Tail.UNIT_EMBEDDING: {"unit_embedding": (64,)},
    Tail.TOKENS: {"tokens": (7, 64)},
    Tail.FEATURES: {
        "features_s4": (32, 8, 12),
        "features_s8": (32, 4, 6),
        "features_s16": (64, 2, 3),
    },
}


def exported(folder: Path, tail: Tail, kind: str = "performer", **options: Any) -> Artifact:
    config = folder / "tiny.toml"
    config.write_text(tiny_model(kind, depth=2, embed_dim=64, token_dim=32))
    workspace = Workspace(folder / "ws")
    return export_onnx(config=config, image_size=SIZE, tail=tail, workspace=workspace, **options)


def passed(artifact: Artifact) -> Mapping[str, Any]:
    """Its verification."""
    found = artifact.require_manifest().verification or {}
    assert found["status"] == "passed"
    return found


@pytest.mark.parametrize("kind", ["performer", "transformer"])
@pytest.mark.parametrize("tail", OUTPUTS, ids=lambda tail: tail.value)
def test_outputs_equal_the_model_in_float64(tmp_path: Path, tail: Tail, kind: str) -> None:
    made = exported(tmp_path, tail, kind)
    manifest = made.require_manifest()
    assert passed(made)["top1_agreement"] is None
    assert manifest.graph_io.tail is tail
    pictures = np.random.default_rng(3).standard_normal((3, 3, *SIZE)).astype(np.float32)
    with load_session(made.path) as session:
        found = session.run({"image": pictures})
        shapes = {spec.name: spec.shape[1:] for spec in session.outputs}
    assert shapes == OUTPUTS[tail]
    config = config_from_dict(manifest.config)
    state_dict = random_state_dict(config)
    model = reference_from_state_dict(state_dict, config).double()
    expected = model.outputs(torch.from_numpy(pictures).double())
    if tail is Tail.UNIT_EMBEDDING:
        expected = (functional.normalize(expected[0]),)
    for own, exact in zip(found.values(), expected, strict=True):
        exact_values = exact.numpy()
        assert own.shape == exact_values.shape
        off = np.linalg.norm(own - exact_values) / np.linalg.norm(exact_values)
        assert off < 1e-5


def test_embedding_is_what_the_classifier_reads(tmp_path: Path) -> None:
    config = config_from_dict(exported(tmp_path, Tail.LOGITS).require_manifest().config)
    state_dict = random_state_dict(config)
    whole = reference_from_state_dict(state_dict, config).double()
    kept = {key: one for key, one in state_dict.items() if not key.startswith("head.")}
    headless = config.headless(ModelOutput.EMBEDDING)
    backbone = reference_from_state_dict(kept, headless).double()
    picture = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    assert whole.head is not None
    torch.testing.assert_close(whole.head(backbone(picture)), whole(picture))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tail", OUTPUTS, ids=lambda tail: tail.value)
def test_half_precisions(tmp_path: Path, tail: Tail, precision: str) -> None:
    made = exported(tmp_path, tail, precision=precision)
    assert passed(made)["rel_l2"] > 1e-5


@pytest.mark.parametrize("target", [Target.PORTABLE, Target.OPENVINO])
@pytest.mark.parametrize("tail", OUTPUTS, ids=lambda tail: tail.value)
def test_eight_bits(tmp_path: Path, tail: Tail, target: Target) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(folder / f"{index}.png")
    made = exported(tmp_path, tail, target=target)
    small = quantize_onnx(
        made.path, images=folder, speed=False, workspace=Workspace(tmp_path / "ws")
    )
    assert 1e-4 < passed(small)["rel_l2"] < 6e-2
    names = [output.name for output in onnx.load(small.path).graph.output]
    assert names == list(OUTPUTS[tail])


def test_a_wrong_map_is_found_among_right_ones(tmp_path: Path) -> None:
    made = exported(tmp_path, Tail.FEATURES)
    model = onnx.load(made.path)
    (producer,) = (node for node in model.graph.node if "features_s8" in node.output)
    producer.output[0] = "right"
    scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [1.001])
    model.graph.initializer.append(scale)
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "scale"], ["features_s8"]))
    workspace = Workspace(tmp_path / "ws")
    manifest = made.require_manifest()

    def save(path: Path) -> dict[str, Any]:
        onnx.save(model, path)
        return {}

    wrong = workspace.store(manifest, save, stem="wrong")
    (result,) = verify_artifacts([wrong.path], workspace=workspace)
    assert result.verification.reason is not None
    assert result.verification.reason.startswith("features_s8: relative error 1.00e-03")


def test_what_needs_classes_refuses(tmp_path: Path) -> None:
    made = exported(tmp_path, Tail.EMBEDDING)
    workspace = Workspace(tmp_path / "ws")
    Image.new("RGB", (64, 64)).save(tmp_path / "p.png")
    with pytest.raises(ArtifactError, match="gives embedding and no classes"):
        predict_images(made.path, str(tmp_path / "p.png"), receive=print, workspace=workspace)
    with pytest.raises(UsageError, match="gives embedding and no classes"):
        evaluate_artifacts([made.path], images=tmp_path, workspace=workspace)


def test_packaged_without_a_step_for_classes(tmp_path: Path) -> None:
    made = exported(tmp_path, Tail.FEATURES)
    package = package_artifact(
        made.path, triton=tmp_path / "models", workspace=Workspace(tmp_path / "ws")
    )
    assert isinstance(package, Package)
    names = [folder.name.removeprefix(package.service.name) for folder in package.folders]
    assert names == ["", "_preprocess", "_images"]
    config = (package.folders[-1] / "config.pbtxt").read_text()
    assert config.count("features_s8") == 3  # an output, and its way out of the model


@pytest.mark.parametrize("tail", [Tail.LOGITS, Tail.TOPK])
def test_weights_without_a_classifier_have_no_classes(tmp_path: Path, tail: Tail) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(tiny_model(depth=1))
    state_dict = random_state_dict(config_from_toml(config).headless(ModelOutput.EMBEDDING))
    torch.save(state_dict, tmp_path / "headless.pth")
    given: dict[str, Any] = {"checkpoint": tmp_path / "headless.pth", "config": config}
    with pytest.raises(UsageError, match=r"no classifier, and the tail .* needs one"):
        export_onnx(**given, tail=tail, workspace=Workspace(tmp_path / "ws"))
