"""What is in an ONNX file or an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2t_deploy.graph import read_onnx
from t2t_deploy.types import GraphIO
from t2t_deploy.workspace import Workspace


def inspect_artifact(workspace: Workspace, path: Path) -> dict[str, Any]:
    """Graph or engine figures and lineage, JSON-ready. Raises ArtifactError."""
    artifact = workspace.open(path, force=True)
    manifest = artifact.manifest
    summary: dict[str, Any] = {
        "path": str(artifact.path),
        "size_bytes": artifact.path.stat().st_size,
        "kind": artifact.kind,
        "manifest": None,
    }
    if manifest is not None:
        summary["manifest"] = {
            "sha256": manifest.sha256,
            "variant": manifest.variant,
            "precision": manifest.precision.value,
            "target": manifest.target,
            "batch": "dynamic" if manifest.batch is None else manifest.batch,
            "image_size": manifest.config.get("image_size"),
            "num_classes": manifest.config.get("num_classes"),
            "strategies": manifest.strategies,
            "verification": manifest.verification,
            "weights": dict(manifest.weights),
            "parents": [dict(parent) for parent in manifest.parents],
            "tools": dict(manifest.tools),
            "created": manifest.created,
            **GraphIO.of_details(manifest.details).to_details(),
            "rewrites": manifest.details.get("rewrites"),
            "outdated": manifest.outdated,
        }
    if manifest is not None and manifest.kind == "engine":
        summary["engine"] = manifest.details["engine"]
        summary["attestation"] = manifest.details.get("attestation")
        summary["graph_verification"] = manifest.details.get("graph_verification")
        return summary
    if artifact.kind == "engine":
        return summary
    summary["graph"] = _graph(artifact.path)
    return summary


def _graph(path: Path) -> dict[str, Any]:
    from t2t_deploy.graph import summarise_graph

    graph = summarise_graph(read_onnx(path))  # its sizes are in the file itself
    return {
        "opset": graph.opset,
        "nodes": graph.nodes,
        "ops": dict(graph.ops),
        "weight_bytes": dict(graph.weight_bytes),
        "inputs": [str(spec) for spec in graph.inputs],
        "outputs": [str(spec) for spec in graph.outputs],
    }
