"""A folder of class folders, ImageNet-style, as pictures with labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from t2t_deploy.errors import ImageError, counted
from t2t_deploy.pictures._image_set import (
    PictureBatch,
    image_set_from_folder,
    read_pictures,
    stacked,
)


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Pictures in a fixed order, with the folder of its class for each.

    folders: names of the class folders, by name; none for a set without labels. classes: for each
    picture the place of its folder in ``folders``. left_out: how many further pictures there are.
    """

    folder: Path
    paths: tuple[Path, ...]
    folders: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    left_out: int = 0

    @property
    def has_labels(self) -> bool:
        """Whether the pictures lie in class folders."""
        return bool(self.folders)

    def class_indices(self, num_classes: int) -> tuple[int, ...]:
        """The model's class for each of ``folders``.

        Folders that are all named by numbers mean these classes. Other folders must be as many as
        the model has classes, and mean them in the order of their names. Raises ImageError.
        """
        names = self.folders
        if all(name.isdecimal() for name in names):
            indices = tuple(int(name) for name in names)
            beyond = [name for name in names if int(name) >= num_classes]
            if beyond:
                raise ImageError(
                    f"class folder {self.folder / beyond[0]} is named by a number; expected 0 to "
                    f"{num_classes - 1}, the model's classes: rename the folders"
                )
            if len(set(indices)) < len(indices):
                raise ImageError(
                    f"{self.folder} has two folders for one class ({', '.join(names)}); expected "
                    "one: merge them"
                )
            return indices
        if len(names) != num_classes:
            raise ImageError(
                f"{self.folder} has {counted(len(names), 'class folder')} ({_shown(names)}) and "
                f"the model {num_classes} classes; expected a folder for each class, in the order "
                f"of their names, or folders named by class numbers from 0 to {num_classes - 1}"
            )
        return tuple(range(num_classes))

    def batches(self, size: int, batch: int, num_classes: int) -> Iterator[PictureBatch]:
        """Preprocessed pictures, ``batch`` files at a time; nothing is kept of those before.

        A file that cannot be read is told with its batch, which may be left without pictures.
        Raises ImageError where class folders do not fit the model.
        """
        indices = self.class_indices(num_classes) if self.has_labels else ()
        for start in range(0, len(self.paths), batch):
            places = range(start, min(start + batch, len(self.paths)))
            found, unreadable = read_pictures([self.paths[place] for place in places], size)
            pictures, labels = [], []
            for place, picture in zip(places, found, strict=True):
                if picture is None:
                    continue
                pictures.append(picture)
                if indices:
                    labels.append(indices[self.classes[place]])
            yield PictureBatch(
                stacked(pictures, size),
                np.array(labels, np.int64) if indices else None,
                unreadable,
            )


def labelled_set_from_folder(folder: Path, *, limit: int | None = None) -> LabelledSet:
    """All pictures of a folder; those in subfolders have the subfolder as their class.

    limit: take this many, from all classes in turn. Hidden folders are not classes.
    Raises ImageError where there is no picture, or some lie in class folders and some beside them.
    """
    found = image_set_from_folder(folder).paths
    depth = len(folder.parts)
    loose = [path for path in found if len(path.parts) == depth + 1]
    if len(loose) == len(found):
        kept = found if limit is None else found[:limit]
        return LabelledSet(folder, kept, left_out=len(found) - len(kept))
    if loose:
        raise ImageError(
            f"{loose[0]} and {len(loose) - 1} more pictures lie beside class folders, so their "
            "class is unknown; move them into the folder of their class, or away"
        )
    folders = tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
    )
    of_class: dict[str, list[Path]] = {name: [] for name in folders}
    for path in found:
        name = path.parts[depth]
        if name not in of_class:
            raise ImageError(f"{path} lies in a hidden folder; remove it, or rename the folder")
        of_class[name].append(path)
    places = {name: place for place, name in enumerate(folders)}
    if limit is None:
        ordered = list(found)
    else:
        rounds = zip_longest(*of_class.values())
        ordered = [path for one_each in rounds for path in one_each if path is not None][:limit]
    return LabelledSet(
        folder,
        tuple(ordered),
        folders,
        tuple(places[path.parts[depth]] for path in ordered),
        left_out=len(found) - len(ordered),
    )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
