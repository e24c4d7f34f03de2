"""The folder of a prediction across a cluster.

    OUTPUT/run.json                         what was asked for
    OUTPUT/predictions/NAME.parquet         a file a block: image, index, probability, label
    OUTPUT/failed/NAME.parquet              its pictures without classes: image, error, unreadable

A block is finished when its file of predictions is there; it is written last, in one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy import __version__
from t2t_deploy._files import abandoned, atomic_write, make_folder, remove, write_text
from t2t_deploy._optional import require
from t2t_deploy._untrusted import MAX_MANIFEST_BYTES, json_from_file
from t2t_deploy.errors import ArtifactError
from t2t_deploy.pictures import shown_name
from t2t_deploy.serving import PictureClasses

_SUFFIX = ".parquet"
_RUN = "run.json"
_FORMAT = 1
_TOLD_SOURCES = 20
_TOLD_FAILED = 1000


@dataclass(frozen=True, slots=True)
class Totals:
    """Pictures with classes and without in all files; some of the latter with the reason."""

    images: int
    failed: int
    first_failed: tuple[tuple[str, str], ...]


class OutputFolder:
    """Where blocks are written. settings: what decides about their content."""

    def __init__(self, root: Path, labels: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.root = root
        self._labels, self._settings = labels, dict(settings)
        self._predictions, self._failed = root / "predictions", root / "failed"

    def claim(self, sources: Sequence[str], block: int) -> str:
        """Make the folder, or take up what is in it; returns the identity of its blocks.

        Raises ArtifactError where it holds predictions by something else, or of other pictures.
        """
        digest = hashlib.sha256(b"\0".join(map(os.fsencode, sources))).hexdigest()
        wanted = {
            "format": _FORMAT,
            **self._settings,
            "block": block,
            "sources": [shown_name(source) for source in sources[:_TOLD_SOURCES]],
            "sources_sha256": digest,
        }
        path = self.root / _RUN
        if path.is_file():
            found = self._read(path)
            other = [key for key in wanted if found.get(key) != wanted[key]]
            if other:
                key = other[0]
                raise ArtifactError(
                    f"{self.root} holds predictions of another run: its {key} is "
                    f"{found.get(key)!r}, expected {wanted[key]!r}; choose another --output, or "
                    "remove it"
                )
        elif self._predictions.exists():
            raise ArtifactError(
                f"{self.root} has a folder predictions and no {_RUN}; choose another --output"
            )
        else:
            write_text(path, json.dumps(wanted, indent=1) + "\n")
        for folder in (self._predictions, self._failed):
            make_folder(folder)
        for path in abandoned(self.root):
            remove(path)
        return json.dumps({"format": _FORMAT, **self._settings}, sort_keys=True)

    def finished(self) -> frozenset[str]:
        """Names of the blocks that are here."""
        with os.scandir(self._predictions) as entries:
            return frozenset(
                entry.name[: -len(_SUFFIX)]
                for entry in entries
                # temporary files begin with a dot
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith(".")
            )

    def write(self, name: str, pictures: Sequence[PictureClasses]) -> None:
        """Write a block whole. Raises ArtifactError where there is no space or right to."""
        pa = require("pyarrow")
        good = [picture for picture in pictures if picture.error is None]
        bad = [picture for picture in pictures if picture.error is not None]
        failed = self._failed / f"{name}{_SUFFIX}"
        failed.unlink(missing_ok=True)  # of a run that ended between both files
        if bad:
            columns = {
                "image": pa.array(map(_shown, bad), pa.string()),
                "error": pa.array([picture.error for picture in bad], pa.string()),
                "unreadable": pa.array([picture.unreadable for picture in bad], pa.bool_()),
            }
            self._write(failed, columns)
        columns = {
            "image": pa.array(map(_shown, good), pa.string()),
            "index": pa.array([p.indices for p in good], pa.list_(pa.int32())),
            "probability": pa.array([p.probabilities for p in good], pa.list_(pa.float32())),
        }
        if self._labels:
            names = [[self._labels[index] for index in p.indices] for p in good]
            columns["label"] = pa.array(names, pa.list_(pa.string()))
        self._write(self._predictions / f"{name}{_SUFFIX}", columns)

    def remove_all_but(self, names: Collection[str]) -> int:
        """Remove blocks that are not among ``names``; returns how many."""
        superseded = self.finished().difference(names)
        for name in superseded:
            for folder in (self._failed, self._predictions):
                (folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
        return len(superseded)

    def totals(self) -> Totals:
        """Count what is in the folder, from the files' footers."""
        parquet = require("pyarrow.parquet")
        images = failed = 0
        first: list[tuple[str, str]] = []
        for name in sorted(self.finished()):
            images += parquet.read_metadata(self._predictions / f"{name}{_SUFFIX}").num_rows
            path = self._failed / f"{name}{_SUFFIX}"
            if path.is_file():
                rows = parquet.read_table(path).to_pylist()
                failed += len(rows)
                first += [(row["image"], row["error"]) for row in rows]
                del first[_TOLD_FAILED:]
        return Totals(images, failed, tuple(first))

    def _write(self, path: Path, columns: Mapping[str, Any]) -> None:
        pa, parquet = require("pyarrow"), require("pyarrow.parquet")
        told = {"t2t_deploy": json.dumps({"version": __version__, **self._settings})}
        table = pa.table(columns).replace_schema_metadata(told)
        with atomic_write(path) as temporary:
            parquet.write_table(table, temporary, compression="zstd")

    def _read(self, path: Path) -> Mapping[str, Any]:
        try:
            values = json_from_file(path, MAX_MANIFEST_BYTES)
        except (OSError, ValueError) as err:
            raise ArtifactError(
                f"{path} cannot be read ({err}); choose another --output, or remove this one"
            ) from err
        return values if isinstance(values, dict) else {}


def _shown(picture: PictureClasses) -> str:
    return shown_name(picture.image)
