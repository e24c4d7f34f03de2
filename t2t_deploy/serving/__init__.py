"""Artifacts at work: pictures in, classes out."""

from __future__ import annotations

from t2t_deploy.serving._blocks import DEFAULT_BLOCK, PictureBlock, SkippedBlocks, blocks_to_do
from t2t_deploy.serving._classifier import (
    DEFAULT_BATCH,
    DEFAULT_TOP,
    Classifier,
    ClassifierRequest,
    TopClasses,
    open_classifier,
    wanted_top,
)
from t2t_deploy.serving._classify import PictureClasses, classify_pictures
from t2t_deploy.serving._ray_blocks import ClassifyBlocks, Listing, Work, map_blocks
from t2t_deploy.serving._ray_cluster import Cluster, check_address, ray_cluster

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_BLOCK",
    "DEFAULT_TOP",
    "Classifier",
    "ClassifierRequest",
    "ClassifyBlocks",
    "Cluster",
    "Listing",
    "PictureBlock",
    "PictureClasses",
    "SkippedBlocks",
    "TopClasses",
    "Work",
    "blocks_to_do",
    "check_address",
    "classify_pictures",
    "map_blocks",
    "open_classifier",
    "ray_cluster",
    "wanted_top",
]
