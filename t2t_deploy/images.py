"""Reading and preprocessing pictures: one function for verification, calibration and serving."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from t2t_deploy.errors import ImageError

# ImageNet statistics of the released evaluation, RGB.
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
CROP_FRACTION = 0.9
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


def read_image(path: Path) -> Image.Image:
    """Open a picture as upright RGB. Raises ImageError."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return upright.convert("RGB")
    except MemoryError:
        raise
    except Exception as err:  # a damaged file can make a decoder raise nearly anything
        raise ImageError(f"cannot read the picture {path}: {err}; replace or remove it") from err


def preprocess(image: Image.Image, size: int) -> np.ndarray:
    """Evaluation transform of the released models.

    Shorter side to floor(size / 0.9) bicubically, centre crop, ImageNet normalisation.
    Returns (3, size, size) float32.
    """
    shorter = math.floor(size / CROP_FRACTION)
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return normalise(np.asarray(resized.crop((left, top, left + size, top + size))))


def normalise(pixels: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32, ImageNet statistics."""
    scaled = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))
