"""Image sets that graphs are measured and calibrated on."""

from __future__ import annotations

from t2t_deploy.calibration._image_set import ImageSet, image_set_from_folder
from t2t_deploy.calibration._labelled_set import (
    LabelledSet,
    PictureBatch,
    labelled_set_from_folder,
)

__all__ = [
    "ImageSet",
    "LabelledSet",
    "PictureBatch",
    "image_set_from_folder",
    "labelled_set_from_folder",
]
