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


def exported(tail: Tail, kind: str = "performer", **options: Any) -> Artifact:
    Path("tiny.toml").write_text(tiny_model(kind, depth=2, embed_dim=64, token_dim=32))
    return export_onnx(config="tiny.toml", image_size=SIZE, tail=tail, **options)


def passed(artifact: Artifact) -> Mapping[str, Any]:
    """Its verification."""
    found = artifact.require_manifest().verification or {}
    assert found["status"] == "passed"
    return found


@pytest.mark.parametrize("kind", ["performer", "transformer"])
@pytest.mark.parametrize("tail", OUTPUTS, ids=lambda tail: tail.value)
def test_outputs_equal_the_model_in_float64(tail: Tail, kind: str) -> None:
    made = exported(tail, kind)
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


def test_embedding_is_what_the_classifier_reads() -> None:
    config = config_from_dict(exported(Tail.LOGITS).require_manifest().config)
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
def test_half_precisions(tail: Tail, precision: str) -> None:
    made = exported(tail, precision=precision)
    assert passed(made)["rel_l2"] > 1e-5


@pytest.mark.parametrize("target", [Target.PORTABLE, Target.OPENVINO])
@pytest.mark.parametrize("tail", OUTPUTS, ids=lambda tail: tail.value)
def test_eight_bits(tail: Tail, target: Target) -> None:
    folder = Path("pictures")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 60)).save(folder / f"{index}.png")
    made = exported(tail, target=target)
    small = quantize_onnx(made.path, images=folder, speed=False)
    assert 1e-4 < passed(small)["rel_l2"] < 6e-2
    names = [output.name for output in onnx.load(small.path).graph.output]
    assert names == list(OUTPUTS[tail])


def test_a_wrong_map_is_found_among_right_ones() -> None:
    made = exported(Tail.FEATURES)
    model = onnx.load(made.path)
    (producer,) = (node for node in model.graph.node if "features_s8" in node.output)
    producer.output[0] = "right"
    scale = onnx.helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [1.001])
    model.graph.initializer.append(scale)
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "scale"], ["features_s8"]))
    manifest = made.require_manifest()

    def save(path: Path) -> dict[str, Any]:
        onnx.save(model, path)
        return {}

    wrong = Workspace("artifacts").store(manifest, save, stem="wrong")
    (result,) = verify_artifacts([wrong.path])
    assert result.verification.reason is not None
    assert result.verification.reason.startswith("features_s8: relative error 1.00e-03")


def test_what_needs_classes_refuses() -> None:
    made = exported(Tail.EMBEDDING)
    Image.new("RGB", (64, 64)).save("p.png")
    with pytest.raises(ArtifactError, match="gives embedding and no classes"):
        predict_images(made.path, "p.png", receive=print)
    with pytest.raises(UsageError, match="gives embedding and no classes"):
        evaluate_artifacts([made.path], images=".")


def test_packaged_without_a_step_for_classes() -> None:
    package = package_artifact(exported(Tail.FEATURES).path, triton="models")
    assert isinstance(package, Package)
    names = [folder.name.removeprefix(package.service.name) for folder in package.folders]
    assert names == ["", "_preprocess", "_images"]
    config = (package.folders[-1] / "config.pbtxt").read_text()
    assert config.count("features_s8") == 3  # an output, and its way out of the model


@pytest.mark.parametrize("tail", [Tail.LOGITS, Tail.TOPK])
def test_weights_without_a_classifier_have_no_classes(tail: Tail) -> None:
    config = Path("tiny.toml")
    config.write_text(tiny_model(depth=1))
    state_dict = random_state_dict(config_from_toml(config).headless(ModelOutput.EMBEDDING))
    torch.save(state_dict, "headless.pth")
    with pytest.raises(UsageError, match=r"no classifier, and the tail .* needs one"):
        export_onnx(checkpoint="headless.pth", config=config, tail=tail)
