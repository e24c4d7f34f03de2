"""Pictures with several labels each: a table of 0 and 1, as CSV or JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2t_deploy._untrusted import MAX_LABELS_BYTES, json_from_file, read_small_file
from t2t_deploy.errors import ImageError, counted, shown_path
from t2t_deploy.pictures._find import find_images
from t2t_deploy.pictures._sets import LabelledSet

_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
_WAY = (
    "expected lines of a picture's path in the folder and 0 or 1 for each class, as in "
    'cat.jpg,1,0, or JSON as in {"cat.jpg": [1, 0]}'
)


def labelled_set_with_targets(folder: Path, file: Path, *, limit: int | None = None) -> LabelledSet:
    """The images that a table names, with 0 or 1 for each class.

    limit: take the first so many. Other images of the folder are left out. Raises ImageError.
    """
    names, rows = _json(file) if file.suffix.lower() == ".json" else _csv(file)
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
    try:
        text = read_small_file(file, MAX_LABELS_BYTES).decode("utf-8-sig")
        lines = [row for row in csv.reader(text.splitlines()) if row]
    except (OSError, ValueError, csv.Error) as err:
        raise _unread(file, err) from err
    names: tuple[str, ...] = ()
    if lines and not all(cell.strip() in _VALUES for cell in lines[0][1:]):
        names = tuple(cell.strip() for cell in lines.pop(0)[1:])
    return names, _rows(file, ((row[0].strip(), row[1:]) for row in lines))


def _json(file: Path) -> _Table:
    try:
        table = json_from_file(file, MAX_LABELS_BYTES)
    except (OSError, ValueError) as err:
        raise _unread(file, err) from err
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


def _unread(file: Path, err: Exception) -> ImageError:
    why = err.strerror if isinstance(err, OSError) else str(err)
    return ImageError(f"cannot read the labels {shown_path(file)}: {why}; {_WAY}")
