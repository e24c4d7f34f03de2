"""Outlier channels change activations and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from t2t_deploy.model import (
    Backbone,
    ModelConfig,
    T2TViT,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)

from .outliers import Outliers, StateDict, with_outliers

PERFORMER = ModelConfig(
    "small", TokensType.PERFORMER, 32, 2, 2, 2.0, 32, image_size=32, num_classes=10
)
CONFIGS = {
    "performer": PERFORMER,
    "transformer": dataclasses.replace(PERFORMER, tokens_type=TokensType.TRANSFORMER),
    "se": dataclasses.replace(PERFORMER, backbone=Backbone.SE),
    "ghost": dataclasses.replace(PERFORMER, backbone=Backbone.GHOST, mlp_ratio=3.0),
    "dense": dataclasses.replace(PERFORMER, backbone=Backbone.DENSE, stages=(1, 1), growth=32),
}
# Products are the same up to the rounding of a factor and its inverse; float64 rounds at 1e-16.
EXACT = 1e-13


def in_float64(config: ModelConfig) -> StateDict:
    return {key: tensor.double() for key, tensor in random_state_dict(config).items()}


def pictures(config: ModelConfig) -> torch.Tensor:
    shape = (4, *config.input_shape)
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape))


def error(config: ModelConfig, found: StateDict, wanted: StateDict) -> float:
    """Worst relative error of the logits of one picture, in the weights' own precision."""
    dtype = found["head.weight"].dtype
    inputs = pictures(config).to(dtype)
    with torch.inference_mode():
        a, b = (reference_from_state_dict(dict(w), config)(inputs) for w in (found, wanted))
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_the_model_is_the_same(name: str, factor: float) -> None:
    config, plain = CONFIGS[name], random_state_dict(CONFIGS[name])
    wide = in_float64(config)
    assert error(config, with_outliers(wide, factor).state_dict, wide) < EXACT
    # as near as float32 sums in another order are; the given weights stay
    assert 0 < error(config, with_outliers(plain, factor).state_dict, plain) < 1e-5
    assert all(torch.equal(t, plain[key]) for key, t in random_state_dict(config).items())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_pair_is_there(name: str) -> None:
    """Two norms of each of two token blocks and two backbone blocks, 5 % of their channels."""
    config = CONFIGS[name]
    found = with_outliers(random_state_dict(config), 100)
    assert len(found.channels) == 8
    assert {key: len(indices) for key, indices in found.channels.items() if "token" in key} == {
        "tokens_to_token.attention1.norm1": 7,  # of 147
        "tokens_to_token.attention1.norm2": 2,  # of 32
        "tokens_to_token.attention2.norm1": 14,  # of 288
        "tokens_to_token.attention2.norm2": 2,
    }
    backbone = with_outliers(random_state_dict(config), 100, tokens=False).channels
    assert len(backbone) == 4 and all(key.startswith("blocks.") for key in backbone)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_forgotten_column_is_caught(name: str) -> None:
    """For each weight that reads a norm: one column left as it was."""
    config = CONFIGS[name]
    plain = in_float64(config)
    found = with_outliers(plain, 100)
    changed = [
        key
        for key, tensor in found.state_dict.items()
        if tensor.ndim == 2 and not torch.equal(tensor, plain[key])
    ]
    assert len(changed) == (12 if name == "ghost" else 8)
    for key in changed:
        wrong = dict(found.state_dict)
        column = int((wrong[key] != plain[key]).any(dim=0).nonzero()[0])
        wrong[key] = wrong[key].clone()
        wrong[key][:, column] = plain[key][:, column]
        assert error(config, wrong, plain) > 1e9 * EXACT, key


def test_the_same_seed_gives_the_same_channels() -> None:
    plain = random_state_dict(PERFORMER)
    first, again, other = (with_outliers(plain, 30, seed=seed) for seed in (0, 0, 1))
    assert first.channels == again.channels != other.channels
    assert all(torch.equal(t, again.state_dict[key]) for key, t in first.state_dict.items())


def test_an_unknown_design() -> None:
    norm = {f"blocks.0.norm2.{part}": torch.ones(4) for part in ("weight", "bias")}
    with pytest.raises(KeyError, match=r"nothing known reads blocks\.0\.norm2"):
        with_outliers(norm, 30)


def outputs_of_norms(found: Outliers | None, config: ModelConfig) -> dict[str, torch.Tensor]:
    """Largest |x| of each channel of each norm, by its name."""
    weights = random_state_dict(config) if found is None else found.state_dict
    model = reference_from_state_dict(weights, config)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            seen[name] = output.abs().flatten(0, -2).amax(dim=0)

        model.get_submodule(name).register_forward_hook(hook)

    for name, module in T2TViT.named_modules(model):
        if isinstance(module, nn.LayerNorm):
            keep(name)
    with torch.inference_mode():
        model(pictures(config).float())
    return seen


def test_channels_become_outliers() -> None:
    found = with_outliers(random_state_dict(PERFORMER), 100)
    plain, scaled = (outputs_of_norms(each, PERFORMER) for each in (None, found))
    for name, indices in found.channels.items():
        growth = (scaled[name] / plain[name]).numpy()
        wanted = np.ones(len(growth))
        wanted[list(indices)] = 100
        np.testing.assert_allclose(growth, wanted, rtol=1e-3)
    torch.testing.assert_close(scaled["norm"], plain["norm"], rtol=1e-4, atol=1e-4)
