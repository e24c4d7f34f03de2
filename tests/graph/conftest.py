"""Files of changed models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .harmful_onnx import Change, model


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A model, changed, as a file in a folder of its own."""

    def call(change: Change = lambda model: None, name: str = "inside/a.onnx") -> Path:
        made = model()
        change(made)
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(made.SerializeToString())
        return path

    return call
