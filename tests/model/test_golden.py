"""The reference against logits of the authors' own implementation.

`tests/data/V_224_1000.npy` holds logits (2, 1000) float32 for the seeded weights of
`random_tensor` and the pictures of `golden_pictures`; `state_dict_shapes.json` the released names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from t2t_deploy.model import (
    VARIANTS,
    T2TViT,
    config_for_variant,
    random_state_dict,
    reference_from_state_dict,
)
from t2t_deploy.types import TOLERANCES, Precision

DATA = Path(__file__).parents[1] / "data"
GOLDEN = sorted(path.name.removesuffix("_224_1000.npy") for path in DATA.glob("*_224_1000.npy"))


def golden_pictures() -> torch.Tensor:
    stream = np.random.RandomState(1000)
    return torch.from_numpy(stream.standard_normal((2, 3, 224, 224)).astype(np.float32))


def test_golden_logits_are_at_hand_for_seven_variants() -> None:
    assert GOLDEN == ["14", "14_resnext", "14_se", "16_ghost", "7", "dense", "t_14"]


@pytest.mark.parametrize("variant", GOLDEN)
def test_logits_equal_the_authors(variant: str) -> None:
    config = config_for_variant(variant)
    model = reference_from_state_dict(random_state_dict(config), config)
    with torch.inference_mode():
        logits = model(golden_pictures()).numpy()
    wanted = np.load(DATA / f"{variant}_224_1000.npy")
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert error <= TOLERANCES[Precision.FP32].rel_l2


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_shapes_and_order_are_the_released(
    variant: str, released_shapes: dict[str, dict[str, list[int]]]
) -> None:
    with torch.device("meta"):
        model = T2TViT(VARIANTS[variant].config)
    found = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(found.items()) == list(released_shapes[variant].items())
    assert sum(p.numel() for p in model.parameters()) == VARIANTS[variant].params


def test_the_family_is_whole(released_shapes: dict[str, dict[str, list[int]]]) -> None:
    assert sorted(VARIANTS) == sorted(released_shapes)
