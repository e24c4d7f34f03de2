"""Class folders as labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.errors import ImageError
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.pictures import labelled_set_from_folder

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder of pictures at the paths named, each of another colour."""

    def build(*names: str) -> Path:
        for index, name in enumerate(names):
            path = tmp_path / "val" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 48), (index, 99, 200)).save(path)
        return tmp_path / "val"

    return build


def test_folders_in_the_order_of_their_names(make: Make) -> None:
    found = labelled_set_from_folder(make("n02/b.png", "n01/z.png", "n03/deep/a.jpg", "n01/a.png"))
    assert found.folders == ("n01", "n02", "n03")
    assert [path.name for path in found.paths] == ["a.png", "z.png", "b.png", "a.jpg"]
    assert found.classes == (0, 0, 1, 2)
    assert found.class_indices(3) == (0, 1, 2)


def test_folders_named_by_numbers_are_these_classes(make: Make) -> None:
    """By name 10 stands before 2: the number counts, not the place."""
    found = labelled_set_from_folder(make("2/a.png", "10/b.png", "007/c.png"))
    assert found.folders == ("007", "10", "2")
    assert found.class_indices(11) == (7, 10, 2)
    (batch,) = found.batches(32, 8, 11)
    assert batch.labels is not None and batch.labels.tolist() == [7, 10, 2]


def test_an_empty_class_folder_is_a_class(make: Make) -> None:
    root = make("a/1.png", "c/2.png")
    (root / "b").mkdir()
    (root / ".cache").mkdir()
    found = labelled_set_from_folder(root)
    assert found.folders == ("a", "b", "c")
    (batch,) = found.batches(32, 8, 3)
    assert batch.labels is not None and batch.labels.tolist() == [0, 2]


def test_folders_that_do_not_fit_the_model(make: Make) -> None:
    found = labelled_set_from_folder(make("ant/1.png", "bee/2.png", "cat/3.png", "dog/4.png"))
    message = (
        r"val has 4 class folders \(ant, bee, cat, \.\.\.\) and the model 10 classes; expected a "
        r"folder for each class, in the order of their names, or .* numbers from 0 to 9$"
    )
    with pytest.raises(ImageError, match=message):
        found.class_indices(10)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1/a.png", "10/b.png"), r"val/10 is named by a number; expected 0 to 9, "),
        (("1/a.png", "01/b.png"), r"two folders for one class \(01, 1\); expected one: merge"),
    ],
)
def test_numbers_that_do_not_fit_the_model(
    make: Make, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        labelled_set_from_folder(make(*names)).class_indices(10)


def test_numbers_that_are_as_many_as_the_classes_still_mean_themselves(make: Make) -> None:
    """1 to 3 for three classes: taking them in order would shift every label."""
    with pytest.raises(ImageError, match="val/3 is named by a number; expected 0 to 2"):
        labelled_set_from_folder(make("1/a.png", "2/b.png", "3/c.png")).class_indices(3)


def test_pictures_without_labels(make: Make) -> None:
    root = make("b.png", "a.png", "c.png")
    (root / "notes").mkdir()
    found = labelled_set_from_folder(root)
    assert not found.has_labels and found.left_out == 0
    batches = list(found.batches(32, 2, 10))
    assert [batch.labels for batch in batches] == [None, None]
    wanted = [preprocess(read_image(path), 32) for path in sorted(root.glob("*.png"))]
    np.testing.assert_array_equal(np.concatenate([b.pictures for b in batches]), wanted)
    assert [path.name for path in labelled_set_from_folder(root, limit=1).paths] == ["a.png"]


def test_pictures_whose_class_is_unknown(make: Make) -> None:
    root = make("a/1.png", "lost.png", "found.png")
    with pytest.raises(ImageError, match=r"found\.png and 1 more pictures lie beside class fold"):
        labelled_set_from_folder(root)


def test_pictures_in_a_hidden_folder(make: Make) -> None:
    root = make("a/1.png", ".thumbnails/1.png")
    with pytest.raises(ImageError, match=r"\.thumbnails/1\.png lies in a hidden folder"):
        labelled_set_from_folder(root)


def test_a_limit_takes_from_all_classes_in_turn(make: Make) -> None:
    root = make("0/a.png", "0/b.png", "0/c.png", "1/d.png", "2/e.png", "2/f.png")
    found = labelled_set_from_folder(root, limit=5)
    assert [path.name for path in found.paths] == ["a.png", "d.png", "e.png", "b.png", "f.png"]
    assert found.classes == (0, 1, 2, 0, 2)
    assert found.left_out == 1
    assert labelled_set_from_folder(root, limit=99).left_out == 0


def test_files_that_cannot_be_read_are_told_and_keep_no_label(make: Make) -> None:
    root = make("0/a.png", "0/b.png", "1/c.png", "1/d.png", "1/e.png")
    for name in ("0/b.png", "1/c.png", "1/d.png"):
        (root / name).write_bytes(b"cut")
    batches = list(labelled_set_from_folder(root).batches(32, 2, 2))
    assert [len(batch.pictures) for batch in batches] == [1, 0, 1]
    assert batches[1].pictures.shape == (0, 3, 32, 32)
    labels = [batch.labels.tolist() for batch in batches if batch.labels is not None]
    assert labels == [[0], [], [1]]
    told = [(path.name, reason) for batch in batches for path, reason in batch.unreadable]
    assert [name for name, _ in told] == ["b.png", "c.png", "d.png"]
    assert all(reason.startswith("cannot read the picture ") for _, reason in told)


def test_pictures_are_read_as_they_are_asked_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, only one batch of them is held."""
    opened: list[str] = []

    def counting(path: Path) -> Image.Image:
        opened.append(path.name)
        return read_image(path)

    monkeypatch.setattr("t2t_deploy.pictures._image_set.read_image", counting)
    batches = labelled_set_from_folder(make(*(f"{name}.png" for name in "abcde"))).batches(
        32, 2, 10
    )
    assert opened == []
    next(batches)
    assert opened == ["a.png", "b.png"]
