"""The pictures that checks take: fixed noise, photographs, and flat ones."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from t2t_deploy.images import normalise, pixels_of, preprocess, read_image
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
    """Named normalised pictures, (n, 3, S, S) float32."""

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


def standard_pictures(size: int) -> PictureSet:
    """Two of fixed noise and the photographs at hand, at a size in pixels."""
    noise = np.random.RandomState(NOISE_SEED).standard_normal((2, 3, size, size))
    names = ["noise 0", "noise 1"]
    pictures = list(noise.astype(np.float32))
    for (module, folder), hashes in _PHOTOGRAPHS.items():
        for file, sha256 in hashes.items():
            path = _shipped_file(module, f"{folder}/{file}")
            if path is not None and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                names.append(path.stem)
                pictures.append(preprocess(read_image(path), size))
    return PictureSet(tuple(names), np.stack(pictures))


def nodewise_pictures(size: int) -> PictureSet:
    """Fixed noise, a photograph if there is one, and cream, the worst case of the first LayerNorm.

    size: in pixels.
    """
    standard, flat = standard_pictures(size), flat_pictures(size)
    photographs = [i for i, name in enumerate(standard.names) if not name.startswith("noise")]
    chosen = standard.subset([0, *photographs[:1]])
    return chosen + flat.subset([flat.names.index("cream")])


def pictures_for(
    manifest: Manifest,
    given: PictureSet | None,
    usual: Callable[[int], PictureSet] = standard_pictures,
) -> PictureSet:
    """The pictures given, else the usual ones, such as the artifact's graph can take exactly."""
    chosen = usual(manifest.config["image_size"]) if given is None else given
    if not manifest.graph_io.embed_preprocess:
        return chosen
    # the nearest that pixels can hold; photographs are such already, noise is not
    return replace(chosen, pictures=normalise(pixels_of(chosen.pictures)))


def flat_pictures(size: int) -> PictureSet:
    """Black, white, grey, cream, half-and-half, a gradient and a checkerboard."""
    rows, columns = np.mgrid[:size, :size]
    ramp = (columns * 255 // max(size - 1, 1)).astype(np.uint8)
    made = {
        "black": np.zeros((size, size, 3), np.uint8),
        "white": np.full((size, size, 3), 255, np.uint8),
        "grey": np.full((size, size, 3), 128, np.uint8),
        "cream": np.broadcast_to(np.array((252, 242, 230), np.uint8), (size, size, 3)),
        "half-and-half": np.repeat(((columns >= size // 2) * np.uint8(255))[..., None], 3, -1),
        "gradient": np.repeat(ramp[..., None], 3, -1),
        "checkerboard": np.repeat(((rows + columns) % 2 * 255).astype(np.uint8)[..., None], 3, -1),
    }
    return PictureSet(tuple(made), np.stack([normalise(pixels) for pixels in made.values()]))


def _shipped_file(module: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    return path if path.is_file() else None
