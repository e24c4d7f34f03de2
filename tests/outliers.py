"""Outlier channels like those of large trained ViTs, put into a checkpoint without changing it.

A LayerNorm's output feeds one linear step. Scaling chosen channels of its weight and bias, and
dividing the columns of the linear weights that read them, gives the same model in real arithmetic,
with activations that one range per tensor cannot hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

StateDict = dict[str, torch.Tensor]

# norm -> the weights that read it, one row for each design of block
_READERS = {
    "norm1": (("kqv",), ("attn.qkv",), ("attn.q", "attn.k", "attn.v")),
    "norm2": (("mlp.fc1",), ("mlp.0",)),
}
_NORM = re.compile(r"(.+)\.(norm[12])\.weight")
_TOKENS = "tokens_to_token."


@dataclass(frozen=True)
class Outliers:
    """Weights with outliers, and the channels scaled, by the name of the norm."""

    state_dict: StateDict
    channels: dict[str, tuple[int, ...]]


def with_outliers(
    state_dict: StateDict,
    factor: float,
    *,
    share: float = 0.05,
    seed: int = 0,
    tokens: bool = True,
) -> Outliers:
    """Scale a seeded share of the channels of every norm that a linear step alone reads.

    These are norm1 and norm2 of the backbone's blocks and, with ``tokens``, of the token blocks; at
    least one channel of each. The given tensors are left as they are.
    """
    changed = {key: tensor.clone() for key, tensor in state_dict.items()}
    stream = np.random.RandomState(seed)
    channels: dict[str, tuple[int, ...]] = {}
    for key in sorted(state_dict):
        match = _NORM.fullmatch(key)
        if match is None or (key.startswith(_TOKENS) and not tokens):
            continue
        block, norm = match.groups()
        width = len(state_dict[key])
        chosen = np.sort(stream.permutation(width)[: max(1, round(share * width))])
        for part in ("weight", "bias"):
            changed[f"{block}.{norm}.{part}"][chosen] *= factor
        for reader in readers(state_dict, block, norm):
            changed[reader][:, chosen] /= factor
        channels[f"{block}.{norm}"] = tuple(chosen.tolist())
    return Outliers(changed, channels)


def readers(state_dict: StateDict, block: str, norm: str) -> list[str]:
    """The linear weights that read a norm of a block. Raises KeyError for an unknown design."""
    for names in _READERS[norm]:
        keys = [f"{block}.{name}.weight" for name in names]
        if all(key in state_dict for key in keys):
            return keys
    raise KeyError(f"nothing known reads {block}.{norm}")
