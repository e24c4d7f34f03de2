"""Sets of images: their identity, their classes or tables of labels, what was calibrated on."""

from __future__ import annotations

import csv
import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._preparation import Preparation
from t2t_deploy._untrusted import MAX_LABELS_BYTES, json_from_file, read_small_file
from t2t_deploy.errors import CalibrationError, ImageError, counted, one_line, shown_path
from t2t_deploy.images import Assumed, read_image, resize_and_crop
from t2t_deploy.pictures._class_order import ClassOrder, FolderClasses, folder_classes, plain_name
from t2t_deploy.pictures._counts import PictureCounter
from t2t_deploy.pictures._find import find_images, shown_name

if TYPE_CHECKING:
    from t2t_deploy.workspace import Artifact


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Some images of a set.

    pictures: (n, 3, S, S) float32; labels: (n,) int64, None where the set has none;
    unreadable: the reason for each image that is not among them.
    """

    pictures: np.ndarray
    labels: np.ndarray | None
    unreadable: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of a folder in a fixed order.

    paths: sorted by name; left_out: how many further images the folder holds.
    """

    folder: Path
    paths: tuple[Path, ...]
    left_out: int = 0

    @property
    def sha256(self) -> str:
        """Identity of the set: see `identity_of`."""
        return identity_of(self.digests())

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each file's content, in the order of ``paths``."""
        return file_digests(self.paths)

    def readable_batches(
        self,
        preparation: Preparation,
        batch: int,
        labels: Sequence[int] | Sequence[tuple[int, ...]] = (),
        assumed: Assumed | None = None,
        counter: PictureCounter | None = None,
    ) -> Iterator[ImageBatch]:
        """Preprocessed images, ``batch`` files at a time; nothing is kept of those before.

        A file that cannot be read is listed with its batch, which may be left without images.
        labels: of each path; none where the set has none. assumed: gets what files do not say.
        counter: counts the images that are read.
        """
        for start in range(0, len(self.paths), batch):
            found, kept, unreadable = [], [], []
            for index in range(start, min(start + batch, len(self.paths))):
                try:
                    image = read_image(self.paths[index], preparation)
                    if assumed is not None:
                        assumed.add(shown_name(str(self.paths[index])), image)
                    pixels = resize_and_crop(image, preparation)
                    if counter is not None:
                        counter.add(image.size, pixels, preparation)
                    found.append(preparation.normalise(pixels))
                    kept.append(index)
                except ImageError as err:
                    unreadable.append((self.paths[index], str(err)))
            yield ImageBatch(
                np.stack(found) if found else np.empty((0, *preparation.input_shape), np.float32),
                np.array([labels[index] for index in kept], np.int64) if labels else None,
                tuple(unreadable),
            )


