"""The model's class for each class folder: never guessed where orders of names differ.

Training tools number the folders in one of these orders, and nothing in the weights says which:

    text      by characters: 1, 10, 2; torchvision's ImageFolder, mmpretrain
    natural   digits compared as numbers, case folded: 1, 2, 10; timm
    number    the number in a name is the class, from 0, or from 1 where only that fits
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

from t2t_deploy._options import PATH, AnyPath, Kind, Opt, Role
from t2t_deploy.errors import ImageError, counted, one_line, shown_path
from t2t_deploy.pictures._labels import class_names_from_file


class ClassOrder(str, Enum):
    """An order in which class folders are numbered."""

    TEXT = "text"
    NATURAL = "natural"
    NUMBER = "number"


def _order_or_file(value: Any) -> ClassOrder | Path:
    word = value.value if isinstance(value, ClassOrder) else value
    if isinstance(word, str) and word in [order.value for order in ClassOrder]:
        return ClassOrder(word)
    return Path(PATH.read(word))


ClassOrderName = Annotated[
    AnyPath | ClassOrder | None,
    Opt(
        "Which class a folder is: text (10 before 2), natural (2 before 10), number, or a file of "
        "class names. Asked for where the answers differ.",
        Kind("text, natural, number or a file of class names", _order_or_file, metavar="ORDER"),
        Role.READS,
        metavar="text|natural|number|FILE",
        later=True,
    ),
]

_WAY_OUT = (
    "give the class order that the model was trained in: text (as ImageFolder and mmpretrain "
    "sort), natural (as timm does), number, or a file such as class_to_idx.json"
)
_DIGITS = re.compile(r"([0-9]+)")
_NUMBERED = re.compile(r"([^0-9]*)([0-9]{1,9})(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FolderClasses:
    """The model's class for each folder.

    others: the same by the orders that were not taken. note: what was assumed, for the user.
    """

    indices: tuple[int, ...]
    others: Mapping[ClassOrder, tuple[int, ...]]
    note: str | None = None


def folder_classes(
    root: Path,
    folders: Sequence[str],
    num_classes: int,
    order: ClassOrder | Path | None = None,
    class_names: Sequence[str] | None = None,
) -> FolderClasses:
    """The model's class for each of some folders in ``root``, all of different names.

    order: None takes the model's own class names where the folders have these, else what all
    orders agree on. class_names: the model's own, None where it has none. Raises ImageError where
    folders do not fit the model, or orders differ; ArtifactError for a file that names no classes.
    """
    orders = _Orders(root, folders, num_classes)
    known = orders.possible()
    if isinstance(order, Path):
        names = class_names_from_file(order)
        indices = _by_names(root, folders, names, num_classes, shown_path(order))
        return FolderClasses(indices, known)
    if order is not None:
        found = known.get(order) or orders.fail(order)
        rest = {name: one for name, one in known.items() if name is not order}
        return FolderClasses(found, rest, orders.assumed(found, order))
    if class_names is not None:
        own = set(map(plain_name, class_names))
        lacking = [folder for folder in folders if plain_name(folder) not in own]
        if not lacking:
            names = tuple((name,) for name in class_names)
            indices = _by_names(root, folders, names, num_classes, "the model")
            return FolderClasses(
                indices, known, "class folders are matched by the model's class names"
            )
        if len(lacking) < len(folders):
            raise ImageError(
                f"class folder {_shown(root, lacking[0])} has none of the model's class names "
                f"({_few(class_names)}), and others have; rename it, or {_WAY_OUT}"
            )
    return orders.agreed()


@dataclass(frozen=True, slots=True)
class _Orders:
    """What the orders say of some folders."""

    root: Path
    folders: Sequence[str]
    num_classes: int

    def possible(self) -> dict[ClassOrder, tuple[int, ...]]:
        """The classes by each order that can be told; by name where every class has a folder."""
        found = {}
        if len(self.folders) == self.num_classes:
            found = _ranks(self.folders, self.folders)
        for numbers in self.numbers()[:1]:
            found[ClassOrder.NUMBER] = numbers
        return found

    def numbers(self) -> list[tuple[int, ...]]:
        """The numbers of the names as classes: counted from 0, from 1, as far as these fit."""
        parts = [_NUMBERED.fullmatch(name) for name in self.folders]
        if any(part is None for part in parts) or len({p[1] for p in parts if p}) > 1:
            return []
        found = [int(part[2]) for part in parts if part]
        if len(set(found)) < len(found):
            return []
        return [
            tuple(number - first for number in found)
            for first in (0, 1)
            if min(found) >= first and max(found) - first < self.num_classes
        ]

    def agreed(self) -> FolderClasses:
        """What every order says. Raises ImageError where they differ, or none can be told."""
        told = self.possible() if len(self.folders) == self.num_classes else {}
        candidates = [*told.items()]
        if not told and all(_DIGITS.fullmatch(name) for name in self.folders):
            for numbers in self.numbers():
                # with the folders that lack, as they would be named
                by_name = _ranks(self.folders, self._completed(numbers))
                candidates += [(ClassOrder.NUMBER, numbers), *by_name.items()]
        if not candidates:
            self.fail(None)
        first, taken = candidates[0]
        for other, indices in candidates[1:]:
            for name, one, two in zip(self.folders, taken, indices, strict=True):
                if one != two:
                    ways = (
                        "counted from 0 and class {} counted from 1"
                        if first is other
                        else f"in {first.value} order and class {{}} in {other.value} order"
                    )
                    raise ImageError(
                        f"class folder {_shown(self.root, name)} is class {one} "
                        f"{ways.format(two)}; {_WAY_OUT}" + ("" if told else f" ({self.lacks()})")
                    )
        return FolderClasses(taken, {}, self.assumed(taken, None))

    def lacks(self) -> str:
        """What order by name needs where a class has no folder."""
        lacking = self.num_classes - len(self.folders)
        return (
            f"{counted(lacking, 'class')} of {self.num_classes} without a folder: text and natural "
            "need one for each, which may be empty"
        )

    def assumed(self, indices: tuple[int, ...], order: ClassOrder | None) -> str | None:
        """What was taken of numbers without being told, None where nothing was."""
        numbers, complete = self.numbers(), len(self.folders) == self.num_classes
        if order not in (None, ClassOrder.NUMBER) or (order is None and complete):
            return None
        if len(numbers) > 1:
            return (
                "class folders are taken as classes counted from 0, since none is numbered "
                f"{self.num_classes}; where the training counted from 1 give a file such as "
                "class_to_idx.json as class order"
            )
        if self.num_classes - 1 in indices and 0 not in map(_number, self.folders):
            one, index = min(zip(self.folders, indices, strict=True), key=lambda pair: pair[1])
            if _number(one) != index:
                return f"class folders are counted from 1: {one_line(one)} is class {index}"
        return None

    def fail(self, order: ClassOrder | None) -> NoReturn:
        """Raise ImageError: this order, or none at all, says a class for each folder."""
        count = self.num_classes
        shown = f"{shown_path(self.root)} has {counted(len(self.folders), 'class folder')}"
        if order is ClassOrder.NUMBER:
            raise ImageError(
                f"{shown} ({_few(self.folders)}) that are not numbered from 0 to {count - 1}, or "
                f"from 1 to {count}, each once; rename or merge folders, or give class order "
                "text, natural or a file such as class_to_idx.json"
            )
        raise ImageError(
            f"{shown} ({_few(self.folders)}) and the model {counted(count, 'class')}; expected a "
            "folder for each class, which may be empty, folders named by class numbers from 0 to "
            f"{count - 1} (class order number), a file such as class_to_idx.json as class order, "
            "or class names in the model (labels at export)"
        )

    def _completed(self, classes: Sequence[int]) -> list[str]:
        """Folders named by numbers, and such for the classes that have none."""
        first = int(self.folders[0]) - classes[0]
        padded = [len(name) for name in self.folders if name[0] == "0"]
        width = max(padded, default=1)
        lacking = set(range(self.num_classes)).difference(classes)
        return [*self.folders, *(f"{index + first:0{width}d}" for index in lacking)]


def _natural(name: str) -> tuple[list[int | str], str]:
    """Sorts digits as numbers and folds case; equal names in the order of the text."""
    words = _DIGITS.split(name.lower())  # every second one has digits
    return [int(word) if index % 2 else word for index, word in enumerate(words)], name


def _number(name: str) -> int | None:
    part = _NUMBERED.fullmatch(name)
    return None if part is None else int(part[2])


def _ranks(folders: Sequence[str], every: Sequence[str]) -> dict[ClassOrder, tuple[int, ...]]:
    """The position of each folder among all, by text and natural order."""
    found = {}
    for order, names in (
        (ClassOrder.TEXT, sorted(every)),
        (ClassOrder.NATURAL, sorted(every, key=_natural)),
    ):
        index_of = {name: index for index, name in enumerate(names)}
        found[order] = tuple(index_of[name] for name in folders)
    return found


def plain_name(name: str) -> str:
    """A name without what tools write differently: case, spaces, underscores."""
    return " ".join(name.replace("_", " ").casefold().split())


def _by_names(
    root: Path,
    folders: Sequence[str],
    names: Sequence[tuple[str, ...]],
    num_classes: int,
    source: str,
) -> tuple[int, ...]:
    """The class of each folder by its name. Raises ImageError where it has none, or several."""
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    for index, aliases in enumerate(names):
        for name in dict.fromkeys(aliases):
            exact.setdefault(name, []).append(index)
        for name in dict.fromkeys(map(plain_name, aliases)):
            alike.setdefault(name, []).append(index)
    found: dict[int, str] = {}
    for folder in folders:
        classes = exact.get(folder) or alike.get(plain_name(folder)) or []
        shown = _shown(root, folder)
        if not classes:
            raise ImageError(
                f"{source} names no class {one_line(folder)!r}, and {shown} has pictures of it; "
                "add it, or rename the folder"
            )
        if len(classes) > 1:
            raise ImageError(
                f"{source} has {len(classes)} classes {one_line(folder)!r} "
                f"({', '.join(map(str, classes[:5]))}), and {shown} may be any; give each a name "
                "of its own"
            )
        index = classes[0]
        if index >= num_classes:
            raise ImageError(
                f"{source} says that {shown} is class {index}; expected 0 to {num_classes - 1}, "
                "the model's classes: give the file of this model"
            )
        if index in found:
            raise ImageError(
                f"class folders {_shown(root, found[index])} and {one_line(folder)} are one class, "
                f"{index}, by {source}; merge them"
            )
        found[index] = folder
    return tuple(found)


def _few(names: Sequence[str]) -> str:
    return one_line(", ".join(names[:3]) + (", ..." if len(names) > 3 else ""))


def _shown(root: Path, folder: str) -> str:
    return shown_path(root / folder)
