"""Checkpoints of mmcls and mmpretrain: their names, and the function that each of them trained."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn import functional

from t2t_deploy.model import (
    Checkpoint,
    ModelConfig,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)

from . import tiny
from .tiny import StateDict, refusal, same

CONFIG = ModelConfig(
    "tiny", TokensType.TRANSFORMER, 24, 2, 2, 3.0, 16, image_size=32, num_classes=4
)


def library_name(key: str) -> str:
    if key.startswith("head."):
        return f"head.layers.{key}"
    key = re.sub(r"^blocks\.", "encoder.", key)
    key = re.sub(r"\.norm(\d)\.", r".ln\1.", key)
    key = key.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
    return f"backbone.{key}"


@pytest.fixture(scope="module")
def released() -> StateDict:
    return random_state_dict(CONFIG)


@pytest.fixture(scope="module")
def named(released: StateDict) -> StateDict:
    return {library_name(key): value for key, value in released.items()}


def load(content: object, **options: Any) -> Checkpoint:
    return tiny.load(content, config=CONFIG, **options)


def library_logits(weights: StateDict, images: torch.Tensor) -> torch.Tensor:
    """What mmpretrain 1.x computes, written out: q·k times the root of the head's width."""
    double = {key: value.double() for key, value in weights.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, double[f"{name}.weight"], double.get(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(
            x, x.shape[-1:], double[f"{name}.weight"], double[f"{name}.bias"], 1e-5
        )

    def layer(x: torch.Tensor, name: str, heads: int, own_skip: bool) -> torch.Tensor:
        qkv = linear(norm(x, f"{name}.ln1"), f"{name}.attn.qkv")
        batch, tokens, width = qkv.shape
        q, k, v = qkv.reshape(batch, tokens, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        weight = (q @ k.transpose(-2, -1) * q.shape[-1] ** 0.5).softmax(dim=-1)
        y = linear((weight @ v).transpose(1, 2).reshape(batch, tokens, -1), f"{name}.attn.proj")
        x = v.squeeze(1) + y if own_skip else x + y
        hidden = functional.gelu(linear(norm(x, f"{name}.ln2"), f"{name}.ffn.layers.0.0"))
        return x + linear(hidden, f"{name}.ffn.layers.1")

    x = functional.unfold(images.double(), 7, padding=2, stride=4).transpose(1, 2)
    for step, side in ((1, 8), (2, 4)):
        x = layer(x, f"backbone.tokens_to_token.attention{step}", 1, own_skip=True)
        grid = x.transpose(1, 2).unflatten(2, (side, side))
        x = functional.unfold(grid, 3, padding=1, stride=2).transpose(1, 2)
    x = linear(x, "backbone.tokens_to_token.project")
    cls = double["backbone.cls_token"].expand(x.shape[0], -1, -1)
    x = torch.cat((cls, x), dim=1) + double["backbone.pos_embed"]
    for index in range(CONFIG.depth):
        x = layer(x, f"backbone.encoder.{index}", CONFIG.num_heads, own_skip=False)
    return linear(norm(x, "backbone.norm")[:, 0], "head.layers.head")


def logits(checkpoint: Checkpoint, images: torch.Tensor) -> torch.Tensor:
    model = reference_from_state_dict(checkpoint.state_dict, CONFIG).double()
    found: torch.Tensor = model(images.double())
    return found


def test_weights_of_mmcls_0_are_the_released_function(
    released: StateDict, named: StateDict
) -> None:
    meta = {"mmcls_version": "0.17.0", "CLASSES": ["a", "b", "c", "d"]}
    found = load({"meta": meta, "state_dict": named})
    assert same(found.state_dict, released)
    assert found.class_names == ("a", "b", "c", "d")
    assert found.notes == (
        "names of mmpretrain, and q·k scaled as released: mmcls '0.17.0' wrote the file; "
        "qk_scale=mmpretrain chooses the other",
    )


def test_weights_trained_with_mmpretrain_1_are_its_function(named: StateDict) -> None:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = library_logits(named, images)

    def error(qk_scale: str) -> float:
        found = logits(load({"meta": {}, "state_dict": named}, qk_scale=qk_scale), images)
        return float((found - expected).norm() / expected.norm())

    assert error("mmpretrain") < 1e-6
    assert error("released") > 1e-2, "the two scales are two functions"


def test_rows_of_q_are_scaled_by_powers_of_two_where_heads_are_64_wide() -> None:
    config = ModelConfig(
        "wide", TokensType.TRANSFORMER, 128, 1, 2, 1.0, 64, image_size=16, num_classes=2
    )
    released = random_state_dict(config)
    weights = {library_name(key): value for key, value in released.items()}
    found = tiny.load(weights, config=config, qk_scale="mmpretrain").state_dict
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(found[key][:128], 64 * released[key][:128])
    assert torch.equal(found[key][128:], released[key][128:])


@pytest.mark.parametrize("meta", [None, {}, {"mmengine_version": "0.10"}, {"mmcls_version": "1.0"}])
def test_the_scale_is_asked_for_where_the_file_does_not_say(meta: object, named: StateDict) -> None:
    message = refusal({"meta": meta, "state_dict": named}, config=CONFIG)
    assert "does not say how q·k was scaled in training: give qk_scale released" in message
    assert "or mmpretrain, for weights trained with mmpretrain 1.x" in message


def test_the_average_of_mmengine_is_its_state_dict(named: StateDict, released: StateDict) -> None:
    trained = {f"module.{key}": value + 1 for key, value in named.items()}
    content = {
        "meta": {"mmengine_version": "0.10"},
        "ema_state_dict": {"steps": torch.tensor(5), **trained},
        "state_dict": named,
        "message_hub": {},
    }
    found = load(content, qk_scale="released")
    assert torch.equal(found.state_dict["norm.weight"], released["norm.weight"])
    assert found.notes[0].startswith(
        "of the weights in the file state_dict were taken, the average"
    )
    found = load(content, qk_scale="released", weights="ema_state_dict")
    assert torch.equal(found.state_dict["norm.weight"], released["norm.weight"] + 1)


def test_heads_of_other_kinds(named: StateDict, released: StateDict) -> None:
    meta = {"mmcls_version": "0.25.0"}
    linear = {key.replace("head.layers.head", "head.fc"): value for key, value in named.items()}
    found = load({"meta": meta, "state_dict": linear})
    assert torch.equal(found.state_dict["head.weight"], released["head.weight"])
    hidden = {**named, "head.layers.pre_logits.weight": torch.zeros(24, 24)}
    assert "has a head of 2 layers" in refusal({"meta": meta, "state_dict": hidden}, config=CONFIG)


def test_a_performer_has_no_such_scale(weights: StateDict) -> None:
    assert "which mmpretrain does not have: leave qk_scale" in refusal(
        weights, qk_scale="mmpretrain"
    )