@dataclass(frozen=True, slots=True)
class LabelledSet(ImageSet):
    """Images with the folder of its class for each.

    folders: names of the class folders, by name; none for a set without labels. classes: for each
    image the index of its folder in ``folders``. known: the model's class for each of ``folders``,
    once a model is known. targets: instead of folders, 0 or 1 for each class, of each image.
    columns: the classes of ``targets``, where the table names them.
    """

    folders: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    known: FolderClasses | None = None
    targets: tuple[tuple[int, ...], ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether the images lie in class folders, or a table tells their labels."""
        return bool(self.folders or self.targets)

    def for_model(
        self,
        num_classes: int,
        order: ClassOrder | Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> LabelledSet:
        """The set with the model's class for each folder; as `folder_classes`, and raises so.

        Of a model of one output, two folders are its no and its yes. Raises ImageError too where a
        table is not of the model's classes.
        """
        if not self.folders:
            if order is not None:
                raise ImageError(
                    f"{self.folder} has no class folders, so there is no order of them; leave the "
                    "class order out, or name a folder of class folders"
                )
            self._check_targets(num_classes, class_names)
            return self
        if num_classes == 1:
            num_classes = 2
            if class_names is not None:  # of the yes
                own = [plain_name(name) for name in class_names]
                others = tuple(name for name in self.folders if plain_name(name) not in own)
                class_names = (*others, *class_names) if len(others) == 1 else None
        known = folder_classes(self.folder, self.folders, num_classes, order, class_names)
        return replace(self, known=known)

    def _check_targets(self, num_classes: int, class_names: Sequence[str] | None) -> None:
        if self.targets and len(self.targets[0]) != num_classes:
            raise ImageError(
                f"the labels have {len(self.targets[0])} columns and the model {num_classes} "
                "classes; expected 0 or 1 for each class"
            )
        for index, pair in enumerate(zip(self.columns, class_names or (), strict=False)):
            if plain_name(pair[0]) != plain_name(pair[1]):
                raise ImageError(
                    f"column {index + 1} of the labels is {one_line(pair[0])!r} and class {index} "
                    f"of the model {one_line(pair[1])!r}; give the columns in the model's order, "
                    "or leave the line of their names out"
                )

    def batches(
        self, preparation: Preparation, batch: int, assumed: Assumed | None = None
    ) -> Iterator[ImageBatch]:
        """As `readable_batches`, with the model's classes as labels, of a set `for_model`.

        Of a table 0 or 1 for each class; of a model of one output 0 for its no and 1 for its yes.
        """
        labels: Sequence[int] | Sequence[tuple[int, ...]] = self.targets
        if self.folders:
            assert self.known is not None
            labels = [self.known.indices[folder] for folder in self.classes]
        return self.readable_batches(preparation, batch, labels, assumed)


def file_digests(paths: Iterable[Path]) -> tuple[str, ...]:
    """SHA-256 of each file's content, in hexadecimal."""
    return tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)


# all artifacts of a command are compared with the same images: they are hashed once
_digests = functools.lru_cache(maxsize=1)(file_digests)


