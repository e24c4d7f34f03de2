"""Pictures: which are meant, sets of them with an identity, their labels."""

from __future__ import annotations

from t2t_deploy.pictures._class_order import ClassOrder, ClassOrderName, FolderClasses
from t2t_deploy.pictures._counts import PictureCounter, PictureCounts
from t2t_deploy.pictures._find import (
    check_sources,
    count_images,
    find_images,
    reader_of,
    scheme_of,
    shown_name,
)
from t2t_deploy.pictures._labels import (
    IMAGENET_CLASSES,
    imagenet_labels,
    labels_from_file,
    repeated_label,
)
from t2t_deploy.pictures._sets import (
    ImageSet,
    LabelledSet,
    evaluation_images,
    file_digests,
    identity_of,
    image_set_from_folder,
    labelled_set_from_folder,
    labelled_set_with_targets,
    overlap,
)
from t2t_deploy.pictures._training_files import (
    preparation_beside,
    preparation_from_file,
    preparation_from_mmpretrain,
    remark_on_mmpretrain,
)

__all__ = [
    "IMAGENET_CLASSES",
    "ClassOrder",
    "ClassOrderName",
    "FolderClasses",
    "ImageSet",
    "LabelledSet",
    "PictureCounter",
    "PictureCounts",
    "check_sources",
    "count_images",
    "evaluation_images",
    "file_digests",
    "find_images",
    "identity_of",
    "image_set_from_folder",
    "imagenet_labels",
    "labelled_set_from_folder",
    "labelled_set_with_targets",
    "labels_from_file",
    "overlap",
    "preparation_beside",
    "preparation_from_file",
    "preparation_from_mmpretrain",
    "reader_of",
    "remark_on_mmpretrain",
    "repeated_label",
    "scheme_of",
    "shown_name",
]
