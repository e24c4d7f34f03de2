"""Reading and preprocessing pictures: one function for verification, calibration and serving."""

from __future__ import annotations

import dataclasses
import io
import logging
import math
import stat
import threading
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from t2t_deploy._preparation import USUAL, Preparation, Resize
from t2t_deploy.errors import ImageError, shown_path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
# A larger picture after resizing (64 MiB in Pillow) is cropped first: 20 x 20,000 pixels would
# become 248 x 248,000.
MAX_RESIZED_PIXELS = 2**24

_ASSUMED = "t2t_deploy_assumed"
_ORIENTATION = 0x0112  # of EXIF
# of TIFF: what a pixel's values mean
_PHOTOMETRIC, _WHITE_IS_ZERO, _EXTRA_SAMPLES, _ALPHA_SAMPLES = 262, 0, 338, (1, 2)
_LONGEST_START = 512
_SAVE_PNG = "save it as PNG with 8 or 16 bits"
# offset, first bytes -> what it is, and the way out
_OTHER_KINDS: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (128, (b"DICM",), f"DICOM, whose values need its window to be grey: {_SAVE_PNG} (pydicom)"),
    (0, (b"\x93NUMPY",), "a numpy array; give arrays in Python: t2t_deploy.images.preprocess"),
    (4, (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"), "HEIC, which Pillow does not read: "
     "convert it to JPEG or PNG"),
    (0, (b"\x1f\x8b",), f"gzip, such as NIfTI: unpack it, or {_SAVE_PNG}"),
    (0, (b"<svg", b"<?xml"), "SVG or XML, which has no pixels: draw it as PNG"),
    (0, (b"II*\x00\x10\x00\x00\x00CR", b"IIU\x00", b"FUJIFILM"), "a camera's raw file: develop "
     "it to JPEG or PNG"),
    (0, (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"), "a TIFF that Pillow does not read, as of "
     "more than 4 bands or of complex values: save three bands or one with 8 or 16 bits"),
    (0, (b"<!DOCTYPE html", b"<html"), "a web page: download the picture itself"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS: git lfs pull"),
)  # fmt: skip
_REACH = {
    Image.Resampling.NEAREST: 1,
    Image.Resampling.BILINEAR: 1,
    Image.Resampling.BICUBIC: 2,
    Image.Resampling.LANCZOS: 3,
}
# Formats whose 32-bit integers are 16-bit values by specification.
_SIXTEEN_BIT_FORMATS = frozenset({"PNG", "PPM"})
# it tells of damaged files, which the message says in its own words
# what overshoots is cut off after the first pass, so that the order shows
_DOWN_FIRST = int(PIL.__version__.split(".")[0]) >= 13
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Python's warning filters belong to the process: one thread at a time may change them.
_FILTERS = threading.Lock()
# of all `Assumed`, which may then travel between processes
_COUNTING = threading.Lock()


def read_image(path: Path, preparation: Preparation | None = None) -> Image.Image:
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
    return _decoded(path, name, preparation or USUAL)


def decode_image(content: bytes, name: str, preparation: Preparation | None = None) -> Image.Image:
    """A picture file's content as upright RGB.

    Upright by its EXIF orientation, unless the preparation ignores it. As in the released
    evaluation transparency is dropped, not blended, and colour profiles are ignored. 16-bit greys
    keep their high byte, as 16-bit colours do in Pillow, or that of the preparation's ``bits``.
    name: of the picture, for messages. What the file does not say is in `assumed_of` it.

    Raises ImageError where it cannot be decoded, has more pixels than Pillow's
    ``Image.MAX_IMAGE_PIXELS``, or values of unknown range (32-bit integers, floats).
    """
    return _decoded(io.BytesIO(content), name, preparation or USUAL)


def assumed_of(image: Image.Image) -> tuple[str, ...]:
    """What was assumed of a picture that its file does not say, a phrase each, for `Assumed`."""
    return tuple(image.info.get(_ASSUMED, ()))


class Assumed:
    """What was assumed of pictures, the first and the number of them. Threads may share one."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def add(self, name: str, image: Image.Image) -> None:
        """Note what was assumed of a picture."""
        for phrase in assumed_of(image):
            self._count(phrase, name, 1)

    def merge(self, other: Assumed) -> None:
        """Add what was assumed of further pictures."""
        for phrase, (name, count) in other._found.items():
            self._count(phrase, name, count)

    def lines(self) -> list[str]:
        """A line for people for each assumption."""
        return [
            f"{name}: {phrase}" if count == 1 else f"{name} and {count - 1} more: {phrase}"
            for phrase, (name, count) in self._found.items()
        ]

    def _count(self, phrase: str, name: str, count: int) -> None:
        with _COUNTING:
            first, before = self._found.get(phrase, (name, 0))
            self._found[phrase] = first, before + count


def preprocess(
    image: Image.Image | np.ndarray,
    size: int | tuple[int, int],
    preparation: Preparation | None = None,
) -> np.ndarray:
    """`resize_and_crop`, then normalise: the evaluation transform of a model's training.

    size: of the model's input, in pixels; (height, width) where it is not square. preparation: None
    is the released models'; its own size counts for nothing. Returns (channels, height, width)
    float32. Raises ImageError for a picture that does not fill the input.
    """
    height_width = size if isinstance(size, tuple) else (size, size)
    chosen = preparation or USUAL
    chosen = dataclasses.replace(chosen, size=height_width)
    return chosen.normalise(resize_and_crop(image, chosen))


def resize_and_crop(image: Image.Image | np.ndarray, preparation: Preparation) -> np.ndarray:
    """A picture's pixels at the size of a model's input, (height, width, channels) uint8.

    image: as from `read_image`; or an array (height, width, channels) uint8, whose channels are
    resized one by one. Raises ImageError for a picture that does not fill the input, or has other
    channels than the model.
    """
    if isinstance(image, np.ndarray):
        return _resized_array(image, preparation)
    if preparation.channels not in (1, 3):
        raise ImageError(
            f"the model takes {preparation.channels} channels, which no picture file has; give it "
            "arrays in Python: t2t_deploy.images.preprocess"
        )
    if preparation.channels == 1:
        image = image.convert("L")
    return _cropped(image, preparation).reshape(*preparation.size, preparation.channels)


def _resized_array(pixels: np.ndarray, preparation: Preparation) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != preparation.channels:
        raise ImageError(
            f"the picture is an array {pixels.shape} {pixels.dtype}; expected (height, width, "
            f"{preparation.channels}) uint8"
        )
    planes = [_cropped(Image.fromarray(plane), preparation) for plane in np.moveaxis(pixels, 2, 0)]
    return np.stack(planes, axis=-1)


def _cropped(image: Image.Image, preparation: Preparation) -> np.ndarray:
    width, height = preparation.resized_size(*image.size)
    preparation.check_crop(width, height)
    rows, columns = preparation.size
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    window = (left, top, left + columns, top + rows)
    resample = Image.Resampling[preparation.interpolation.name]
    if width * height > MAX_RESIZED_PIXELS:
        return np.asarray(_resized_window(image, (width, height), window, resample))
    resized = image
    if preparation.resize is not Resize.NONE:  # to its own size it is a copy
        resized = image.resize((width, height), resample)
    return np.asarray(resized.crop(window))


def _resized_window(
    image: Image.Image,
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    resample: Image.Resampling,
) -> Image.Image:
    """A window of the resized picture, without resizing the rest.

    Exact to one level of 255, two where a side grows beyond 10,000 pixels: Pillow has the corners
    of a box in float32.
    """
    scales = [old / new for old, new in zip(image.size, resized, strict=True)] * 2
    box = [edge * scale for edge, scale in zip(window, scales, strict=True)]
    # the filter's pixels to each side, in the coarser grid
    reach = [_REACH[resample] * max(scale, 1.0) + 1 for scale in scales]
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
    # one axis after the other, in Pillow's order
    for axis in (1, 0) if _down_first(image.size, resized) else (0, 1):
        size, part = list(crop.size), [0.0, 0.0, float(crop.width), float(crop.height)]
        size[axis] = window[axis + 2] - window[axis]
        part[axis], part[axis + 2] = inside[axis], inside[axis + 2]
        crop = crop.resize((size[0], size[1]), resample, (part[0], part[1], part[2], part[3]))
    return crop


def _down_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether Pillow takes away rows before columns, which 13 does where they are twice as many."""
    shorter = old[1] - new[1]
    return _DOWN_FIRST and shorter > 0 and shorter > 2 * (old[0] - new[0])


def _decoded(source: Path | IO[bytes], name: str, preparation: Preparation) -> Image.Image:
    try:
        with _FILTERS, warnings.catch_warnings():
            # of damaged or unusual metadata, which no pixel depends on
            warnings.simplefilter("ignore")
            # Pillow warns up to twice its limit: here that is an error too
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(source)
        with opened as image:
            assumed = _assumed(image)
            if preparation.exif:
                if image.getexif().get(_ORIENTATION, 1) != 1:
                    assumed.append(
                        "turned upright by EXIF, as torchvision's loader does not; exif = false in "
                        "a preparation leaves it"
                    )
                ImageOps.exif_transpose(image, in_place=True)
            rgb = _as_rgb(image, name, preparation.bits, assumed)
            assumed += _further_frames(image)
            rgb.info[_ASSUMED] = tuple(assumed)
            return rgb
    except (MemoryError, ImageError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageError(
            f"cannot read the picture {name}: a decompression bomb, or larger than the "
            f"{Image.MAX_IMAGE_PIXELS:,} pixels that are decoded; make it smaller first"
        ) from err
    except UnidentifiedImageError as err:
        kind = _kind_of(source)
        raise ImageError(
            f"cannot read the picture {name}: its content is "
            f"{kind or 'of no picture format that Pillow knows; replace or remove it'}"
        ) from err
    except Exception as err:  # a decoder may raise anything on a damaged file
        why = " ".join(str(err).split()) or type(err).__name__
        raise ImageError(f"cannot read the picture {name}: {why}; replace or remove it") from err


def _assumed(image: Image.Image) -> list[str]:
    """What is dropped of a picture, by its header."""
    assumed = []
    bands = len(image.getbands())
    extra = image.format == "TIFF" and image.tag_v2.get(_EXTRA_SAMPLES)  # type: ignore[attr-defined]
    if extra and not any(kind in _ALPHA_SAMPLES for kind in extra):
        assumed.append(f"the first {'three' if bands > 2 else 'one'} of its bands are taken")
    elif "A" in image.getbands() or "transparency" in image.info:
        assumed.append("transparency is dropped, and colours below it show")
    return assumed


def _further_frames(image: Image.Image) -> list[str]:
    """What is left out behind the first page or frame, which alone has to be whole."""
    try:
        frames = getattr(image, "n_frames", 1)
    except MemoryError:
        raise
    except Exception:  # as of any damaged file
        return ["the first of several pages or frames is taken; a later one is damaged"]
    return [f"the first of {frames} pages or frames is taken"] if frames > 1 else []


def _as_rgb(image: Image.Image, name: str, bits: int | None, assumed: list[str]) -> Image.Image:
    # Pillow would warn of transparency that a palette cannot keep; it is dropped here
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _SIXTEEN_BIT_FORMATS
    ):
        # Pillow's own conversion does not scale: values above 255 become white
        values = np.asarray(image).astype(np.int64)
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            values = (1 << (bits or 16)) - 1 - values
        largest = int(values.max())
        if bits is None and 0 < largest < 1 << 14:
            shown = (1 << largest.bit_length()) - 1
            assumed.append(
                f"16-bit greys end at {shown} or below and are taken as 0 to 65535, nearly black; "
                "if they have fewer bits, export with a preparation that says so, as bits = 12"
            )
        grey = (values >> ((bits or 16) - 8)).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise ImageError(
            f"cannot read the picture {name}: its pixels are {kind} with an unknown value of "
            "white; save it with 8 or 16 bits"
        )
    return image.convert("RGB")


def _kind_of(source: Path | IO[bytes]) -> str | None:
    """What a file is that is no picture Pillow reads, and how it becomes one; None if unknown."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(_LONGEST_START)
    else:
        source.seek(0)
        start = source.read(_LONGEST_START)
    for offset, magics, words in _OTHER_KINDS:
        if start[offset:].startswith(magics):
            return words
    return None
