"""Variant registry, reference T2T-ViT, checkpoint loading; torch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy._optional import lazy
from t2t_deploy.model._config import (
    Backbone,
    ModelConfig,
    ModelOutput,
    SoftSplit,
    TokensType,
    config_from_dict,
    config_from_toml,
)
from t2t_deploy.model._variants import VARIANTS, config_for_variant

if TYPE_CHECKING:
    from t2t_deploy.model._backbone import (
        Attention,
        Block,
        DenseBlock,
        GhostAttention,
        GhostMlp,
        SqueezeExcite,
        Transition,
        scale_channels,
    )
    from t2t_deploy.model._checkpoint import (
        Checkpoint,
        load_checkpoint,
        load_reference,
        reference_from_state_dict,
        save_weights,
    )
    from t2t_deploy.model._no_checkpoint import weights_file
    from t2t_deploy.model._random import random_state_dict, weight_shapes
    from t2t_deploy.model._t2t import (
        PERFORMER_EPSILON,
        PerformerBlock,
        T2TViT,
        TransformerBlock,
        restructure,
        soft_split,
    )

__all__ = [
    "PERFORMER_EPSILON",
    "VARIANTS",
    "Attention",
    "Backbone",
    "Block",
    "Checkpoint",
    "DenseBlock",
    "GhostAttention",
    "GhostMlp",
    "ModelConfig",
    "ModelOutput",
    "PerformerBlock",
    "SoftSplit",
    "SqueezeExcite",
    "T2TViT",
    "TokensType",
    "TransformerBlock",
    "Transition",
    "config_for_variant",
    "config_from_dict",
    "config_from_toml",
    "load_checkpoint",
    "load_reference",
    "random_state_dict",
    "reference_from_state_dict",
    "restructure",
    "save_weights",
    "scale_channels",
    "soft_split",
    "weight_shapes",
    "weights_file",
]

if not TYPE_CHECKING:  # with it, any name would be right
    __getattr__ = lazy(
        __name__,
        __all__,
        "_checkpoint",
        "_no_checkpoint",
        "_random",
        "_t2t",
        "_backbone",
    )
