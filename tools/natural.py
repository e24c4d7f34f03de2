"""Natural pictures to calibrate and to test on: seeded crops of the photographs at hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from t2t_deploy.images import preprocess, read_image

# What scikit-learn and scikit-image ship; crops to calibrate and to test come from different ones.
CALIBRATION = tuple(
    f"skimage/data/{name}"
    for name in (
        "coffee.png",
        "rocket.jpg",
        "astronaut.png",
        "motorcycle_left.png",
        "hubble_deep_field.jpg",
        "retina.jpg",
    )
)
TEST = (
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "skimage/data/chelsea.png",
)


def natural_crops(count: int, seed: int, names: tuple[str, ...]) -> list[Image.Image]:
    """Square crops, a third of a photograph's shorter side to all of it, half of them mirrored."""
    stream = np.random.RandomState(seed)
    photographs = [read_image(shipped(name)) for name in names]
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        shorter = min(photograph.size)
        side = stream.randint(shorter // 3, shorter + 1)
        left, top = (stream.randint(0, length - side + 1) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        if stream.rand() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crops.append(crop)
    return crops


def write_calibration_crops(folder: Path, count: int, seed: int = 1) -> Path:
    """PNG files to calibrate on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, crop in enumerate(natural_crops(count, seed, CALIBRATION)):
        crop.save(folder / f"{index:04}.png", compress_level=1)
    return folder


def held_out_crops(count: int, size: int, seed: int = 99) -> np.ndarray:
    """Preprocessed crops of other photographs, (count, 3, size, size) float32."""
    return np.stack([preprocess(crop, size) for crop in natural_crops(count, seed, TEST)])


def shipped(name: str) -> Path:
    """A file inside an installed package."""
    package, _, file = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed, and has the photographs")
    return Path(spec.submodule_search_locations[0]) / file
