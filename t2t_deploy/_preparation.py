"""How a picture becomes a model's input: as it did in the training of its weights.

imagenet    the released models': shorter side to size / 0.9, bicubic, centre, ImageNet's
            statistics
cifar       the authors' transfer_learning.py: shorter side to size, bilinear, CIFAR-10's
            statistics
inception   timm's name for statistics of 0.5; its default crop of 0.875, bicubic
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from t2t_deploy.errors import ImageError, UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_FRACTION = 0.9
BITS = (8, 10, 12, 14, 16)


class Resize(str, Enum):
    """What happens to a picture's sides before the crop."""

    SHORTER = "shorter"
    """in proportion, until the crop just fits"""
    SQUASH = "squash"
    """each by itself"""
    NONE = "none"


class Interpolation(str, Enum):
    """How pixels between pixels are computed; with antialiasing, as Pillow does."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    LANCZOS = "lanczos"
    NEAREST = "nearest"


class ColorOrder(str, Enum):
    """Order of a model's three channels."""

    RGB = "rgb"
    BGR = "bgr"


@dataclass(frozen=True, slots=True)
class Preparation:
    """Steps from a decoded picture to a model's input.

    size: (height, width) of the input in pixels; channels: 1 (grey), 3 (colours), or others, which
    only arrays have. crop_fraction: the input's side over the resized one's; resize_to: that side
    itself, in pixels; neither: nothing is cut off but what sticks out. mean, std: one number per
    channel, of values divided by ``scale``. exif: turn pictures upright by their EXIF orientation.
    bits: of 16-bit greys that use the lower ones only; None: all 16.

    Raises UsageError for values that fit no picture.
    """

    resize: Resize = Resize.SHORTER
    crop_fraction: float | None = CROP_FRACTION
    resize_to: int | None = None
    interpolation: Interpolation = Interpolation.BICUBIC
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    scale: float = 255.0
    color: ColorOrder = ColorOrder.RGB
    exif: bool = True
    bits: int | None = None
    size: tuple[int, int] = (224, 224)
    channels: int = 3

    def __post_init__(self) -> None:
        # plain values, as in JSON and TOML, become what the annotations say
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, kind(name, getattr(self, name)))
        if self.crop_fraction is not None and self.resize_to is not None:
            raise UsageError("crop_fraction and resize_to both say how much is cropped; give one")
        if self.resize is Resize.NONE and self.resize_to is not None:
            raise UsageError("resize none leaves a picture's size; leave resize_to out")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(
                f"mean has {len(self.mean)} numbers and std {len(self.std)}; expected "
                f"{self.channels}, one for each channel of the model"
            )
        if self.color is ColorOrder.BGR and self.channels != 3:
            raise UsageError(f"color bgr needs 3 channels, and the model has {self.channels}")

    # -- values ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without size and channels, which the model's config has."""
        values = dataclasses.asdict(self)
        del values["size"], values["channels"]
        plain = {key: one.value if isinstance(one, Enum) else one for key, one in values.items()}
        return {key: list(one) if isinstance(one, tuple) else one for key, one in plain.items()}

    def fitted(self, channels: int, size: tuple[int, int]) -> Preparation:
        """The same for a model's input. Raises UsageError where the channels do not fit."""
        return self.changed({}, channels=channels, size=size)

    def changed(
        self, values: Mapping[str, Any], *, channels: int, size: tuple[int, int] | None = None
    ) -> Preparation:
        """The same with other plain values, for a model's channels; what depends on them follows.

        ImageNet's statistics are averaged for other channels than three. A picture that is squashed
        or not resized is not cropped unless that is among the values. Raises UsageError.
        """
        plain = {**self.to_dict(), "size": self.size if size is None else size}
        if channels != self.channels and (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD):
            plain["mean"] = [round(sum(self.mean) / 3, 3)] * channels
            plain["std"] = [round(sum(self.std) / 3, 3)] * channels
        crops = {"crop_fraction", "resize_to"}
        uncropped = str(getattr(values.get("resize"), "value", values.get("resize")))
        if crops & values.keys() or uncropped in (Resize.SQUASH.value, Resize.NONE.value):
            plain |= dict.fromkeys(crops)
        return Preparation(**{**plain, **values}, channels=channels)

    def in_unit_values(self) -> Preparation:
        """The same, with mean and std of values from 0 to 1."""
        factor = self.scale / 255
        mean, std = (tuple(one * factor for one in values) for values in (self.mean, self.std))
        return dataclasses.replace(self, mean=mean, std=std, scale=255)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a prepared picture."""
        return (self.channels, *self.size)

    @property
    def usual(self) -> bool:
        """Whether it is the released models', apart from size and channels."""
        return self == USUAL.fitted(self.channels, self.size)

    def __str__(self) -> str:
        """One line for people."""
        height, width = self.size
        around, exact = self.resized_box()
        what = {
            Resize.SHORTER: f"shorter side to {min(around)}" if exact or height == width
            else f"resized to cover {around[0]}x{around[1]}",
            Resize.SQUASH: f"squashed to {around[0]}x{around[1]}",
            Resize.NONE: "not resized",
        }[self.resize]  # fmt: skip
        words = [what] if self.resize is Resize.NONE else [f"{what} ({self.interpolation.value})"]
        if self.resize is not Resize.SQUASH or around != self.size:
            words.append(f"centre {height}x{width}")
        words.append(f"mean {_shown(self.mean)}, std {_shown(self.std)}")
        if self.scale != 255:
            words.append(f"of values divided by {self.scale:g}")
        words += [self.color.value] if self.color is not ColorOrder.RGB else []
        words += ["EXIF ignored"] if not self.exif else []
        words += [] if self.bits is None else [f"greys of {self.bits} bits"]
        return ", ".join(words)

    # -- steps -----------------------------------------------------------------------------------

    def resized_box(self) -> tuple[tuple[int, int], bool]:
        """(height, width) that a resized picture covers or has; whether `resize_to` says it."""
        if self.resize_to is not None:
            return (self.resize_to, self.resize_to), True
        fraction = self.crop_fraction or 1.0
        height, width = (math.floor(side / fraction) for side in self.size)
        return (height, width), False

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture of this size is resized to."""
        if self.resize is Resize.NONE:
            return width, height
        (rows, columns), shorter = self.resized_box()
        if self.resize is Resize.SQUASH:
            return columns, rows
        if shorter:
            rows, columns = (rows, 0) if height <= width else (0, columns)
        # the side that must grow most gets its size, the other follows, rounded down
        if columns * height >= rows * width:
            return columns, max(int(columns * height / width), rows)
        return max(int(rows * width / height), columns), rows

    def check_crop(self, width: int, height: int) -> None:
        """Raise ImageError where a resized picture does not fill the input."""
        rows, columns = self.size
        exact = self.resize is Resize.NONE and self.crop_fraction is None
        if (width, height) != (columns, rows) if exact else width < columns or height < rows:
            least = "" if exact else " at least"
            how = "the preparation resizes none" if self.resize is Resize.NONE else "after resizing"
            raise ImageError(
                f"the picture has {width}x{height} pixels ({how}); expected{least} "
                f"{columns}x{rows}, width x height: give others, or export with another resize"
            )

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """(..., H, W, C) values, colours as RGB -> (..., C, H, W) float32."""
        mean, std = (np.array(one, np.float32) for one in (self.mean, self.std))
        ordered = pixels[..., ::-1] if self.color is ColorOrder.BGR else pixels
        scaled = (ordered.astype(np.float32) / np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))

    def pixels_of(self, images: np.ndarray) -> np.ndarray:
        """(..., C, H, W) float32, normalised -> the nearest pixels (..., H, W, C) uint8.

        Undoes `normalise` of pixels exactly.
        """
        mean, std = (np.array(one, np.float32) for one in (self.mean, self.std))
        values = (np.moveaxis(images, -3, -1) * std + mean) * np.float32(self.scale)
        pixels = np.rint(values).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(pixels[..., ::-1] if self.color is ColorOrder.BGR else pixels)


def _shown(numbers: tuple[float, ...]) -> str:
    values = numbers if len(set(numbers)) > 1 else numbers[:1]
    return "/".join(f"{value:g}" for value in values)


def _number(name: str, value: Any, least: float, most: float, words: str) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (plain and math.isfinite(value) and least < value <= most):
        raise UsageError(f"{name} is {value!r}; expected {words}")
    return float(value)


def _numbers(name: str, value: Any, least: float = -math.inf) -> tuple[float, ...]:
    words = "a number for each channel" + (" above 0" if least == 0 else "")
    if not isinstance(value, (list, tuple)) or not value:
        raise UsageError(f"{name} is {value!r}; expected {words}")
    return tuple(_number(name, one, least, math.inf, words) for one in value)


def _word(kind: type[Enum]) -> Any:
    def read(name: str, value: Any) -> Enum:
        try:
            return kind(value)
        except ValueError:
            words = " or ".join(str(one.value) for one in kind)
            raise UsageError(f"{name} is {value!r}; expected {words}") from None

    return read


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; expected true or false")
    return value


def _whole(name: str, value: Any, words: str) -> int:
    return int(_number(name, value if isinstance(value, int) else None, 0, 1 << 20, words))


def _bits(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or value not in BITS:
        raise UsageError(f"{name} is {value!r}; expected {', '.join(map(str, BITS))}")
    return value


def _size(name: str, value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)


_KINDS: Mapping[str, Any] = {
    "resize": _word(Resize),
    "interpolation": _word(Interpolation),
    "color": _word(ColorOrder),
    "mean": _numbers,
    "std": lambda name, value: _numbers(name, value, 0),
    "scale": lambda name, value: _number(name, value, 0, math.inf, "a number above 0"),
    "crop_fraction": lambda name, value: None if value is None
    else _number(name, value, 0, 1, "a number above 0, at most 1"),
    "resize_to": lambda name, value: None if value is None
    else _whole(name, value, "a whole number of pixels"),
    "exif": _flag,
    "bits": _bits,
    "size": _size,
}  # fmt: skip

USUAL = Preparation()
"""The released models'."""
PRESETS: Mapping[str, Preparation] = {
    "imagenet": USUAL,
    "cifar": Preparation(
        crop_fraction=None,
        interpolation=Interpolation.BILINEAR,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "inception": Preparation(crop_fraction=0.875, mean=(0.5,) * 3, std=(0.5,) * 3),
}
