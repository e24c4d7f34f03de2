"""Token maps: colours, errors and the picture, on numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy._preparation import USUAL
from t2t_deploy.verify import FeatureColumn, Features, Stage, plot_features, see_stage
from t2t_deploy.verify._features import SeenStage, TokenColours, features_size, token_errors

NAN = float("nan")


def tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape)


def stage(rows: int = 5, channels: int = 6) -> Stage:
    """A grid of 2 x 2 with a class row, where rows are 5."""
    return Stage("blocks.0 (sum after mlp)", "layer 1", (2, 2), tokens(rows, channels))


def test_components_are_those_of_the_covariance() -> None:
    values = tokens(40, 8) * np.arange(1, 9)
    colours = TokenColours.of(values)
    of_values, vectors = np.linalg.eigh(np.cov(values.T))
    largest = vectors[:, ::-1][:, :3]
    np.testing.assert_allclose(np.abs((colours.components * largest).sum(axis=0)), 1.0)
    assert colours.share == pytest.approx(of_values[::-1][:3].sum() / of_values.sum())
    shown = colours(values, (5, 8))
    assert shown.shape == (5, 8, 3)
    np.testing.assert_allclose([shown.min(), shown.max()], [0, 1])


def test_a_sign_is_no_difference() -> None:
    """Of channels that are turned around, the same components: the largest entry is positive."""
    for seed in range(5):
        components = TokenColours.of(tokens(20, 6, seed=seed)).components
        places = np.abs(components).argmax(axis=0)
        assert all(components[place, column] > 0 for column, place in enumerate(places))


def test_no_more_components_than_the_tokens_have() -> None:
    line = np.outer(np.arange(4.0), tokens(6)) + 3.0
    colours = TokenColours.of(line)
    assert np.linalg.norm(colours.components, axis=0).tolist() == pytest.approx([1, 0, 0])
    assert colours.share == pytest.approx(1.0)
    shown = colours(line, (2, 2))
    assert (shown[..., 1:] == 0.5).all() and len(np.unique(shown[..., 0])) == 4
    flat = TokenColours.of(np.ones((4, 6)))
    assert (flat(np.ones((4, 6)), (2, 2)) == 0.5).all()


def test_a_token_that_is_no_number_is_white() -> None:
    values = tokens(4, 6)
    colours = TokenColours.of(values)
    broken = values.copy()
    broken[2, 3] = NAN
    shown = colours(broken, (2, 2))
    assert (shown[1, 0] == 1.0).all()
    np.testing.assert_array_equal(shown[0], colours(values, (2, 2))[0])


def test_errors_of_tokens() -> None:
    one = stage()
    found = one.expected.copy()
    found[3] += 0.5  # the third token of the grid: the first row is the class's
    seen = see_stage(one, found)
    off = 0.5 * np.sqrt(6)
    assert seen.rel_l2 == pytest.approx(off / np.linalg.norm(one.expected))
    errors = token_errors(one, seen)
    typical = np.sqrt(np.square(one.expected[1:]).sum() / 4)
    assert errors is not None
    np.testing.assert_allclose(errors, [[0, 0], [off / typical, 0]])


@pytest.mark.parametrize("shape", [(4, 6), (5, 7), (1, 7), (6, 6)])
def test_another_shape_is_not_compared(shape: tuple[int, int]) -> None:
    seen = see_stage(stage(), np.zeros(shape))
    assert (seen.actual, seen.rel_l2) == (None, None)
    assert seen.note == f"not comparable: the graph holds {shape}, the reference (5, 6)"


def test_the_class_row_has_a_figure_and_no_map() -> None:
    one = stage()
    seen = see_stage(one, one.expected[:1] * 1.25)
    assert seen.rel_l2 == pytest.approx(0.25)
    assert token_errors(one, seen) is None


def drawn(path: Path, *seen: SeenStage) -> np.ndarray:
    one = stage()
    logits = np.arange(3.0)
    columns = tuple(FeatureColumn(f"{place}.onnx", (s,), logits) for place, s in enumerate(seen))
    features = Features((one,), columns, logits, USUAL)
    plot_features(features, path, title="maps")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.size == features_size(features)
        return np.asarray(picture.convert("RGB"), np.int32)


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    one = stage()
    broken = one.expected.copy()
    broken[2, 0] = NAN
    same = drawn(tmp_path / "a.png", see_stage(one, one.expected))
    worse = drawn(tmp_path / "b.png", see_stage(one, broken))
    assert same.shape == worse.shape == (85 + 160 + 120, 210 + 3 * 160, 3)

    def reds(pixels: np.ndarray) -> int:
        return int((pixels == (0xD6, 0x27, 0x28)).all(axis=-1).sum())

    # the reference and a graph that is the same look the same
    cells = [same[90:240, left : left + 120] for left in (225, 385)]
    assert len(np.unique(cells[0].reshape(-1, 3), axis=0)) >= 4
    assert np.unique(cells[0].reshape(-1, 3), axis=0).tolist() == (
        np.unique(cells[1].reshape(-1, 3), axis=0).tolist()
    )
    assert reds(same) == 0 and reds(worse) > 2000
    assert drawn(tmp_path / "c.png", see_stage(one, None)).shape == same.shape
