"""Logits of the reference in float64, on every picture that exports are checked on."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from t2t_deploy.model import ModelConfig, T2TViT, reference_from_state_dict
from t2t_deploy.verify import PictureSet, flat_pictures, standard_pictures

from .prepared import usual


@functools.lru_cache(maxsize=2)
def every_picture(size: int) -> PictureSet:
    """Noise, photographs and flat ones."""
    standard, flat = standard_pictures(usual(size)), flat_pictures(usual(size))
    assert len(standard.names) == 8, "the photographs come with t2t-deploy[export]"
    return standard + flat


def in_float64(state: Mapping[str, torch.Tensor], config: ModelConfig) -> T2TViT:
    return reference_from_state_dict({key: t.double() for key, t in state.items()}, config)


def logits(model: torch.nn.Module, pictures: torch.Tensor, *, batch: int = 1) -> np.ndarray:
    """(B, classes) float64, of so many pictures at a time."""
    with torch.inference_mode():
        found: np.ndarray = torch.cat([model(c) for c in pictures.split(batch)]).double().numpy()
    return found


def errors(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Relative L2 of each picture's logits."""
    relative: np.ndarray = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return relative
