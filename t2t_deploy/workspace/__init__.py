"""Artifacts with lineage: files written whole, named by content and known by manifest."""

from __future__ import annotations

from t2t_deploy.workspace._artifact import Artifact
from t2t_deploy.workspace._locks import LockPolicy
from t2t_deploy.workspace._manifest import (
    Manifest,
    manifest_path_for,
    manifest_text,
    read_manifest,
    tool_versions,
)
from t2t_deploy.workspace._workspace import (
    CALIBRATION,
    PARTIAL,
    Workspace,
    WorkspaceCheck,
    finished,
)

__all__ = [
    "CALIBRATION",
    "PARTIAL",
    "Artifact",
    "LockPolicy",
    "Manifest",
    "Workspace",
    "WorkspaceCheck",
    "finished",
    "manifest_path_for",
    "manifest_text",
    "read_manifest",
    "tool_versions",
]
