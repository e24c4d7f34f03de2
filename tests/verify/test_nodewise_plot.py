"""The picture of a node by node evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.verify import plot_nodewise

from .test_nodewise import evaluate, scaled_up_and_down

pytest.importorskip("matplotlib")


def reds(path: Path, *row: float) -> int:
    """How many pixels of the lower half are red, which says what is wrong."""
    plot_nodewise(evaluate(scaled_up_and_down(), row), path, title="up and down")
    with Image.open(path) as picture:
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"), np.int32), -1, 0)
    shown = (red > green + 60) & (red > blue + 60)
    return int(shown[shown.shape[0] // 2 :].sum())


def test_overflow_is_marked(tmp_path: Path) -> None:
    fine, bad = reds(tmp_path / "a.png", 1e-4, 0, 0, 0), reds(tmp_path / "b.png", 1e-4, 1, 0, 0)
    # the end of the type's range is drawn in the same colour
    assert fine > 100
    assert bad > fine + 60


def test_a_graph_of_zeros(tmp_path: Path) -> None:
    """No error, no range: nothing that a logarithm takes."""
    assert reds(tmp_path / "a.png", 0, 0, 0, 0) > 100
