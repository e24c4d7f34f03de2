"""The reference against logits of the authors' own implementation.

`tests/data/V_224_1000.npy` holds logits (2, 1000) float32 for the seeded weights of
`random_tensor` and pictures of seeded noise; `state_dict_shapes.json` the released names.
"""

from __future__ import annotations

import json
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
# variant -> key -> shape of the released checkpoints at 224 px and 1000 classes
SHAPES = json.loads((DATA / "state_dict_shapes.json").read_text())
GOLDEN = sorted(path.name.removesuffix("_224_1000.npy") for path in DATA.glob("*_224_1000.npy"))


def test_the_family_is_whole_and_seven_variants_have_golden_logits() -> None:
    assert sorted(VARIANTS) == sorted(SHAPES)
    assert GOLDEN == ["14", "14_resnext", "14_se", "16_ghost", "7", "dense", "t_14"]


@pytest.mark.parametrize("variant", GOLDEN)
def test_logits_equal_the_authors(variant: str) -> None:
    config = config_for_variant(variant)
    model = reference_from_state_dict(random_state_dict(config), config)
    pictures = np.random.RandomState(1000).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pictures)).numpy()
    wanted = np.load(DATA / f"{variant}_224_1000.npy")
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert error <= TOLERANCES[Precision.FP32].rel_l2


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_shapes_and_order_are_the_released(variant: str) -> None:
    with torch.device("meta"):
        model = T2TViT(VARIANTS[variant].config)
    found = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert list(found.items()) == list(SHAPES[variant].items())
    assert sum(p.numel() for p in model.parameters()) == VARIANTS[variant].params
    assert all(p.is_meta for p in model.parameters())  # it holds no memory
