"""Names of classes in an ONNX file's own metadata."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx

from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph._file import read_onnx

_KEY = "class_names"


def with_class_names(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose ``metadata_props`` have the names, a JSON list in the order of the classes."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    kept = {one.key: one.value for one in model.metadata_props if one.key != _KEY}
    onnx.helper.set_model_props(named, {**kept, _KEY: json.dumps(list(names), ensure_ascii=False)})
    return named


def class_names_in(path: Path) -> tuple[str, ...] | None:
    """Those of a file, which need not be ours; None where it has none that can be read."""
    try:
        props = {one.key: one.value for one in read_onnx(path).metadata_props}
        names = json.loads(props.get(_KEY, "null"))
    except (ArtifactError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
        return None
    named = bool(names) and all(one and "\n" not in one and "\r" not in one for one in names)
    return tuple(names) if named else None
