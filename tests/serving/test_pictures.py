"""Which pictures are meant, and their way through a classifier."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t2t_deploy.errors import ArtifactError, ImageError
from t2t_deploy.pictures import count_named, labels_from_file, pictures_of
from t2t_deploy.serving import Classifier, TopClasses, classify_pictures


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.jpg", "a/10.JPEG", "a/b/1.png", "a/notes.txt", "a/z.webp", "empty/x.txt"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Path("a/folder.jpg").mkdir()
    Path("a/link").symlink_to("b", target_is_directory=True)
    return tmp_path


def test_a_folder_is_walked_in_the_order_of_names(tree: Path) -> None:
    assert list(pictures_of(["a"])) == ["a/10.JPEG", "a/2.jpg", "a/b/1.png", "a/z.webp"]
    assert count_named(["a"]) == 4


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/*.jpg", ["a/2.jpg"]),
        ("a/**/[0-9].*", ["a/2.jpg", "a/b/1.png"]),
        ("a/?*", ["a/10.JPEG", "a/2.jpg", "a/z.webp"]),
    ],
)
def test_a_pattern(tree: Path, pattern: str, found: list[str]) -> None:
    Path("a/link").unlink()
    assert list(pictures_of([pattern])) == found


def test_a_name_is_a_picture_even_if_it_looks_like_a_pattern(tree: Path) -> None:
    Path("a/c[1].jpg").touch()
    assert list(pictures_of(["a/c[1].jpg", "a/notes.txt", "gone.jpg"])) == [
        "a/c[1].jpg",
        "a/notes.txt",
        "gone.jpg",
    ]


def test_each_picture_once(tree: Path) -> None:
    sources = ["a/z.webp", "a/b", str(tree / "a/2.jpg"), "a", "a/../a/2.jpg"]
    found = list(pictures_of(sources))
    assert found == ["a/z.webp", "a/b/1.png", str(tree / "a/2.jpg"), "a/10.JPEG"]
    assert count_named(sources) == 8


@pytest.mark.parametrize("source", ["empty", "empty/*"])
def test_a_source_without_pictures(tree: Path, source: str) -> None:
    with pytest.raises(ImageError, match=r"empty.* no picture \(\.bmp, .*; name a folder"):
        count_named(["a", source])


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match="cannot list the folder a: Permission denied; make"):
        count_named(["a"])


class Told(Classifier):
    """Tells a picture's own number as its class."""

    def __init__(self, batch: int) -> None:
        self.batch, self.size = batch, 2
        self.batches: list[int] = []

    def classify(self, pixels: np.ndarray, top: int) -> TopClasses:
        self.batches.append(len(pixels))
        numbers = pixels[:, :1, 0, 0].astype(np.int64)
        return TopClasses(numbers, np.full((len(pixels), 1), 0.1, np.float32), numbers[:, 0] != 13)


def numbered(name: str) -> np.ndarray:
    if name.startswith("bad"):
        raise ImageError(f"cannot read {name}")
    return np.full((2, 2, 3), int(name), np.uint8)


@pytest.mark.parametrize("readers", [0, 1, 3])
def test_pictures_keep_their_order(readers: int) -> None:
    told = Told(4)
    names = ["0", "1", "bad2", "3", "4", "5", "13", "7", "bad8"]
    found = list(classify_pictures(told, names, numbered, top=1, readers=readers))
    assert [picture.image for picture in found] == names
    assert [picture.indices for picture in found] == [
        *((0,), (1,), (), (3,)),
        *((4,), (5,), (), (7,), ()),
    ]
    assert told.batches == [3, 4]
    assert found[0].probabilities == (0.1,)
    assert [(p.error, p.unreadable) for p in found if p.error] == [
        ("cannot read bad2", True),
        ("the artifact gives NaN or infinity for this picture", False),
        ("cannot read bad8", True),
    ]


@pytest.mark.parametrize(("readers", "most"), [(0, 4), (2, 12)])
def test_few_pictures_are_held(readers: int, most: int) -> None:
    """However many there are: names are drawn and pictures read as results are taken."""
    drawn = 0

    def names() -> object:
        nonlocal drawn
        for drawn in range(1, 1_000_001):
            yield str(drawn % 10)

    found = classify_pictures(Told(4), names(), numbered, top=1, readers=readers)  # type: ignore[arg-type]  # a generator
    for taken in range(1, 400):
        next(found)
        assert drawn <= (taken + 3) // 4 * 4 + most - 4
    found.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("t2t-read")]


def test_a_bug_is_no_unreadable_picture() -> None:
    def broken(name: str) -> np.ndarray:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        list(classify_pictures(Told(4), ["0"], broken, top=1, readers=2))


@pytest.fixture
def labels(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "labels.txt"
        path.write_bytes(content)
        return path

    return write


def test_labels(labels: Callable[[bytes], Path]) -> None:
    path = labels("\ufeffzero\r\n  one two \nzw\u2028ei\n".encode())
    assert labels_from_file(path, 3) == ("zero", "one two", "zw\u2028ei")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", r"labels\.txt has 2 labels and the artifact 3 classes; expected one label"),
        (b"", "has 0 labels and the artifact 3"),
        (b"a\n\nc", r"line 2 of .*labels\.txt is empty"),
        (b"a\nb\n\xff", "are no UTF-8 .* at byte 4"),
    ],
)
def test_labels_that_do_not_fit(
    labels: Callable[[bytes], Path], content: bytes, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        labels_from_file(labels(content), 3)


def test_no_labels_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read the labels .*gone: No such file"):
        labels_from_file(tmp_path / "gone", 3)
