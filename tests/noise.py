"""Pictures of seeded noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(*files: Path, size: tuple[int, int] = (40, 40), seed: int = 0) -> None:
    """Write a picture to each file; size: height and width."""
    stream = np.random.RandomState(seed)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.randint(0, 256, (*size, 3), np.uint8)).save(file)
