"""Tables of several labels for each picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.errors import ImageError
from t2t_deploy.pictures import ClassOrder, labelled_set_from_folder, labelled_set_with_targets

from ..noise import write_noise
from ..prepared import usual

CSV = "image,cat,dog\na.png,1,0\nsub/b.png,1,1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_noise(*(tmp_path / "val" / name for name in ("a.png", "sub/b.png", "other.png")))
    return tmp_path / "val"


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("t.csv", CSV, ("cat", "dog")),
        ("t.csv", "a.png,1,0\r\nsub/b.png, 1 ,1.0\r\n\r\n", ()),
        ("t.json", '{"a.png": [1, 0], "sub/b.png": [true, 1]}'.replace("true", "1"), ()),
    ],
)
def test_a_table(folder: Path, name: str, content: str, names: tuple[str, ...]) -> None:
    (folder.parent / name).write_text(content)
    found = labelled_set_with_targets(folder, folder.parent / name)
    assert found.columns == names
    assert found.paths == (folder / "a.png", folder / "sub/b.png")
    assert found.targets == ((1, 0), (1, 1)) and found.has_labels and found.left_out == 1
    (batch,) = found.for_model(2).batches(usual(32), 2)
    assert batch.labels is not None and batch.labels.tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ImageError, match="2 columns and the model 3 classes"):
        found.for_model(3)
    with pytest.raises(ImageError, match="no class folders, so there is no order"):
        found.for_model(2, ClassOrder.TEXT)
    few = labelled_set_with_targets(folder, folder.parent / name, limit=1)
    assert (few.paths, few.targets, few.left_out) == ((folder / "a.png",), ((1, 0),), 2)


def test_columns_are_held_against_the_names_of_classes(folder: Path) -> None:
    (folder.parent / "t.csv").write_text(CSV)
    found = labelled_set_with_targets(folder, folder.parent / "t.csv")
    for names in (None, ("cat", "dog"), ("Cat", "dog")):
        assert found.for_model(2, class_names=names) is found
    with pytest.raises(ImageError, match="column 1 of the labels is 'cat' and class 0 "):
        found.for_model(2, class_names=("dog", "cat"))


def test_the_yes_of_one_output_is_the_folder_named_so(folder: Path) -> None:
    write_noise(folder.parent / "two/ill/a.png", folder.parent / "two/well/a.png")
    found = labelled_set_from_folder(folder.parent / "two")
    for names, indices in (((), (0, 1)), (("Ill",), (1, 0)), (("well",), (0, 1))):
        known = found.for_model(1, class_names=names or None).known
        assert known is not None and known.indices == indices
    assert found.for_model(1, class_names=("other",)).known is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no picture"),
        ("image,cat\n", "names no picture"),
        ("a.png,1,0\nsub/b.png,1\n", "have 1, 2 values"),
        ("a.png,1,0\nsub/b.png,1,2\n", "has '2' for sub/b.png"),
        ("a.png,1,0\na.png,1,0\n", "names a.png twice"),
        ("a.png,1,0\nc.png,1,0\n", "1 picture of .*c.png the first, are not there"),
        ("a.png\n", "have 0 values"),
    ],
)
def test_tables_that_are_none(folder: Path, content: str, message: str) -> None:
    table = folder.parent / "t.csv"
    table.write_text(content)
    with pytest.raises(ImageError, match=message):
        labelled_set_with_targets(folder, table)


def test_files_that_cannot_be_read(folder: Path) -> None:
    for name, content in (("t.json", "[1]"), ("u.json", "{"), ("v.csv", b"\xff\xfe\0")):
        table = folder.parent / name
        table.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ImageError, match="expected lines of a picture's path"):
            labelled_set_with_targets(folder, table)
    with pytest.raises(ImageError, match="cannot read the labels"):
        labelled_set_with_targets(folder, folder / "no.csv")
