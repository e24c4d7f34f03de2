"""T2T-ViT as mmcls and mmpretrain write it: its names, its scale of q·k, its classes.

mmcls 0.x multiplies q·k by the root's inverse as the released model does. mmpretrain 1.x hands that
inverse to a function that divides by it, so it multiplies by the root of the head's width, in the
tokens-to-token module too. Sources: mmcls 0.25 and mmpretrain 1.2, models/utils/attention.py and
models/backbones/t2t_vit.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from t2t_deploy._untrusted import shortened
from t2t_deploy.errors import CheckpointError
from t2t_deploy.model._config import Backbone, ModelConfig, TokensType

_BACKBONE = "backbone."
_OWN_NAME = re.compile(r"(^encoder\.\d+\.|\.ffn\.layers\.)")
_RENAMED = (
    (re.compile(r"^encoder\."), "blocks."),
    (re.compile(r"\.ln([12])\."), r".norm\1."),
    (re.compile(r"\.ffn\.layers\.0\.0\."), ".mlp.fc1."),
    (re.compile(r"\.ffn\.layers\.1\."), ".mlp.fc2."),
)
_HEADS = ("head.layers.head.", "head.fc.")


def is_mmpretrain(keys: Iterable[str]) -> bool:
    """Whether a backbone has these libraries' names."""
    return any(_OWN_NAME.search(key) for key in keys)


def released_key(key: str) -> str:
    """The released name of a weight of the backbone."""
    for pattern, name in _RENAMED:
        key = pattern.sub(name, key)
    return key


def head_keys(keys: Iterable[str], prefix: str) -> dict[str, str]:
    """Names of the head, which stands beside the backbone ``prefix`` -> released ones."""
    beside = prefix.removesuffix(_BACKBONE)
    found = {}
    for key in keys:
        for head in _HEADS:
            if key in (f"{beside}{head}weight", f"{beside}{head}bias"):
                found[key] = f"head.{key.removeprefix(beside + head)}"
        if key == f"{beside}head.layers.pre_logits.weight":
            found[key] = "head.layers.pre_logits.weight"
    return found


def scale_of_file(meta: Mapping[str, Any], qk_scale: str | None, path: Path) -> tuple[str, str]:
    """The scale to read these libraries' weights by, and the note on it.

    Raises CheckpointError where neither the file nor the caller says which.
    """
    if qk_scale is not None:
        return qk_scale, f"names of mmpretrain, and q·k scaled as asked: {qk_scale}"
    version = meta.get("mmcls_version")
    if isinstance(version, str) and version.startswith("0."):
        return "released", (
            f"names of mmpretrain, and q·k scaled as released: mmcls {shortened(version)} wrote "
            "the file; qk_scale=mmpretrain chooses the other"
        )
    raise CheckpointError(
        f"{path} has mmpretrain's names and does not say how q·k was scaled in training: give "
        "qk_scale released, for mmcls 0.x and for converted released weights, or mmpretrain, for "
        "weights trained with mmpretrain 1.x, which multiplies by the root of the head's width "
        "where the released model divides"
    )


def rescaled(
    state_dict: Mapping[str, torch.Tensor], config: ModelConfig, path: Path
) -> dict[str, torch.Tensor]:
    """The weights by which the released model computes what mmpretrain 1.x does.

    Rows of q are multiplied by the quotient of the scales, in float64: a power of two for the
    blocks of released variants. Raises CheckpointError for a model that mmpretrain does not have.
    """
    plain = config.backbone is Backbone.PLAIN
    if config.tokens_type is not TokensType.TRANSFORMER or not plain:
        raise CheckpointError(
            f"{path} is {config.name}, which mmpretrain does not have: leave qk_scale out, or give "
            "released"
        )
    scaled = dict(state_dict)
    for key, weight in state_dict.items():
        if not key.endswith("attn.qkv.weight"):
            continue
        width, inputs = weight.shape[0] // 3, weight.shape[1]
        blocks = key.startswith("blocks.")
        factor = width / config.num_heads if blocks else math.sqrt(width * inputs)
        changed = weight.clone()
        changed[:width] = (weight[:width].double() * factor).float()
        scaled[key] = changed
    return scaled


def class_names(content: Any, classes: int) -> tuple[str, ...] | None:
    """The names of a file's classes, if it has one for each."""
    if not isinstance(content, Mapping):
        return None
    meta = content.get("meta")
    groups = [meta, meta.get("dataset_meta")] if isinstance(meta, Mapping) else []
    for group in (*groups, content, content.get("hyper_parameters")):
        if not isinstance(group, Mapping):
            continue
        for key in _CLASS_KEYS:
            names = _listed(group.get(key), classes)
            if names is not None:
                return names
    return None


_CLASS_KEYS = (
    "CLASSES", "classes", "class_names", "label_names", "labels", "class_to_idx", "label2id",
    "idx_to_class", "id2label",
)  # fmt: skip


def _listed(value: object, classes: int) -> tuple[str, ...] | None:
    if isinstance(value, Mapping) and len(value) == classes:
        if all(isinstance(key, str) and type(one) is int for key, one in value.items()):
            value = {one: key for key, one in value.items()}
        indices = {int(key) if str(key).isdecimal() else None: one for key, one in value.items()}
        value = [indices.get(index) for index in range(classes)]
    if not isinstance(value, (list, tuple)) or len(value) != classes:
        return None
    return tuple(value) if all(isinstance(one, str) and one for one in value) else None
