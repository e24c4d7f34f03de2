"""Options of a model of one output, or of several labels: its labels, and what counts as a yes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from t2t_deploy._options import AnyPath, Opt, Role, number
from t2t_deploy._progress import Progress
from t2t_deploy.errors import UsageError
from t2t_deploy.pictures import LabelledSet, labelled_set_from_folder, labelled_set_with_targets
from t2t_deploy.types import DEFAULT_THRESHOLD

Targets = Annotated[
    AnyPath | None,
    Opt(
        "CSV or JSON of several labels: a picture's path in the folder, then 0 or 1 for each "
        "class.",
        role=Role.READS,
        metavar="FILE",
        later=True,
    ),
]
Threshold = Annotated[
    float | None,
    Opt(
        "Of one output or several labels: the least probability that is a yes; default 0.5.",
        number("a number between 0 and 1", lambda least: 0 < least < 1),
        later=True,
    ),
]


def labelled_images(
    folder: AnyPath, targets: AnyPath | None, progress: Progress, *, limit: int | None = None
) -> LabelledSet:
    """The pictures of a folder with their labels: of a table, else of class folders, or none.

    Raises ImageError.
    """
    if targets is None:
        return labelled_set_from_folder(Path(folder), limit=limit)
    found = labelled_set_with_targets(Path(folder), Path(targets), limit=limit)
    if found.columns:
        columns = ", ".join(found.columns)
        progress.note(f"classes of {Path(targets).name}, in their order: {columns}")
    return found


def decides(images: LabelledSet, threshold: float | None, num_classes: int | None) -> bool:
    """Whether each class is decided by itself.

    num_classes: None where only the session says it. Raises UsageError for a threshold where a
    picture has one class of several.
    """
    if num_classes not in (None, 1) and images.folders and threshold is not None:
        raise UsageError(
            "a threshold decides each class by itself, and class folders give a picture one class; "
            "leave it out, or give targets"
        )
    return num_classes == 1 or bool(images.targets) or threshold is not None


def note_decisions(images: LabelledSet, threshold: float | None, progress: Progress) -> None:
    """Say what counts as a yes. images: as of `LabelledSet.for_model`."""
    said = f"a yes is a probability of at least {threshold or DEFAULT_THRESHOLD:g} (--threshold)"
    if images.known is not None:
        words = [
            f"{name!r} is {'a yes' if index else 'a no'}"
            for name, index in zip(images.folders, images.known.indices, strict=True)
        ]
        said = f"one output: class folder {', '.join(words)}; {said}"
    progress.note(said)
