"""Layers beside their limits: right and wrong ones of trained models and of every kind of model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2t_deploy.commands import export_onnx, quantize_onnx
from t2t_deploy.types import Precision, Status
from t2t_deploy.verify import Located, locate_file
from t2t_deploy.verify._locate import ComparedLayer, compared_layer
from t2t_deploy.verify._stepwise import LayerError
from t2t_deploy.workspace import Artifact, Workspace

from ..small import OTHER_BACKBONES, tiny_exports
from ..trained import EIGHT_BITS, export_weights, trained_weights, write_digits


def compared(rel_l2: float, channel_error: float) -> ComparedLayer:
    """A float32 layer that one rounding moves by 1e-7."""
    error = LayerError("head", 1, rel_l2, 3, channel_error, 1e-7, 1e-7, 0)
    return compared_layer(error, "logits", "cream", Precision.FP32, Precision.FP32)


def test_the_limits_of_a_layer() -> None:
    layer = compared(3e-6, 6e-6)
    # one rounding of the result, and one of a sum of one term
    assert layer.limit == 16 * (1e-7 + 2 * 2.0**-24)
    assert layer.channel_limit == 32 * (1e-7 + 2 * 2.0**-24)
    assert not layer.differs


def test_all_numbers_or_one_channel_may_be_too_far_off() -> None:
    assert compared(4e-6, 6e-6).differs
    layer = compared(2e-6, 8e-6)
    assert layer.differs
    assert layer.words == (
        "tensor logits: relative error 2.0e-06, of channel 3 8.0e-06, at most 7.0e-06 expected"
    )


# -- exported models -----------------------------------------------------------------------------

# q and k swapped in one block, the projection transposed in the next
WRONG = ["blocks.1.attn.qkv (queries)", "blocks.1.attn.qkv (keys)", "blocks.2.attn.proj"]


def wronged(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    qkv, proj = "blocks.1.attn.qkv.weight", "blocks.2.attn.proj.weight"
    queries, keys, values = weights[qkv].chunk(3)
    return weights | {
        qkv: torch.cat((keys, queries, values)),
        proj: weights[proj].T.contiguous(),
    }


def exported(root: Path, kind: str, *, wrong: bool = False) -> Workspace:
    """A workspace with the float export of a model trained on digits, or of a wrong one."""
    weights = trained_weights(kind)
    workspace = Workspace(root / "artifacts")
    export_weights(workspace, kind, wronged(weights) if wrong else weights)
    return workspace


def check_passed(name: str, artifact: Artifact, workspace: Workspace) -> Located:
    """Every layer within its limits; those nearest to them are printed."""
    manifest = artifact.require_manifest()
    found = locate_file(artifact.path, manifest, workspace.weights(manifest))
    rel_l2 = max(found.layers, key=lambda layer: layer.rel_l2 / layer.limit)
    channel = max(found.layers, key=lambda layer: layer.channel_error / layer.channel_limit)
    print(
        f"{name}: of its limit {rel_l2.rel_l2 / rel_l2.limit:.2f} in {rel_l2.layer} on "
        f"{rel_l2.on}, {channel.channel_error / channel.channel_limit:.2f} in a channel of "
        f"{channel.layer} on {channel.on}"
    )
    assert found.status is Status.PASSED, found.reason
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_float32_and_eight_bits(kind: str, tmp_path: Path) -> None:
    right = exported(tmp_path / "right", kind)
    (artifact,) = right.artifacts("onnx")
    check_passed(f"{kind} fp32", artifact, right)
    wrong = exported(tmp_path / "wrong", kind, wrong=True)
    images = write_digits(tmp_path / "digits") / "calibration"
    for form, asked in EIGHT_BITS.items():
        request = dict(asked, images=images, speed=False)
        made = quantize_onnx(**request, workspace=right)
        check_passed(f"{kind} {form}", made, right)
        other = quantize_onnx(**request, workspace=wrong)
        # held against the weights that it should have been made of
        stored = right.weights(made.require_manifest())
        found = locate_file(other.path, other.require_manifest(), stored)
        assert found.status is Status.FAILED
        assert [layer.layer for layer in found.layers if layer.differs] == WRONG
        assert found.first is not None and found.first.layer == WRONG[0]


# so many layers are compared
LAYERS = {"se": 46, "ghost": 44, "dense": 48}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_BACKBONES)
def test_small_ones_of_other_backbones(kind: str, tmp_path: Path) -> None:
    workspace = tiny_exports(tmp_path, {}, model=OTHER_BACKBONES[kind])
    (artifact,) = workspace.artifacts("onnx")
    assert len(check_passed(kind, artifact, workspace).layers) == LAYERS[kind]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["14_se", "16_ghost", "dense", "19", "24"])
def test_full_size(variant: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "artifacts")
    check_passed(variant, export_onnx(variant=variant, workspace=workspace), workspace)
