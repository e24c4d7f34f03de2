"""The pictures of what is taken for what, and of a node by node evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.verify import plot_confusion, plot_nodewise

from .test_nodewise import evaluate, scaled_up_and_down

pytest.importorskip("matplotlib")


def drawn(path: Path, *confusions: np.ndarray) -> np.ndarray:
    """The picture's pixels, (height, width, 3)."""
    panels = [(f"artifact {n}", each) for n, each in enumerate(confusions)]
    plot_confusion(panels, path, truth="class of the picture")
    return pixels_of(path)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"), np.int32)


def reds(pixels: np.ndarray) -> int:
    """How many pixels are red, which says what is wrong."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return int(((red > green + 60) & (red > blue + 60)).sum())


def test_mistakes_are_red(tmp_path: Path) -> None:
    fine = np.diag([7] * 5)
    wrong = fine.copy()
    wrong[1, 3] = 2
    assert reds(drawn(tmp_path / "a.png", fine)) == 0
    assert reds(drawn(tmp_path / "b.png", wrong)) > 5


def test_panels_stand_side_by_side(tmp_path: Path) -> None:
    sizes = {
        n: drawn(tmp_path / f"{n}.png", *[np.diag([7] * 5)] * n).shape[:2] for n in (1, 2, 3, 4)
    }
    height, width = sizes[1]
    assert [sizes[n] for n in (2, 3)] == [(height, width * 2), (height, width * 3)]
    rows, columns = sizes[4]
    assert columns == width * 3 and abs(rows - 2 * height) <= 1


def test_of_many_classes_each_mistake_is_seen(tmp_path: Path) -> None:
    """Cells are smaller than a pixel there."""
    fine = np.diag([50] * 1000)
    assert reds(drawn(tmp_path / "a.png", fine)) == 0
    for row in (10, 501, 900):
        wrong = fine.copy()
        wrong[row, 700] = 1
        assert reds(drawn(tmp_path / "b.png", wrong)) >= 1, row


def test_a_class_without_pictures_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        drawn(tmp_path / name, np.diag([7, 7, 0]))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# -- node by node --------------------------------------------------------------------------------


def lower_reds(path: Path, *row: float) -> int:
    """Those of the lower half, which is about ranges."""
    plot_nodewise(evaluate(scaled_up_and_down(), row), path, title="up and down")
    pixels = pixels_of(path)
    return reds(pixels[len(pixels) // 2 :])


def test_overflow_is_marked(tmp_path: Path) -> None:
    fine = lower_reds(tmp_path / "a.png", 1e-4, 0, 0, 0)
    # the end of the type's range is drawn in the same colour, of a graph of zeros as well
    assert min(fine, lower_reds(tmp_path / "zeros.png", 0, 0, 0, 0)) > 100
    assert lower_reds(tmp_path / "b.png", 1e-4, 1, 0, 0) > fine + 60
