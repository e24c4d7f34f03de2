"""Artifacts with lineage: files that are written whole, named by content and known by manifest.

    <workspace>/onnx/<name>-<sha>.onnx          + .manifest.json
    <workspace>/engines/<name>-<sha>.engine     + .manifest.json
    <workspace>/weights/<sha>.safetensors       each set of weights once
    <workspace>/calibration/<name>-<key>.ranges what pictures said of a graph
    <workspace>/logs/, <workspace>/bench/       builder logs, measurements
    <workspace>/cache/, <workspace>/timing/     what runtimes and builders need not do again
    <workspace>/tune/                           what tune measured, and its pick
    <workspace>/.locks/                         who works on what just now

A manifest lies beside its file and names it without a folder, so a workspace can be moved.
"""

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
    BEST,
    CALIBRATION,
    PARTIAL,
    TUNE,
    Best,
    Workspace,
    WorkspaceCheck,
    finished,
    read_best,
    write_best,
)

__all__ = [
    "BEST",
    "CALIBRATION",
    "PARTIAL",
    "TUNE",
    "Artifact",
    "Best",
    "LockPolicy",
    "Manifest",
    "Workspace",
    "WorkspaceCheck",
    "finished",
    "manifest_path_for",
    "manifest_text",
    "read_best",
    "read_manifest",
    "tool_versions",
    "write_best",
]
