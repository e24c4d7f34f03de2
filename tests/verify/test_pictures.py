"""The pictures that every export is checked on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from t2t_deploy.verify import _pictures, flat_pictures, standard_pictures

from ..prepared import normalise, usual

PHOTOGRAPHS = ("china", "flower", "astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture
def photographs() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")


@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize("size", [32, 224])
def test_noise_and_photographs(size: int) -> None:
    found = standard_pictures(usual(size))
    assert found.names == ("noise 0", "noise 1", *PHOTOGRAPHS)
    assert (found.pictures.shape, found.pictures.dtype) == ((8, 3, size, size), np.float32)
    assert all(0.3 < picture.std() < 2 for picture in found.pictures)
    assert len({picture.tobytes() for picture in found.pictures}) == 8


def test_they_are_the_same_every_time() -> None:
    one, two = standard_pictures(usual(32)), standard_pictures(usual(32))
    np.testing.assert_array_equal(one.pictures, two.pictures)


def test_photographs_that_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pictures, "_shipped_file", lambda module, file: None)
    found = standard_pictures(usual(32))
    assert (found.names, len(found.pictures)) == (("noise 0", "noise 1"), 2)


@pytest.mark.usefixtures("photographs")
def test_a_photograph_that_is_another_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.jpg"
    shipped = _pictures._shipped_file

    def swapped(module: str, file: str) -> Path | None:
        path = shipped(module, file)
        if path is not None and path.stem == "chelsea":
            other.write_bytes(path.read_bytes() + b"\0")
            return other
        return path

    monkeypatch.setattr(_pictures, "_shipped_file", swapped)
    found = standard_pictures(usual(32))
    assert set(PHOTOGRAPHS) - set(found.names) == {"chelsea"} and len(found.names) == 7


def test_flat_pictures() -> None:
    found = flat_pictures(usual(32))
    named = dict(zip(found.names, found.pictures, strict=True))
    assert set(named) >= {"black", "white", "grey", "cream", "half-and-half", "gradient"}
    for name in ("black", "white", "grey", "cream"):
        assert np.ptp(named[name], axis=(1, 2)).max() == 0, "no contrast within a channel"
    cream = normalise(np.array([[(252, 242, 230)]], np.uint8))
    np.testing.assert_array_equal(named["cream"][:, :1, :1], cream)
    half = named["half-and-half"]
    assert np.ptp(half[:, :, :16]) < np.ptp(half) and (half[0, 0, 15] < half[0, 0, 16])
