"""Image sets that graphs are measured and calibrated on."""

from __future__ import annotations

from t2t_deploy.calibration._image_set import ImageSet, image_set_from_folder

__all__ = ["ImageSet", "image_set_from_folder"]
