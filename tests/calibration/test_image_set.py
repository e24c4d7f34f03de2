"""A folder of pictures as a set with an identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.calibration import image_set_from_folder
from t2t_deploy.errors import ImageError
from t2t_deploy.images import preprocess, read_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in two folders, and two files that are none."""
    root = tmp_path / "pictures"
    (root / "class a").mkdir(parents=True)
    (root / "class b.png").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), np.uint8)
    names = ("class a/1.png", "class a/2.JPG", "class b.png/3.webp", "class b.png/4.bmp", "z.jpeg")
    for name, pixels in zip(names, noise, strict=True):
        Image.fromarray(pixels).save(root / name)
    (root / "labels.txt").write_text("no picture")
    (root / ".DS_Store").write_bytes(b"\0")
    return root


def test_all_pictures_below_a_folder_in_a_fixed_order(folder: Path) -> None:
    found = image_set_from_folder(folder)
    assert [path.name for path in found.paths] == ["1.png", "2.JPG", "3.webp", "4.bmp", "z.jpeg"]
    assert found.left_out == 0


def test_the_first_few(folder: Path) -> None:
    found = image_set_from_folder(folder, count=2)
    assert [path.name for path in found.paths] == ["1.png", "2.JPG"]
    assert found.left_out == 3
    assert image_set_from_folder(folder, count=99).left_out == 0


def test_batches(folder: Path) -> None:
    found = image_set_from_folder(folder)
    batches = list(found.batches(32, 2))
    assert [batch.shape for batch in batches] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
    wanted = [preprocess(read_image(path), 32) for path in found.paths]
    np.testing.assert_array_equal(np.concatenate(batches), np.stack(wanted))


def test_its_identity_is_its_content(folder: Path, tmp_path: Path) -> None:
    identity = image_set_from_folder(folder).sha256
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "z.jpeg").rename(copied / "class a" / "0.jpeg")
    assert image_set_from_folder(copied).sha256 == identity
    Image.new("RGB", (9, 9)).save(copied / "class a" / "0.jpeg")
    assert image_set_from_folder(copied).sha256 != identity
    assert image_set_from_folder(folder, count=4).sha256 != identity


def test_a_picture_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "class a" / "2.JPG").write_bytes(b"cut")
    found = image_set_from_folder(folder)
    batches = found.batches(32, 1)
    next(batches)
    with pytest.raises(ImageError, match=r"cannot read the picture .*2\.JPG"):
        next(batches)


def test_no_folder_and_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing is not a folder; give one with pictures"):
        image_set_from_folder(tmp_path / "missing")
    with pytest.raises(ImageError, match=r"holds no picture \(\.bmp, .*\); give a folder with"):
        image_set_from_folder(tmp_path)
