"""The pictures that checks take: fixed noise, photographs, and flat ones."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t2t_deploy._preparation import Preparation, Resize
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.workspace import Manifest

# Those that scikit-learn and scikit-image ship: module and folder inside it -> file -> SHA-256
_PHOTOGRAPHS = {
    ("sklearn", "datasets/images"): {
        "china.jpg": "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "flower.jpg": "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    },
    ("skimage", "data"): {
        "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    },
}
NOISE_SEED = 2021


@dataclass(frozen=True, slots=True)
class PictureSet:
    """Named normalised pictures, (n, C, H, W) float32."""

    names: tuple[str, ...]
    pictures: np.ndarray

    def __add__(self, other: PictureSet) -> PictureSet:
        """Those of both."""
        pictures = np.concatenate((self.pictures, other.pictures))
        return PictureSet(self.names + other.names, pictures)

    def subset(self, indices: Sequence[int]) -> PictureSet:
        """Those with these indices."""
        names = tuple(self.names[index] for index in indices)
        return PictureSet(names, self.pictures[list(indices)])

    def first(self, count: int) -> PictureSet:
        """The first of them."""
        return self.subset(range(min(count, len(self.names))))


def standard_pictures(preparation: Preparation) -> PictureSet:
    """Two of fixed noise and the photographs at hand, as a model takes them."""
    noise = np.random.RandomState(NOISE_SEED).standard_normal((2, *preparation.input_shape))
    names = ["noise 0", "noise 1"]
    pictures = list(noise.astype(np.float32))
    for (module, folder), hashes in _PHOTOGRAPHS.items():
        for file, sha256 in hashes.items():
            path = _shipped_file(module, f"{folder}/{file}")
            if path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                names.append(path.stem)
                pictures.append(_photograph(path, preparation))
    return PictureSet(tuple(names), np.stack(pictures))


def _photograph(path: Path, preparation: Preparation) -> np.ndarray:
    """A photograph, shown whole whatever the resize; its colours in turn fill other channels."""
    shown = dataclasses.replace(preparation, resize=Resize.SHORTER, resize_to=None)
    image = read_image(path)
    if shown.channels in (1, 3):
        return preprocess(image, shown.size, shown)
    channels = np.arange(shown.channels) % 3
    return preprocess(np.asarray(image)[..., channels], shown.size, shown)


def nodewise_pictures(preparation: Preparation) -> PictureSet:
    """Fixed noise, a photograph if there is one, and cream, the worst case of the first LayerNorm.

    preparation: of the model's input.
    """
    standard, flat = standard_pictures(preparation), flat_pictures(preparation)
    photographs = [i for i, name in enumerate(standard.names) if not name.startswith("noise")]
    chosen = standard.subset([0, *photographs[:1]])
    return chosen + flat.subset([flat.names.index("cream")])


def pictures_for(
    manifest: Manifest,
    given: PictureSet | None,
    usual: Callable[[Preparation], PictureSet] = standard_pictures,
) -> PictureSet:
    """The pictures given, else the usual ones, such as the artifact's graph can take exactly."""
    preparation = manifest.preparation
    chosen = usual(preparation) if given is None else given
    if not manifest.graph_io.embed_preprocess:
        return chosen
    # the nearest that pixels can hold; photographs are such already, noise is not
    nearest = preparation.normalise(preparation.pixels_of(chosen.pictures))
    return dataclasses.replace(chosen, pictures=nearest)


def flat_pictures(preparation: Preparation) -> PictureSet:
    """Black, white, grey, cream, half-and-half, a gradient and a checkerboard."""
    height, width = preparation.size
    rows, columns = np.mgrid[:height, :width]
    cream = np.array((252, 242, 230), np.uint8)[np.arange(preparation.channels) % 3]
    made: dict[str, np.ndarray | int] = {
        "black": 0,
        "white": 255,
        "grey": 128,
        "cream": cream,
        "half-and-half": ((columns >= width // 2) * 255)[..., None],
        "gradient": (columns * 255 // max(width - 1, 1))[..., None],
        "checkerboard": ((rows + columns) % 2 * 255)[..., None],
    }
    shape = (height, width, preparation.channels)
    pixels = [np.broadcast_to(one, shape).astype(np.uint8) for one in made.values()]
    return PictureSet(tuple(made), np.stack([preparation.normalise(one) for one in pixels]))


def _shipped_file(module: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    return path if path.is_file() else None
