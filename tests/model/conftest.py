from __future__ import annotations

import json
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def released_shapes() -> dict[str, dict[str, list[int]]]:
    """Variant -> key -> shape of the released checkpoints at 224 px and 1000 classes."""
    shapes: dict[str, dict[str, list[int]]] = json.loads(
        (DATA / "state_dict_shapes.json").read_text()
    )
    return shapes
