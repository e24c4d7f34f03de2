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
from t2t_deploy.serving._labels import IMAGENET_CLASSES, imagenet_labels, labels_from_file
from t2t_deploy.serving._picture_names import shown_name
from t2t_deploy.serving._pictures import PictureClasses, classify_pictures
from t2t_deploy.serving._ray_blocks import Listing, Work, map_blocks
from t2t_deploy.serving._ray_cluster import Cluster, check_address, ray_cluster
from t2t_deploy.serving._ray_predict import ClassifyBlocks
from t2t_deploy.serving._remote import pixels_of_file, reader_of
from t2t_deploy.serving._sources import check_sources, count_named, pictures_of

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_BLOCK",
    "DEFAULT_TOP",
    "IMAGENET_CLASSES",
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
    "check_sources",
    "classify_pictures",
    "count_named",
    "imagenet_labels",
    "labels_from_file",
    "map_blocks",
    "open_classifier",
    "pictures_of",
    "pixels_of_file",
    "ray_cluster",
    "reader_of",
    "shown_name",
    "wanted_top",
]
