"""A folder of pictures as a set with an identity."""

from __future__ import annotations

import hashlib
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.errors import ImageError
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.pictures import file_digests, identity_of, image_set_from_folder


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


def test_digests_are_of_the_files_in_their_order(folder: Path) -> None:
    found = image_set_from_folder(folder)
    wanted = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in found.paths)
    assert found.digests() == file_digests(found.paths) == wanted
    assert len(set(wanted)) == 5
    assert file_digests(reversed(found.paths)) == wanted[::-1]
    assert found.sha256 == identity_of(wanted)


def test_an_identity_does_not_depend_on_the_order(folder: Path) -> None:
    digests = image_set_from_folder(folder).digests()
    assert len({identity_of(order) for order in permutations(digests)}) == 1
    assert identity_of(iter(digests)) == identity_of(digests)


def test_an_identity_depends_on_how_often_a_picture_is_there() -> None:
    one, other = "a" * 64, "b" * 64
    sets = [(), (one,), (other,), (one, one), (one, other), (one, one, other), (one, other, other)]
    assert len({identity_of(digests) for digests in sets}) == len(sets)


def test_files_that_cannot_be_read_are_told_with_the_reason(folder: Path) -> None:
    """Batches are of files: one that cannot be read leaves its batch smaller, or empty."""
    for name in ("class a/2.JPG", "class b.png/3.webp", "class b.png/4.bmp"):
        (folder / name).write_bytes(b"cut")
    found = image_set_from_folder(folder)
    batches = list(found.readable_batches(32, 2))
    assert [batch.pictures.shape for batch in batches] == [
        (1, 3, 32, 32),
        (0, 3, 32, 32),
        (1, 3, 32, 32),
    ]
    assert all(batch.pictures.dtype == np.float32 for batch in batches)
    assert [batch.labels for batch in batches] == [None] * 3
    told = [[path.name for path, _ in batch.unreadable] for batch in batches]
    assert told == [["2.JPG"], ["3.webp", "4.bmp"], []]
    for batch in batches:
        for path, reason in batch.unreadable:
            assert reason.startswith("cannot read the picture ") and str(path) in reason
    kept = [preprocess(read_image(folder / name), 32) for name in ("class a/1.png", "z.jpeg")]
    np.testing.assert_array_equal(np.concatenate([b.pictures for b in batches]), np.stack(kept))


def test_readable_batches_of_pictures_that_can_all_be_read(folder: Path) -> None:
    found = image_set_from_folder(folder)
    for batch, wanted in zip(found.readable_batches(32, 2), found.batches(32, 2), strict=True):
        np.testing.assert_array_equal(batch.pictures, wanted)
        assert batch.unreadable == ()


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


@pytest.mark.parametrize(
    ("count", "taken"),
    [
        (1, "0"),
        (2, "05"),
        (3, "036"),
        (4, "0257"),
        (7, "0124578"),
        (10, "0123456789"),
        (99, "0123456789"),
        (None, "0123456789"),
    ],
)
def test_some_are_taken_evenly_from_the_whole_folder(
    tmp_path: Path, count: int | None, taken: str
) -> None:
    for name in "0123456789":
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "one.png")
    found = image_set_from_folder(tmp_path, count=count, spread=True)
    assert "".join(path.parent.name for path in found.paths) == taken
    assert found.left_out == 10 - len(taken)
    first = image_set_from_folder(tmp_path, count=count)
    assert "".join(path.parent.name for path in first.paths) == "0123456789"[: len(taken)]
