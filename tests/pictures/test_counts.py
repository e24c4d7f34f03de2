"""Counts of pictures that say little: what is counted, what is worth a word, what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy._preparation import USUAL, Preparation, Resize
from t2t_deploy.pictures import PictureCounter, PictureCounts, image_set_from_folder

RANDOM = np.random.default_rng(0)
GREY_MODEL = USUAL.fitted(1, (224, 224))


def noise(width: int, height: int, *channels: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, *channels), np.uint8))


def counts_of(
    folder: Path, *images: Image.Image, preparation: Preparation = USUAL, suffix: str = "png"
) -> PictureCounts:
    """Of pictures that are read from files."""
    for index, image in enumerate(images):
        image.save(folder / f"{index:03}.{suffix}")
    counter = PictureCounter()
    for _ in image_set_from_folder(folder).readable_batches(preparation, 4, counter=counter):
        pass
    return counter.counts()


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (300, 300), (level,) * 3)


POOR = {
    "equal": ([grey(0)] * 8, "7 repeat others; 8 of one colour"),
    "one colour each": ([grey(level) for level in range(0, 240, 30)], "8 of one colour"),
    "greys": (
        [noise(300, 300) for _ in range(8)],
        "8 grey, as is right for a model that sees no colours",
    ),
    "2x3 pixels": ([noise(2, 3, 3) for _ in range(8)], "8 enlarged more than 10 times"),
    "1600x16 pixels": (
        [noise(1600, 16, 3) for _ in range(8)],
        "8 enlarged more than 10 times; 8 cropped to less than 10%",
    ),
}


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(("images", "said"), POOR.values(), ids=POOR)
def test_poor_sets_are_named(
    tmp_path: Path, images: list[Image.Image], said: str, suffix: str
) -> None:
    found = counts_of(tmp_path, *images, suffix=suffix)
    assert "; ".join(found.faults()) == said
    expected = f"of 8 calibration pictures, as the model sees them: {said}: calibrate on "
    assert (found.note() or "").startswith(expected)
    assert f"({said}): first calibrate on 64" in (found.advice("it") or "")


GOOD = {
    "photographs": ([noise(300, 260, 3) for _ in range(10)], USUAL),
    "of 32x32, as CIFAR": ([noise(32, 32, 3) for _ in range(10)], USUAL),
    "of 28x28 for a grey model": ([noise(28, 28) for _ in range(10)], GREY_MODEL),
    "8x8 for a small model": ([noise(8, 8, 3) for _ in range(10)], USUAL.fitted(3, (32, 32))),
    "strips, squashed": (
        [noise(1600, 16, 3) for _ in range(10)],
        replace(USUAL, resize=Resize.SQUASH, crop_fraction=None),
    ),
    "a patch of each": (
        [noise(1000, 1000, 3) for _ in range(2)],
        replace(USUAL, resize=Resize.NONE),
    ),
    "some greys": ([noise(99, 99, 3) for _ in range(4)] + [noise(99, 99)], USUAL),
    "a flat one of many": ([noise(99, 99, 3) for _ in range(11)] + [grey(0)], USUAL),
}


@pytest.mark.parametrize(("images", "preparation"), GOOD.values(), ids=GOOD)
def test_good_sets_are_not(
    tmp_path: Path, images: list[Image.Image], preparation: Preparation
) -> None:
    found = counts_of(tmp_path, *images, preparation=preparation)
    assert found.pictures == found.distinct == len(images)
    assert found.note() is None


def test_equal_is_what_the_model_sees(tmp_path: Path) -> None:
    """Whatever the file: another format, and a border that is cropped away."""
    first = noise(248, 248, 3)
    other = first.copy()
    other.paste((9, 9, 9), (0, 0, 248, 2))
    first.save(tmp_path / "first.bmp")
    found = counts_of(tmp_path, first, other)
    assert (found.pictures, found.distinct) == (3, 1)


def test_a_small_set_is_advised_against_once_it_fails() -> None:
    few, enough = (PictureCounts(n, n, 0, 0, 0, 0) for n in (63, 64))
    assert few.note() is enough.note() is enough.advice("it") is None
    assert (few.advice("a.onnx") or "").startswith("a.onnx was calibrated on 63 distinct pictures:")
