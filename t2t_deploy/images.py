"""Reading and preprocessing pictures: one function for verification, calibration and serving."""

from __future__ import annotations

import io
import math
import stat
import threading
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from t2t_deploy.errors import ImageError, shown_path
from t2t_deploy.types import IMAGE_MEAN, IMAGE_STD

MEAN, STD = IMAGE_MEAN, IMAGE_STD
CROP_FRACTION = 0.9
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
# A larger picture after resizing (64 MiB in Pillow) is cropped first: 20 x 20,000 pixels would
# become 248 x 248,000.
MAX_RESIZED_PIXELS = 2**24

# Formats whose 32-bit integers are 16-bit values by specification.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
# Python's warning filters belong to the process: one thread at a time may change them.
_FILTERS = threading.Lock()


def read_image(path: Path) -> Image.Image:
    """Open a picture as upright RGB; see `decode_image`. Raises ImageError."""
    name = shown_path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as err:  # ValueError: a name with a null byte
        why = err.strerror if isinstance(err, OSError) else err
        raise ImageError(f"cannot read the picture {name}: {why}; correct the path") from err
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ImageError(f"cannot read the picture {name}: it is {kind}; name a picture's file")
    return _decoded(path, name)


def decode_image(content: bytes, name: str) -> Image.Image:
    """A picture file's content as upright RGB.

    Upright by its EXIF orientation. As in the released evaluation transparency is dropped, not
    blended, and colour profiles are ignored. 16-bit greys keep their high byte, as 16-bit colours
    do in Pillow. name: of the picture, for messages.

    Raises ImageError where it cannot be decoded, has more pixels than Pillow's
    ``Image.MAX_IMAGE_PIXELS``, or values of unknown range (32-bit integers, floats).
    """
    return _decoded(io.BytesIO(content), name)


def preprocess(image: Image.Image, size: int) -> np.ndarray:
    """Evaluation transform of the released models: `resize_and_crop`, then `normalise`.

    Returns (3, size, size) float32.
    """
    return normalise(resize_and_crop(image, size))


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """The pixels for a model of ``size`` pixels, (size, size, 3) uint8.

    Shorter side to floor(size / 0.9) bicubically, the longer one in proportion, rounded down;
    then the centre. image: RGB, as from `read_image`.
    """
    shorter = math.floor(size / CROP_FRACTION)
    width, height = (int(shorter * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    window = (left, top, left + size, top + size)
    if width * height > MAX_RESIZED_PIXELS:
        return np.asarray(_resized_window(image, (width, height), window))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop(window))


def normalise(pixels: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) uint8 -> (..., 3, H, W) float32, ImageNet statistics."""
    scaled = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def pixels_of(images: np.ndarray) -> np.ndarray:
    """(..., 3, H, W) float32, normalised -> the nearest pixels (..., H, W, 3) uint8.

    Undoes `normalise` exactly.
    """
    scaled = (np.moveaxis(images, -3, -1) * STD + MEAN) * 255
    return np.ascontiguousarray(np.rint(scaled).clip(0, 255).astype(np.uint8))


def _resized_window(
    image: Image.Image, resized: tuple[int, int], window: tuple[int, int, int, int]
) -> Image.Image:
    """A window of the resized picture, without resizing the rest.

    Exact to one level of 255: Pillow has the corners of a box in float32.
    """
    scales = [old / new for old, new in zip(image.size, resized, strict=True)] * 2
    box = [edge * scale for edge, scale in zip(window, scales, strict=True)]
    # bicubic: two pixels to each side, in the coarser grid
    reach = [2 * max(scale, 1.0) + 1 for scale in scales]
    left, top = (max(0, math.floor(box[axis] - reach[axis])) for axis in (0, 1))
    right, bottom = (
        min(side, math.ceil(box[axis + 2] + reach[axis])) for axis, side in enumerate(image.size)
    )
    crop = image.crop((left, top, right, bottom))
    inside = (
        max(0.0, box[0] - left),
        max(0.0, box[1] - top),
        min(crop.width, box[2] - left),
        min(crop.height, box[3] - top),
    )
    size = (window[2] - window[0], window[3] - window[1])
    # one axis after the other, in Pillow's order
    across = crop.resize(
        (size[0], crop.height),
        Image.Resampling.BICUBIC,
        box=(inside[0], 0, inside[2], crop.height),
    )
    return across.resize(size, Image.Resampling.BICUBIC, box=(0, inside[1], size[0], inside[3]))


def _decoded(source: Path | IO[bytes], name: str) -> Image.Image:
    try:
        with _opened(source) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _as_rgb(image, name)
    except (MemoryError, ImageError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageError(
            f"cannot read the picture {name}: a decompression bomb, or larger than the "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels that are decoded; make it smaller first"
        ) from err
    except UnidentifiedImageError as err:
        raise ImageError(
            f"cannot read the picture {name}: its content is of no picture format that Pillow "
            "knows; replace or remove it"
        ) from err
    except Exception as err:  # a decoder may raise anything on a damaged file
        why = " ".join(str(err).split()) or type(err).__name__
        raise ImageError(f"cannot read the picture {name}: {why}; replace or remove it") from err


def _opened(source: Path | IO[bytes]) -> Image.Image:
    """The picture's header. Pillow warns up to twice its limit: here that is an error too."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source)


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    # Pillow would warn of transparency that a palette cannot keep; it is dropped here
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    ):
        # Pillow's own conversion does not scale: values above 255 become white
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ImageError(
            f"cannot read the picture {name}: its pixels are {kind} with an unknown value of "
            "white; save it with 8 or 16 bits"
        )
    return image.convert("RGB")
