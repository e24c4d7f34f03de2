"""Folders of images as sets: order, identity, batches, class folders as labels."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy._preparation import USUAL, Preparation
from t2t_deploy.errors import ImageError
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.pictures import (
    ClassOrder,
    LabelledSet,
    file_digests,
    identity_of,
    image_set_from_folder,
    labelled_set_from_folder,
)

Make = Callable[..., Path]
PREPARED = USUAL.fitted(3, (32, 32))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder of images at the paths named, each of another colour."""

    def build(*names: str) -> Path:
        for index, name in enumerate(names):
            path = tmp_path / "val" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 48), (index, 99, 200)).save(path)
        return tmp_path / "val"

    return build


@pytest.fixture
def folder(make: Make) -> Path:
    """Five images in two folders and beside them, and two files that are none."""
    root = make("a/1.png", "a/2.JPG", "b.png/3.webp", "b.png/4.bmp", "z.jpeg")
    (root / "labels.txt").write_text("no picture")
    (root / ".DS_Store").write_bytes(b"\0")
    return root


def stems(paths: tuple[Path, ...]) -> str:
    return "".join(path.stem for path in paths)


def preprocessed(*paths: Path) -> np.ndarray:
    return np.stack([preprocess(read_image(path), 32) for path in paths])


@pytest.mark.parametrize(
    ("count", "kept", "left_out"), [(None, "1234z", 0), (2, "12", 3), (99, "1234z", 0)]
)
def test_a_set_is_in_the_order_of_names(
    folder: Path, count: int | None, kept: str, left_out: int
) -> None:
    found = image_set_from_folder(folder, count=count)
    assert (stems(found.paths), found.left_out) == (kept, left_out)


@pytest.mark.parametrize(
    ("count", "taken"),
    [
        *((1, "0"), (2, "05"), (3, "036"), (4, "0257"), (7, "0124578")),
        *((10, "0123456789"), (99, "0123456789"), (None, "0123456789")),
    ],
)
def test_a_spread_set_is_taken_evenly_from_the_folder(
    make: Make, count: int | None, taken: str
) -> None:
    root = make(*(f"{name}/{name}.png" for name in "0123456789"))
    found = image_set_from_folder(root, count=count, spread=True)
    assert (stems(found.paths), found.left_out) == (taken, 10 - len(taken))
    first = image_set_from_folder(root, count=count)
    assert stems(first.paths) == "0123456789"[: len(taken)]


@pytest.mark.parametrize("read_set", [image_set_from_folder, labelled_set_from_folder])
def test_no_folder_and_no_image(tmp_path: Path, read_set: Callable[[Path], object]) -> None:
    with pytest.raises(ImageError, match="missing is not a folder; give one with pictures"):
        read_set(tmp_path / "missing")
    with pytest.raises(ImageError, match=r"holds no picture \(\.bmp, .*\); name a folder"):
        read_set(tmp_path)


def labels(found: LabelledSet) -> list[int]:
    """The labels of all images, in one batch."""
    (batch,) = found.batches(PREPARED, 99)
    assert batch.labels is not None
    return [int(label) for label in batch.labels]


def test_identity_is_of_the_contents(folder: Path, tmp_path: Path) -> None:
    identity = image_set_from_folder(folder).sha256
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "z.jpeg").rename(copied / "a" / "0.jpeg")
    assert image_set_from_folder(copied).sha256 == identity
    Image.new("RGB", (9, 9)).save(copied / "a" / "0.jpeg")
    assert image_set_from_folder(copied).sha256 != identity
    assert image_set_from_folder(folder, count=4).sha256 != identity


def test_digests_are_of_the_files_in_their_order(folder: Path) -> None:
    found = image_set_from_folder(folder)
    expected = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in found.paths)
    assert found.digests() == file_digests(found.paths) == expected
    assert len(set(expected)) == 5
    assert file_digests(reversed(found.paths)) == expected[::-1]
    # in any order, of any iterable
    orders = [*permutations(expected), iter(expected)]
    assert {identity_of(order) for order in orders} == {found.sha256}


def test_identity_counts_repeated_images() -> None:
    one, other = "a" * 64, "b" * 64
    sets = [(), (one,), (other,), (one, one), (one, other), (one, one, other), (one, other, other)]
    assert len({identity_of(digests) for digests in sets}) == len(sets)


def test_batches_are_preprocessed_images(folder: Path) -> None:
    found = image_set_from_folder(folder)
    batches = list(found.readable_batches(PREPARED, 2))
    assert [batch.pictures.shape[0] for batch in batches] == [2, 2, 1]
    assert [(batch.labels, batch.unreadable) for batch in batches] == [(None, ())] * 3
    np.testing.assert_array_equal(
        np.concatenate([batch.pictures for batch in batches]), preprocessed(*found.paths)
    )


