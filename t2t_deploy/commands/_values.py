"""Results of commands as JSON-ready values, with the field names of the command-line contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2t_deploy.commands._calibrate import CalibratedRanges
from t2t_deploy.commands._evaluate import EvaluatedArtifact, Evaluation
from t2t_deploy.commands._package import Package
from t2t_deploy.commands._verify import VerifiedArtifact
from t2t_deploy.workspace import Artifact


def artifact_values(artifact: Artifact) -> dict[str, Any]:
    """The ``artifact`` object; of a foreign file its path alone."""
    manifest = artifact.manifest
    if manifest is None:
        return {"path": str(artifact.path)}
    return {
        "path": str(artifact.path),
        "sha256": manifest.sha256,
        "kind": manifest.kind,
        "variant": manifest.variant,
        "precision": manifest.precision.value,
        "target": manifest.target,
        "batch": "dynamic" if manifest.batch is None else manifest.batch,
        "image_size": manifest.config.get("image_size"),
        "num_classes": manifest.config.get("num_classes"),
        "opset": manifest.opset,
        "strategies": manifest.strategies,
        "size_bytes": manifest.size_bytes,
    }


def export_values(artifact: Artifact) -> dict[str, Any]:
    """What ``export --json`` prints."""
    manifest = artifact.require_manifest()
    return {
        "artifact": artifact_values(artifact),
        "verification": manifest.verification,
        "rewrites": manifest.details["rewrites"],
        "notes": manifest.details["notes"],
    }


def quantize_values(artifact: Artifact) -> dict[str, Any]:
    """What ``quantize --json`` prints; the hashes of the pictures stay in the manifest."""
    manifest = artifact.require_manifest()
    details = manifest.details
    calibration, quantization = details["calibration"], details["quantization"]
    if calibration is not None:
        calibration = {key: value for key, value in calibration.items() if key != "pictures"}
    return {
        "artifact": artifact_values(artifact),
        "verification": manifest.verification,
        "calibration": calibration,
        "quantized_nodes": quantization["quantized_nodes"],
        "float_nodes": quantization["float_nodes"],
        "quantization": quantization,
        "speed": details.get("speed"),
        "budget": details.get("budget"),
    }


def build_values(artifact: Artifact) -> dict[str, Any]:
    """What ``build-trt --json`` prints."""
    manifest = artifact.require_manifest()
    details = manifest.details
    return {
        "artifact": artifact_values(artifact),
        "engine": {"path": str(artifact.path), "sha256": manifest.sha256, **details["engine"]},
        "attestation": details["attestation"],
        "runnable_here": details["runnable_here"],
        "why_not": details["why_not"],
    }


def calibrate_values(found: CalibratedRanges) -> dict[str, Any]:
    """What ``calibrate --json`` prints."""
    calibration = found.calibration
    key = calibration.key
    return {
        "ranges": {
            "path": str(found.path),
            **key.to_dict(),
            "tensors": len(calibration.ranges),
            "reused": found.reused,
        },
        "calibration": {
            "images": key.images - len(calibration.unreadable),
            "sha256": key.images_sha256,
            "method": key.method.value,
            "unreadable": list(calibration.unreadable),
        },
        "equalised": [
            {
                "producer": pair.producer,
                "layers": list(pair.layers),
                "spread_before": pair.spread_before,
                "spread_after": pair.spread_after,
            }
            for pair in calibration.equalisation.applied
        ],
        "not_equalised": dict(calibration.equalisation.refused),
    }


def verify_values(results: list[VerifiedArtifact]) -> dict[str, Any]:
    """What ``verify --json`` prints."""
    return {"results": [_verified(result) for result in results]}


def evaluate_values(found: Evaluation) -> dict[str, Any]:
    """What ``evaluate --json`` prints."""
    return {
        "images": {
            "folder": str(found.images.folder),
            "count": len(found.images.paths),
            "left_out": found.images.left_out,
            "labelled": found.images.has_labels,
            "unreadable": list(found.unreadable),
        },
        "results": [_evaluated(result) for result in found.results],
        "confusion": None if found.plot is None else str(found.plot),
    }


def package_values(package: Package, repository: Path) -> dict[str, Any]:
    """What ``package --json`` prints."""
    service = package.service
    signature = service.signature
    return {
        "repository": str(repository),
        "artifact": artifact_values(package.artifact),
        "model": {
            "name": service.name,
            "backend": service.format.value,
            "accelerator": service.accelerator.value,
            "instances": "on GPU" if service.on_gpu else "on CPU",
            "max_batch_size": service.batching.max_size,
            "preferred_batch_sizes": list(service.batching.preferred),
            "input": str(signature.image),
            "outputs": [str(spec) for spec in signature.outputs],
            "tail": signature.tail.value,
        },
        "ensemble": {
            "name": service.ensemble_name,
            "steps": [service.preprocess_name, service.name, service.postprocess_name],
            "top": service.top_count,
            "labels": service.labels is not None,
        },
        "folders": [str(folder) for folder in package.folders],
        "notes": list(package.notes),
    }


def _verified(result: VerifiedArtifact) -> dict[str, Any]:
    values = {"artifact": str(result.artifact.path), **result.verification.to_dict()}
    if result.nodewise is not None:
        plot = None if result.plot is None else str(result.plot)
        values["nodewise"] = {**result.nodewise.to_dict(), "plot": plot}
    if result.located is not None:
        values["located"] = result.located.to_dict()
    return values


def _evaluated(result: EvaluatedArtifact) -> dict[str, Any]:
    manifest, figures, reference = result.artifact.manifest, result.accuracy, result.reference
    return {
        "artifact": str(result.artifact.path),
        "precision": None if manifest is None else manifest.precision.value,
        "status": result.status.value,
        "reason": result.reason,
        "batch": result.batch,
        "images": 0 if figures is None else figures.images,
        "top1": None if figures is None else figures.top1,
        "top5": None if figures is None else figures.top5,
        "agreement": None if figures is None else figures.agreement,
        "rel_l2_mean": None if figures is None else figures.rel_l2_mean,
        "rel_l2_max": None if figures is None else figures.rel_l2_max,
        "non_finite": None if figures is None else figures.non_finite,
        "reference": None
        if reference is None
        else {"top1": reference.top1, "top5": reference.top5},
    }
