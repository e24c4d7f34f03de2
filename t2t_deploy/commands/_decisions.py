"""Options of a model of one output, or of several labels: its labels, and what counts as a yes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from t2t_deploy._options import NUMBER, AnyPath, Kind, Opt, Role
from t2t_deploy._progress import Progress
from t2t_deploy.errors import UsageError
from t2t_deploy.pictures import LabelledSet, labelled_set_from_folder, labelled_set_with_targets
from t2t_deploy.types import DEFAULT_THRESHOLD


def _between(value: object) -> float:
    number = float(NUMBER.read(value))
    if not 0 < number < 1:
        raise ValueError
    return number


Targets = Annotated[
    AnyPath | None,
    Opt(
        "CSV or JSON of several labels: a picture's path in the folder, then 0 or 1 for each "
        "class.",
        role=Role.READS,
        metavar="FILE",
        sparse=True,
    ),
]
Threshold = Annotated[
    float | None,
    Opt(
        "Of one output or several labels: the least probability that is a yes; default 0.5.",
        Kind("a number between 0 and 1", _between, float),
        sparse=True,
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
    found, names = labelled_set_with_targets(Path(folder), Path(targets), limit=limit)
    if names:
        progress.note(f"classes of {Path(targets).name}, in their order: {', '.join(names)}")
    return found


def decides(
    images: LabelledSet, threshold: float | None, num_classes: int | None, progress: Progress
) -> bool:
    """Whether each class is decided by itself; what counts as a yes is said.

    num_classes: None where only the session says it. Raises UsageError for a threshold where a
    picture has one class of several.
    """
    several = bool(images.targets) or threshold is not None
    if num_classes != 1 and not several:
        return False
    if num_classes not in (None, 1) and images.folders:
        raise UsageError(
            "a threshold decides each class by itself, and class folders give a picture one class; "
            "leave it out, or give targets"
        )
    said = f"a yes is a probability of at least {threshold or DEFAULT_THRESHOLD:g} (--threshold)"
    if images.folders and num_classes == 1:
        indices = images.class_indices(2)
        words = [
            f"{name!r} is {'a yes' if indices[index] else 'a no'}"
            for index, name in enumerate(images.folders)
        ]
        said = f"one output: class folder {', '.join(words)}; {said}"
    progress.note(said)
    return True