def identity_of(digests: Iterable[str]) -> str:
    """Identity of a set of images: a hash over their contents, whatever their names and order."""
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def image_set_from_folder(
    folder: Path, *, count: int | None = None, spread: bool = False
) -> ImageSet:
    """All images below a folder, ``count`` of them; None takes all.

    spread: take them from the whole of the folder at even steps, as of class folders, instead of
    the first by name.

    Raises ImageError where there is no folder or no image in it.
    """
    found = _images_in(folder)
    kept = found if count is None else found[:count]
    if spread and len(kept) < len(found):
        kept = [found[index * len(found) // len(kept)] for index in range(len(kept))]
    return ImageSet(folder, tuple(kept), left_out=len(found) - len(kept))


def labelled_set_from_folder(folder: Path, *, limit: int | None = None) -> LabelledSet:
    """All images of a folder; those in subfolders have the subfolder as their class.

    limit: take this many, from all classes in turn. Hidden folders are not classes.
    Raises ImageError where there is no image, or some lie in class folders and some beside them.
    """
    found = _images_in(folder)
    depth = len(folder.parts)
    loose = [path for path in found if len(path.parts) == depth + 1]
    if len(loose) == len(found):
        return LabelledSet(folder, tuple(found[:limit]), len(found) - len(found[:limit]))
    if loose:
        raise ImageError(
            f"{loose[0]} and {len(loose) - 1} more pictures lie beside class folders, so their "
            "class is unknown; move them into the folder of their class, or away"
        )
    folders = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )
    of_class: dict[str, list[Path]] = {name: [] for name in folders}
    for path in found:
        name = path.parts[depth]
        if name not in of_class:
            raise ImageError(f"{path} lies in a hidden folder; remove it, or rename the folder")
        of_class[name].append(path)
    if limit is not None:
        rounds = zip_longest(*of_class.values())
        found = [path for one_each in rounds for path in one_each if path is not None]
    kept = tuple(found[:limit])
    index_of = {name: index for index, name in enumerate(folders)}
    classes = tuple(index_of[path.parts[depth]] for path in kept)
    return LabelledSet(folder, kept, len(found) - len(kept), tuple(folders), classes)


def overlap(artifact: Artifact, paths: Sequence[Path]) -> str | None:
    """None unless some of the files were among an artifact's calibration images; else which."""
    known = () if artifact.manifest is None else artifact.manifest.calibrated_on
    return _shared(known, paths, artifact.path.name) if known else None


def evaluation_images(images: LabelledSet, calibrated_on: Sequence[str], name: str) -> LabelledSet:
    """The images a budget is measured on. Raises CalibrationError for one calibrated on."""
    reason = _shared(calibrated_on, images.paths, name)
    if reason is not None:
        raise CalibrationError(reason)
    return images


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder; give one with pictures")
    return [Path(name) for name in find_images([str(folder)])]


def _shared(calibrated_on: Collection[str], paths: Sequence[Path], name: str) -> str | None:
    """None unless files have one of these SHA-256; else a line that says which."""
    known = set(calibrated_on)
    shared = [path for path, sha in zip(paths, _digests(tuple(paths)), strict=True) if sha in known]
    if not shared:
        return None
    return (
        f"{len(shared)} of {len(paths)} pictures, {shared[0]} the first, are among those that "
        f"{name} was calibrated on; expected none: evaluate on others, or calibrate on others"
    )


_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
_WAY = (
    "expected lines of a picture's path in the folder and 0 or 1 for each class, as in "
    'cat.jpg,1,0, or JSON as in {"cat.jpg": [1, 0]}'
)


def labelled_set_with_targets(folder: Path, file: Path, *, limit: int | None = None) -> LabelledSet:
    """The images that a table names, with 0 or 1 for each class.

    limit: take the first so many. Other images of the folder are left out. Raises ImageError.
    """
    try:
        names, rows = _json(file) if file.suffix.lower() == ".json" else _csv(file)
    except (OSError, ValueError, csv.Error) as err:
        why = err.strerror if isinstance(err, OSError) else str(err)
        raise ImageError(f"cannot read the labels {shown_path(file)}: {why}; {_WAY}") from err
    if not rows:
        raise ImageError(f"{shown_path(file)} names no picture; {_WAY}")
    widths = {len(row) for row in rows.values()} | ({len(names)} if names else set())
    if len(widths) > 1 or 0 in widths:
        counts = ", ".join(map(str, sorted(widths)))
        raise ImageError(
            f"the lines of {shown_path(file)} have {counts} values; {_WAY}, as many in each"
        )
    paths = {folder / name: row for name, row in rows.items()}
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ImageError(
            f"{counted(len(missing), 'picture')} of {shown_path(file)}, {missing[0]} the first, "
            f"are not there; expected paths in {folder}"
        )
    others = sum(Path(name) not in paths for name in find_images([str(folder)]))
    kept = list(paths.items())[:limit]
    left_out = others + len(paths) - len(kept)
    return LabelledSet(
        folder,
        tuple(path for path, _ in kept),
        left_out,
        targets=tuple(row for _, row in kept),
        columns=names,
    )


_Table = tuple[tuple[str, ...], dict[str, tuple[int, ...]]]
"""Names of classes, of a CSV's first line where it has such; rows by picture."""


def _csv(file: Path) -> _Table:
    text = read_small_file(file, MAX_LABELS_BYTES).decode("utf-8-sig")
    lines = [row for row in csv.reader(text.splitlines()) if row]
    names: tuple[str, ...] = ()
    if lines and not all(cell.strip() in _VALUES for cell in lines[0][1:]):
        names = tuple(cell.strip() for cell in lines.pop(0)[1:])
    return names, _rows(file, ((row[0].strip(), row[1:]) for row in lines))


def _json(file: Path) -> _Table:
    table = json_from_file(file, MAX_LABELS_BYTES)
    if not isinstance(table, dict):
        raise ImageError(f"{shown_path(file)} is no table of pictures; {_WAY}")
    pairs = ((name, row if isinstance(row, list) else [row]) for name, row in table.items())
    return (), _rows(file, pairs)


def _rows(file: Path, pairs: Iterator[tuple[str, list[Any]]]) -> dict[str, tuple[int, ...]]:
    rows: dict[str, tuple[int, ...]] = {}
    for name, cells in pairs:
        values = [_VALUES.get(str(cell).strip()) for cell in cells]
        if None in values:
            cell = cells[values.index(None)]
            raise ImageError(f"{shown_path(file)} has {cell!r} for {name}; {_WAY}")
        if name in rows:
            raise ImageError(f"{shown_path(file)} names {name} twice; leave one of them out")
        rows[name] = tuple(value for value in values if value is not None)
    return rows