def test_unreadable_files_are_listed_with_their_batch(folder: Path) -> None:
    """Batches are of files: one that cannot be read leaves its batch smaller, or empty."""
    for name in ("a/2.JPG", "b.png/3.webp", "b.png/4.bmp"):
        (folder / name).write_bytes(b"cut")
    batches = list(image_set_from_folder(folder).readable_batches(PREPARED, 2))
    assert [batch.pictures.shape for batch in batches] == [(n, 3, 32, 32) for n in (1, 0, 1)]
    assert all(batch.pictures.dtype == np.float32 for batch in batches)
    names = [[path.name for path, _ in batch.unreadable] for batch in batches]
    assert names == [["2.JPG"], ["3.webp", "4.bmp"], []]
    for batch in batches:
        for path, reason in batch.unreadable:
            assert reason.startswith("cannot read the picture ") and str(path) in reason
    kept = np.concatenate([batch.pictures for batch in batches])
    np.testing.assert_array_equal(kept, preprocessed(folder / "a/1.png", folder / "z.jpeg"))


def test_unreadable_files_keep_no_label(make: Make) -> None:
    root = make("0/a.png", "0/b.png", "1/c.png", "1/d.png", "1/e.png")
    for name in ("0/b.png", "1/c.png", "1/d.png"):
        (root / name).write_bytes(b"cut")
    batches = list(labelled_set_from_folder(root).for_model(2).batches(PREPARED, 2))
    kept = [batch.labels.tolist() for batch in batches if batch.labels is not None]
    assert kept == [[0], [], [1]]
    assert [len(batch.unreadable) for batch in batches] == [1, 2, 0]


def test_images_are_read_as_they_are_asked_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, only one batch of them is held."""
    opened: list[str] = []

    def counting(path: Path, preparation: Preparation) -> Image.Image | np.ndarray:
        opened.append(path.name)
        return read_image(path, preparation)

    monkeypatch.setattr("t2t_deploy.pictures._sets.read_image", counting)
    root = make(*(f"{name}.png" for name in "abcde"))
    batches = labelled_set_from_folder(root).for_model(10).batches(PREPARED, 2)
    assert opened == []
    next(batches)
    assert opened == ["a.png", "b.png"]


def test_class_folders_are_in_the_order_of_their_names(make: Make) -> None:
    found = labelled_set_from_folder(make("n02/b.png", "n01/z.png", "n03/deep/a.jpg", "n01/a.png"))
    assert found.folders == ("n01", "n02", "n03")
    assert (stems(found.paths), found.classes) == ("azba", (0, 0, 1, 2))
    assert labels(found.for_model(3)) == [0, 0, 1, 2]


def test_batches_have_the_models_classes(make: Make) -> None:
    found = labelled_set_from_folder(make("2/a.png", "10/b.png", "007/c.png"))
    assert found.folders == ("007", "10", "2")
    assert labels(found.for_model(11, ClassOrder.NUMBER)) == [7, 10, 2]
    with pytest.raises(ImageError, match="has 3 class folders"):
        found.for_model(11, ClassOrder.TEXT)


def test_an_empty_class_folder_is_a_class(make: Make) -> None:
    root = make("a/1.png", "c/2.png")
    (root / "b").mkdir()
    (root / ".cache").mkdir()
    found = labelled_set_from_folder(root)
    assert found.folders == ("a", "b", "c")
    assert labels(found.for_model(3)) == [0, 2]


def test_images_without_class_folders_have_no_labels(make: Make) -> None:
    root = make("b.png", "a.png", "c.png")
    (root / "notes").mkdir()
    found = labelled_set_from_folder(root)
    assert not found.has_labels and found.left_out == 0
    with pytest.raises(ImageError, match="val has no class folders, so there is no order of them"):
        found.for_model(10, ClassOrder.TEXT)
    batches = list(found.for_model(10).batches(PREPARED, 2))
    assert [batch.labels for batch in batches] == [None, None]
    expected = preprocessed(*sorted(root.glob("*.png")))
    np.testing.assert_array_equal(np.concatenate([b.pictures for b in batches]), expected)
    some = labelled_set_from_folder(root, limit=1)
    assert (stems(some.paths), some.left_out) == ("a", 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/1.png", "lost.png", "found.png"), r"found\.png and 1 more pictures lie beside class"),
        (("a/1.png", ".thumbnails/1.png"), r"\.thumbnails/1\.png lies in a hidden folder"),
    ],
)
def test_images_whose_class_is_unknown(make: Make, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        labelled_set_from_folder(make(*names))


def test_a_limit_takes_from_all_classes_in_turn(make: Make) -> None:
    root = make("0/a.png", "0/b.png", "0/c.png", "1/d.png", "2/e.png", "2/f.png")
    found = labelled_set_from_folder(root, limit=5)
    assert (stems(found.paths), found.classes) == ("adebf", (0, 1, 2, 0, 2))
    assert found.left_out == 1
    assert labelled_set_from_folder(root, limit=99).left_out == 0
