"""scikit-learn's handwritten digits, split once for training, calibration and test.

The tool that trains on them and the tests that measure on them both take them from here. The
pictures go through the same preprocessing as everybody's: `t2t_deploy.images.preprocess`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from t2t_deploy.images import preprocess

SPLIT_SEED = 0
TEST_COUNT = 600
CALIBRATION_COUNT = 100
# The evaluation transform crops a tenth of each side away: this much of it is not the digit's.
_BORDER = 1


@dataclass(frozen=True, slots=True)
class Digits:
    """One part of the 1,797 pictures.

    indices: (n,) places in scikit-learn's order; pixels: (n, 10, 10) uint8, the 8 x 8 digits in a
    black border; labels: (n,) int64.
    """

    indices: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def pictures(self) -> list[Image.Image]:
        """As a reader of the written files would see them."""
        return [Image.fromarray(pixels).convert("RGB") for pixels in self.pixels]

    def inputs(self, size: int) -> np.ndarray:
        """Preprocessed pictures, (n, 3, size, size) float32."""
        return np.stack([preprocess(picture, size) for picture in self.pictures()])

    def write(self, folder: Path) -> None:
        """Write PNG files in folders named by class: ``folder/7/0123.png``."""
        for index, label, picture in zip(self.indices, self.labels, self.pixels, strict=True):
            path = folder / str(label) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)


@dataclass(frozen=True, slots=True)
class DigitsSplit:
    """The three parts, which share no picture."""

    train: Digits
    calibration: Digits
    test: Digits


def digits_split() -> DigitsSplit:
    """The split that everything here uses: 1,097 to train, 100 to calibrate, 600 to test."""
    # RandomState: its stream is frozen, so the split is the same with any numpy
    order = np.random.RandomState(SPLIT_SEED).permutation(1797)
    data = load_digits()
    bright = np.round(data.images * (255 / 16)).astype(np.uint8)
    pixels = np.pad(bright, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))

    def part(indices: np.ndarray) -> Digits:
        chosen = np.sort(indices)
        return Digits(chosen, pixels[chosen], data.target[chosen].astype(np.int64))

    test, calibration, train = np.split(order, (TEST_COUNT, TEST_COUNT + CALIBRATION_COUNT))
    return DigitsSplit(part(train), part(calibration), part(test))
