"""Predictions as CSV: a line a picture, written as they come, the file whole or not at all."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator
from pathlib import Path

from t2t_deploy.pipeline._predicted import PredictedPicture
from t2t_deploy.workspace import written_whole

_OF_A_CLASS = ("class", "label", "probability")


@contextlib.contextmanager
def csv_writer(path: Path, top: int) -> Iterator[Callable[[PredictedPicture], None]]:
    """Lines of image, error and ``top`` times class, label and probability; UTF-8.

    Raises ArtifactError where the file cannot be written.
    """
    columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in _OF_A_CLASS]
    with (
        written_whole(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "error", *columns])

        def write(picture: PredictedPicture) -> None:
            row = [picture.shown, picture.error or ""]
            for ranked in picture.top:
                row += [str(ranked.index), ranked.label or "", str(ranked.probability)]
            writer.writerow(row + [""] * (2 + len(columns) - len(row)))

        yield write
