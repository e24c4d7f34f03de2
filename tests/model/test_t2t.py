from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from t2t_deploy.errors import ConfigError, InputError
from t2t_deploy.model import (
    Backbone,
    ModelConfig,
    ModelOutput,
    PerformerBlock,
    SoftSplit,
    T2TViT,
    TokensType,
    config_for_variant,
    random_state_dict,
    reference_from_state_dict,
    soft_split,
)
from t2t_deploy.model._t2t import restructure

TINY = ModelConfig(
    name="tiny",
    tokens_type=TokensType.PERFORMER,
    embed_dim=16,
    depth=2,
    num_heads=2,
    mlp_ratio=2.0,
    token_dim=8,
    image_size=32,
    num_classes=5,
)
PADDINGS = st.integers(0, 4)


@given(
    split=st.integers(1, 7).flatmap(
        lambda kernel: st.builds(SoftSplit, st.just(kernel), st.integers(0, kernel - 1), PADDINGS)
    ),
    height=st.integers(7, 20),
    width=st.integers(7, 20),
)
@settings(max_examples=60, deadline=None)
def test_soft_split_is_unfold_and_the_count_follows_the_paper(
    split: SoftSplit, height: int, width: int
) -> None:
    x = torch.randn(2, 3, height, width)
    tokens = soft_split(x, split)
    stride = split.kernel - split.overlap
    rows, columns = (
        math.floor((side + 2 * split.padding - split.kernel) / stride + 1)
        for side in (height, width)
    )
    assert tokens.shape == (2, rows * columns, 3 * split.kernel**2)
    assert split.num_tokens(height, width) == rows * columns
    unfolded = functional.unfold(x, split.kernel, padding=split.padding, stride=stride)
    assert torch.equal(tokens, unfolded.transpose(1, 2))


def test_restructure_puts_tokens_back_row_by_row() -> None:
    tokens = torch.arange(2 * 6 * 4).reshape(2, 6, 4)
    image = restructure(tokens, (2, 3))
    assert image.shape == (2, 4, 2, 3)
    assert torch.equal(image[1, :, 1, 2], tokens[1, 5])


def test_a_map_smaller_than_a_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="a map of 4x9 padded by 0 is smaller"):
        SoftSplit(7, 3, 0).grid(4, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 0}, "embed_dim is 0; expected a whole number"),
        ({"image_size": 40}, "image size is 40; expected a multiple of 16, such as 32 or 48"),
        ({"image_size": 8}, r"image size is 8; expected a multiple of 16, such as 16$"),
        ({"num_heads": 3}, "a block of width 16 does not divide into 3 heads"),
        ({"token_dim": 7}, "token_dim is 7; the performer has token_dim / 2"),
        ({"mlp_ratio": math.nan}, "mlp_ratio is nan"),
        ({"stages": (1, 1)}, "stages belong to the dense backbone"),
        ({"growth": 8}, "growth is 8; the dense backbone needs at least 1, the others 0"),
        ({"backbone": Backbone.GHOST}, "the ghost backbone has embed_dim 16 and mlp_ratio 2.0"),
    ],
)
def test_dimensions_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    values = {name: getattr(TINY, name) for name in TINY.__slots__} | change
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**values)


def test_a_picture_of_another_size_is_refused() -> None:
    model = reference_from_state_dict(random_state_dict(TINY), TINY)
    with pytest.raises(InputError, match=r"input is \(1, 3, 48, 48\); expected \(B, 3, 32, 32\)"):
        model(torch.zeros(1, 3, 48, 48))


def test_the_skip_of_a_token_block_is_v() -> None:
    """With a zero projection and MLP the block returns v, which has no trace of the input."""
    state = random_state_dict(TINY)
    for key in ("proj.weight", "proj.bias", "mlp.2.weight", "mlp.2.bias"):
        state[f"tokens_to_token.attention1.{key}"].zero_()
    model = reference_from_state_dict(state, TINY)
    block = model.tokens_to_token.attention1
    x = torch.randn(1, 64, 147)
    assert isinstance(block, PerformerBlock)
    v = block.kqv(block.norm1(x))[..., 16:]
    assert torch.equal(block(x), v)


def test_dense_widths_follow_growth_and_transitions() -> None:
    dense = config_for_variant("dense")
    assert (dense.block_widths()[:4], dense.head_dim) == ([128, 192, 256, 160], 584)


def test_random_weights_are_the_same_bits_everywhere() -> None:
    """A digest of them all, as drawn once; a change makes old benchmarks incomparable."""
    state = random_state_dict(TINY)
    digest = hashlib.sha256(b"".join(state[key].numpy().tobytes() for key in sorted(state)))
    assert digest.hexdigest()[:16] == "12ff6e7305b9c7ad"
    assert torch.equal(state["head.weight"], random_state_dict(TINY)["head.weight"])
    assert not torch.equal(state["head.weight"], random_state_dict(TINY, seed=1)["head.weight"])


@pytest.mark.parametrize("head_norm", [False, True])
def test_the_typical_norm_is_of_logits_of_any_features(head_norm: bool) -> None:
    """Root mean square over features of unit variance, scaled by the norm before the classifier."""
    config = TINY.with_(num_classes=3)
    if head_norm:
        config = replace(config, head_norm=True)
    model = T2TViT(config).double()
    norm = model.norm if model.head_norm is None else model.head_norm
    assert model.head is not None
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        model.head.weight.normal_()
        features = torch.randn(200_000, config.head_dim, dtype=torch.float64) * norm.weight
        norms = (features @ model.head.weight.T).square().sum(dim=1).mean().sqrt()
    assert model.typical_norm() == pytest.approx(float(norms), rel=1e-2)
    headless = replace(TINY, num_classes=0, output=ModelOutput.EMBEDDING)
    assert T2TViT(headless).typical_norm() == 0
