"""Shapes of weights, and seeded random ones: the same bits on every machine."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from t2t_deploy.model._config import ModelConfig
from t2t_deploy.model._t2t import T2TViT

# Key and query rows are smaller, so that performer features (exponentials of squared norms)
# neither vanish nor explode.
_KEY_QUERY_GAIN = 0.35


def random_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """One float32 weight, determined by its name, its shape and the seed alone.

    Gaussians from numpy's frozen ``RandomState`` stream, scaled so that activations keep their
    size: norms around 1, biases 0.05, projections 1/sqrt(fan-in), ``w`` rows of norm sqrt(m).
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    stream = np.random.RandomState(int.from_bytes(digest[:4], "little"))
    values = stream.standard_normal(tuple(shape))
    kind = key.rpartition(".")[2]
    if ("norm" in key and kind == "weight") or "cheap_operation" in key:
        values = 1 + 0.2 * values
    elif kind == "bias":
        values = 0.05 * values
    elif kind in ("cls_token", "pos_embed"):
        values = 0.5 * values
    elif kind == "w":
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        values = values * np.sqrt(shape[0]) / norms
    else:
        values = values * 1.0 / np.sqrt(np.prod(shape[1:]))
    if key.endswith("kqv.weight"):
        values[: shape[0] * 2 // 3] *= _KEY_QUERY_GAIN
    return values.astype(np.float32)


def random_state_dict(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of `random_tensor` weights."""
    shapes = weight_shapes(config)
    return {key: torch.from_numpy(random_tensor(key, shape, seed)) for key, shape in shapes.items()}


@functools.lru_cache(maxsize=32)
def weight_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of a model's weights."""
    with torch.device("meta"):
        model = T2TViT(config)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
