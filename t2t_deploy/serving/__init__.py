"""Artifacts at work: images in, classes out."""

from __future__ import annotations

from t2t_deploy.serving._classifier import (
    DEFAULT_BATCH,
    Classifier,
    ClassifierRequest,
    PredictedImage,
    RankedClass,
    Signature,
    choose_activation,
    classify_images,
    open_classifier,
    top_count,
)
from t2t_deploy.serving._ray import (
    DEFAULT_BLOCK,
    ClassifyBlocks,
    ImageBlock,
    Listing,
    SkippedBlocks,
    Work,
    blocks_to_do,
    check_address,
    map_blocks,
    ray_cluster,
)

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_BLOCK",
    "Classifier",
    "ClassifierRequest",
    "ClassifyBlocks",
    "ImageBlock",
    "Listing",
    "PredictedImage",
    "RankedClass",
    "Signature",
    "SkippedBlocks",
    "Work",
    "blocks_to_do",
    "check_address",
    "choose_activation",
    "classify_images",
    "map_blocks",
    "open_classifier",
    "ray_cluster",
    "top_count",
]
