"""Names of a model's classes: of a file, else the checkpoint's own; kept in the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from t2t_deploy._options import FILE, AnyPath, Opt, Role
from t2t_deploy._progress import Progress
from t2t_deploy.errors import UsageError
from t2t_deploy.pictures import labels_from_file, repeated_label
from t2t_deploy.workspace import Artifact

_MAX_BYTES = 4 << 20

OwnLabels = Annotated[
    AnyPath | None,
    Opt(
        "Names of the classes, kept in the artifact: one a line, or class_to_idx, id2label or a "
        "list in JSON.",
        FILE,
        Role.READS,
        metavar="FILE",
        recipe="model",
    ),
]


def class_names_of(artifact: Artifact) -> tuple[str, ...] | None:
    """The names that an artifact itself has; None where it has none."""
    if artifact.manifest is not None:
        return artifact.manifest.class_names
    if artifact.kind != "onnx":
        return None
    from t2t_deploy.graph import class_names_in

    return class_names_in(artifact.path)


def chosen_names(
    labels: AnyPath | None,
    own_names: tuple[str, ...] | None,
    num_classes: int,
    progress: Progress,
) -> dict[str, Any]:
    """The entry of a manifest's details: names of ``labels``, else the checkpoint's own, if any.

    own_names: left out, with a note, where they are not as many as the classes. Raises
    ArtifactError for a file that does not fit, UsageError for names that are too long to keep.
    """
    names = own_names
    if labels is not None:
        names = labels_from_file(Path(labels), num_classes)
    elif names is not None:
        if len(names) != num_classes:
            progress.note(
                f"the checkpoint names {len(names)} classes and the model has {num_classes}, so "
                "the names are left out; give labels"
            )
            return {}
        progress.note(
            f"classes are named as in the checkpoint ({', '.join(names[:3])}, ...); give labels to "
            "name them otherwise"
        )
    if names is None:
        return {}
    if sum(len(name.encode()) for name in names) > _MAX_BYTES:
        raise UsageError("the labels have more than 4 MiB; give shorter ones")
    note_repeated(names, progress)
    return {"class_names": list(names)}


def note_repeated(names: tuple[str, ...], progress: Progress) -> None:
    """Say where classes share a name."""
    found = repeated_label(names)
    if found is not None:
        progress.note(found)
