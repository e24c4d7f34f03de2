"""Pictures: which are meant, sets of them with an identity, their labels."""

from __future__ import annotations

from t2t_deploy.pictures._find import check_sources, count_named, pictures_of
from t2t_deploy.pictures._image_set import (
    ImageSet,
    PictureBatch,
    file_digests,
    identity_of,
    image_set_from_folder,
)
from t2t_deploy.pictures._labelled_set import LabelledSet, labelled_set_from_folder
from t2t_deploy.pictures._labels import IMAGENET_CLASSES, imagenet_labels, labels_from_file
from t2t_deploy.pictures._overlap import evaluation_images, overlap
from t2t_deploy.pictures._remote import pixels_of_file, reader_of, scheme_of, shown_name

__all__ = [
    "IMAGENET_CLASSES",
    "ImageSet",
    "LabelledSet",
    "PictureBatch",
    "check_sources",
    "count_named",
    "evaluation_images",
    "file_digests",
    "identity_of",
    "image_set_from_folder",
    "imagenet_labels",
    "labelled_set_from_folder",
    "labels_from_file",
    "overlap",
    "pictures_of",
    "pixels_of_file",
    "reader_of",
    "scheme_of",
    "shown_name",
]
