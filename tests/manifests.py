"""Artifacts whose content is of no matter, and their manifests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2t_deploy.types import Precision
from t2t_deploy.workspace import Artifact, Manifest, Workspace

DRAFT = Manifest(
    kind="onnx",
    file="",
    sha256="",
    size_bytes=0,
    variant="tiny",
    precision=Precision.FP32,
    config={"image_size": 32},
    batch=None,
    target="portable",
    weights={"sha256": "0" * 64, "source": {"kind": "random"}},
)


def store(
    workspace: Workspace,
    content: bytes = b"content",
    draft: Manifest = DRAFT,
    output: Path | None = None,
    **fields: Any,
) -> Artifact:
    """Store an artifact as the draft says, with other fields; its details are found in writing."""
    made = dataclasses.replace(draft, **fields)

    def write(path: Path) -> Mapping[str, Any]:
        path.write_bytes(content)
        return {"details": made.details}

    return workspace.store(dataclasses.replace(made, details={}), write, stem="tiny", output=output)
