"""Which images are meant by files, folders and patterns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from t2t_deploy.errors import ImageError
from t2t_deploy.pictures import count_images, find_images


@pytest.fixture
def tree(empty_folder: Path) -> Path:
    for name in ("a/2.jpg", "a/10.JPEG", "a/b/1.png", "a/notes.txt", "a/z.webp", "empty/x.txt"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Path("a/folder.jpg").mkdir()
    Path("a/link").symlink_to("b", target_is_directory=True)
    return empty_folder


def test_a_folder_is_walked_in_the_order_of_names(tree: Path) -> None:
    assert list(find_images(["a"])) == ["a/10.JPEG", "a/2.jpg", "a/b/1.png", "a/z.webp"]
    assert count_images(["a"]) == 4


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/*.jpg", ["a/2.jpg"]),
        ("a/**/[0-9].*", ["a/2.jpg", "a/b/1.png"]),
        ("a/?*", ["a/10.JPEG", "a/2.jpg", "a/z.webp"]),
    ],
)
def test_a_pattern_means_the_images_it_matches(tree: Path, pattern: str, found: list[str]) -> None:
    Path("a/link").unlink()
    assert list(find_images([pattern])) == found


def test_a_name_that_looks_like_a_pattern_is_an_image(tree: Path) -> None:
    Path("a/c[1].jpg").touch()
    assert list(find_images(["a/c[1].jpg", "a/notes.txt", "gone.jpg"])) == [
        "a/c[1].jpg",
        "a/notes.txt",
        "gone.jpg",
    ]


def test_each_image_is_found_once(tree: Path) -> None:
    sources = ["a/z.webp", "a/b", str(tree / "a/2.jpg"), "a", "a/../a/2.jpg"]
    found = list(find_images(sources))
    assert found == ["a/z.webp", "a/b/1.png", str(tree / "a/2.jpg"), "a/10.JPEG"]
    assert count_images(sources) == 8


@pytest.mark.parametrize("source", ["empty", "empty/*"])
def test_a_source_without_images(tree: Path, source: str) -> None:
    with pytest.raises(ImageError, match=r"empty.* no picture \(\.bmp, .*; name a folder"):
        count_images(["a", source])


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ImageError, match="cannot list the folder a: Permission denied; make"):
        count_images(["a"])
