"""The model's class for each class folder: what orders of names say, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from t2t_deploy.errors import ArtifactError, ImageError
from t2t_deploy.pictures import ClassOrder, FolderClasses
from t2t_deploy.pictures._class_order import folder_classes

ZERO = [str(index) for index in range(12)]
ONE = [str(index + 1) for index in range(12)]
CASES = ["Ant", "bee", "Cat"]


def classes(
    names: Sequence[str],
    count: int = 12,
    order: ClassOrder | Path | None = None,
    own: Sequence[str] | None = None,
) -> FolderClasses:
    return folder_classes(Path("val"), sorted(names), count, order, own)


def by_folder(names: Sequence[str], found: FolderClasses) -> list[int]:
    """The classes in the order of ``names``."""
    return [found.indices[sorted(names).index(name)] for name in names]


@pytest.mark.parametrize(
    ("names", "count", "order", "expected"),
    [
        # nothing is asked where all orders agree
        (["000", "001", "002", "010"], 11, None, [0, 1, 2, 10]),
        ([f"{index:03d}" for index in range(11)], 11, None, list(range(11))),
        ([f"{index:03d}" for index in range(1, 13)], 12, None, list(range(12))),
        ([f"{index:02d}.Bird" for index in range(1, 13)], 12, None, list(range(12))),
        (["0", "3", "7"], 10, None, [0, 3, 7]),
        (["1", "2", "3"], 3, None, [0, 1, 2]),
        (["n01", "n02", "n07"], 3, None, [0, 1, 2]),
        (["ant", "bee", "cat"], 3, None, [0, 1, 2]),
        (["001", "003", "012"], 12, None, [0, 2, 11]),
        # the order that is given decides
        (ZERO, 12, ClassOrder.TEXT, [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]),
        (ZERO, 12, ClassOrder.NATURAL, list(range(12))),
        (ZERO, 12, ClassOrder.NUMBER, list(range(12))),
        (ONE, 12, ClassOrder.TEXT, [0, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]),
        (ONE, 12, ClassOrder.NATURAL, list(range(12))),
        (ONE, 12, ClassOrder.NUMBER, list(range(12))),
        (["2", "007", "10"], 12, ClassOrder.NUMBER, [2, 7, 10]),
        (["12", "2"], 12, ClassOrder.NUMBER, [11, 1]),
        (["c0", "c2"], 12, ClassOrder.NUMBER, [0, 2]),
        (["01.Auk", "12.Crow"], 12, ClassOrder.NUMBER, [0, 11]),
        # case is folded in natural order alone
        (CASES, 3, ClassOrder.NATURAL, [0, 1, 2]),
        (CASES, 3, ClassOrder.TEXT, [0, 2, 1]),
    ],
)
def test_classes_of_folders(
    names: list[str], count: int, order: ClassOrder | None, expected: list[int]
) -> None:
    assert by_folder(names, classes(names, count, order)) == expected


@pytest.mark.parametrize(
    ("names", "count", "message"),
    [
        (ZERO, 12, "val/10 is class 2 in text order and class 10 in natural order; give"),
        (ONE, 12, "val/10 is class 1 in text order and class 9 in natural order"),
        (ONE[:-1], 12, r"val/10 is class 10 in number order .* \(1 class of 12 without a folder"),
        ([n for n in ZERO if n != "5"], 12, "val/10 is class 10 in number order and class 2 in"),
        (["3", "7"], 10, "val/3 is class 3 counted from 0 and class 2 counted from 1"),
        ([f"c{n}" for n in ZERO], 12, "val/c10 is class 2 in text order and class 10 in natural"),
        ([f"{n}.Bird" for n in ONE], 12, r"val/10\.Bird is class 1 in text order and class 9"),
        (CASES, 3, "val/Cat is class 1 in text order and class 2 in natural order"),
        (
            ["Ant", "bee"],
            3,
            r"has 2 class folders \(Ant, bee\) and the model 3 classes; expected a",
        ),
        (["a", "b", "c", "d"], 3, "has 4 class folders"),
        (["c0", "c2"], 3, r"has 2 class folders \(c0, c2\) and the model 3 classes"),
    ],
)
def test_orders_that_differ_are_asked_about(names: list[str], count: int, message: str) -> None:
    with pytest.raises(ImageError, match=message) as raised:
        classes(names, count)
    assert "\n" not in str(raised.value) and "class_to_idx.json" in str(raised.value)


@pytest.mark.parametrize(
    ("names", "order", "note"),
    [
        (ONE, ClassOrder.NUMBER, "counted from 1: 1 is class 0"),
        (ONE[:-1], ClassOrder.NUMBER, "counted from 0, since none is numbered 12; where"),
        (["0", "3"], ClassOrder.NUMBER, None),
        (["001", "012"], None, "counted from 1: 001 is class 0"),
        (["000", "001"], None, None),
    ],
)
def test_what_is_assumed_of_numbers_is_noted(
    names: list[str], order: ClassOrder | None, note: str | None
) -> None:
    found = classes(names, 12, order).note
    assert found is None if note is None else found is not None and note in found


@pytest.mark.parametrize(
    ("names", "order", "message"),
    [
        (["1", "01"], ClassOrder.NUMBER, "not numbered from 0 to 11, or from 1 to 12, each once"),
        (["0", "12"], ClassOrder.NUMBER, "not numbered from 0 to 11"),
        (["a1", "b2"], ClassOrder.NUMBER, "not numbered"),
        (ONE[:-1], ClassOrder.TEXT, "11 class folders .* and the model 12 classes"),
        (ONE[:-1], ClassOrder.NATURAL, "which may be empty"),
    ],
)
def test_an_order_that_does_not_fit(names: list[str], order: ClassOrder, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        classes(names, 12, order)


def test_the_models_own_names_decide() -> None:
    own = [*sorted(ONE)]
    found = classes(ONE, 12, own=own)
    assert by_folder(ONE, found) == [own.index(name) for name in ONE]
    assert found.note == "class folders are matched by the model's class names"
    assert by_folder(["2", "10"], classes(["2", "10"], 12, own=own)) == [4, 1]
    # as people write the same name
    assert by_folder(
        ["great_owl", "Cat"], classes(["great_owl", "Cat"], 2, own=["cat", "Great owl"])
    )


def test_the_models_own_names_do_not_hide_a_folder() -> None:
    with pytest.raises(ImageError, match="val/cow has none of the model's class names"):
        classes(["cat", "cow"], 2, own=["cat", "dog"])
    with pytest.raises(ImageError, match=r"has 2 classes 'crane' \(0, 1\), and val/crane"):
        classes(["crane"], 2, own=["crane", "crane"])
    # names of another kind than the folders', as identities are: the orders are asked
    assert classes(["n01", "n02"], 2, own=["cat", "dog"]).indices == (0, 1)
    with pytest.raises(ImageError, match="in text order and"):
        classes(ZERO, 12, own=[f"class {name}" for name in ZERO])
    # an order that is given counts more
    assert classes(["cat", "cow"], 2, ClassOrder.TEXT, ["cow", "cat"]).indices == (0, 1)


def test_a_file_decides(tmp_path: Path) -> None:
    file = tmp_path / "class_to_idx.json"
    file.write_text(json.dumps({name: index for index, name in enumerate(sorted(ONE))}))
    assert by_folder(["2", "12"], classes(["2", "12"], 12, file)) == [4, 3]
    text = tmp_path / "classes.txt"
    text.write_text("1 001.Albatross\n2 002.Auk\n")
    assert classes(["001.Albatross", "002.Auk"], 2, text).indices == (0, 1)
    text.write_text("dog\ncat\n")
    assert classes(["cat", "dog"], 2, text).indices == (1, 0)
    file.write_text(json.dumps({"1": ["n02", "dog"], "0": ["n01", "cat"]}))
    assert classes(["n01", "n02"], 2, file).indices == classes(["cat", "dog"], 2, file).indices


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("cat\ndog\ncow\n")
    with pytest.raises(ImageError, match="names no class 'pig', and val/pig has pictures of it"):
        classes(["cat", "pig"], 3, file)
    with pytest.raises(ImageError, match="says that val/cow is class 2; expected 0 to 1"):
        classes(["cow"], 2, file)
    with pytest.raises(ImageError, match=r"val/Cat and cat are one class, 0, by .*classes\.txt"):
        classes(["Cat", "cat"], 3, file)
    with pytest.raises(ArtifactError, match="No such file"):
        classes(["cat"], 3, tmp_path / "missing.json")


def test_the_orders_that_were_not_taken_are_known() -> None:
    found = classes(ZERO, 12, ClassOrder.TEXT)
    assert set(found.others) == {ClassOrder.NATURAL, ClassOrder.NUMBER}
    assert found.others[ClassOrder.NATURAL] == tuple(int(name) for name in sorted(ZERO))
