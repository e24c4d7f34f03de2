"""8-bit artifacts of the form whose sums pass through float16 are flagged, and no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from t2t_deploy.commands import inspect_artifact
from t2t_deploy.commands._artifacts import usable_artifacts
from t2t_deploy.errors import ArtifactError
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Manifest, Workspace

from .manifests import DRAFT, store

GRAPH = dataclasses.replace(
    DRAFT,
    precision=Precision.INT8,
    target=Target.TENSORRT.value,
    weights={},
    details={"quantization": {"base": "fp16", "placement": "balanced"}},
)
ENGINE = dataclasses.replace(
    GRAPH,
    kind="engine",
    details={
        "engine": {"backend": "tensorrt-rtx", "backend_version": "1.7.1", "sm": ["86"]},
        "attestation": {"status": "passed", "bare_sums": []},
        "quantization": {"base": "fp16", "placement": "balanced"},
    },
)
OLD_GRAPH = {"quantization": {"base": "fp16", "share": 0.9}}
OLD_ENGINE = {
    "engine": {"backend": "tensorrt-rtx", "backend_version": "1.7.1", "sm": ["86"]},
    "attestation": {"status": "passed", "found": {"Int8": 0.8}},
}
EIGHT_BITS = pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])


def with_details(manifest: Manifest, details: Mapping[str, Any], **changes: Any) -> Manifest:
    return dataclasses.replace(manifest, details=details, **changes)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "artifacts")


@EIGHT_BITS
def test_a_graph_without_a_placement_is_outdated(precision: Precision) -> None:
    found = with_details(GRAPH, OLD_GRAPH, precision=precision)
    assert found.outdated is not None
    assert found.outdated.startswith("quantised in a form whose sums of codes pass through float16")
    wanted = f"t2t-deploy quantize --type {precision.value} --target tensorrt --images DIR"
    assert wanted in found.outdated and "--force" in found.outdated
    assert found.failed and found.failure == found.outdated


@EIGHT_BITS
def test_an_engine_that_was_not_looked_at_for_bare_sums_is_outdated(precision: Precision) -> None:
    found = with_details(ENGINE, OLD_ENGINE, precision=precision)
    assert found.outdated is not None
    assert found.outdated.startswith(
        f"built before it was checked whether sums of {precision.value} codes pass through float16"
    )
    assert f"t2t-deploy build-trt --{precision.value} --images DIR" in found.outdated
    assert found.failed and found.failure == found.outdated
    # one without any attestation is of such a time too
    for details in ({}, {"attestation": None}):
        assert with_details(ENGINE, details, precision=precision).outdated == found.outdated


@EIGHT_BITS
def test_new_ones_are_not(precision: Precision) -> None:
    for manifest in (GRAPH, ENGINE):
        found = dataclasses.replace(manifest, precision=precision)
        assert (found.outdated, found.failed, found.failure) == (None, False, "")


def test_bare_sums_that_were_found_fail_as_attested_and_not_as_outdated() -> None:
    attested = {"status": "failed", "reason": "1 products write bare sums", "bare_sums": ["fc"]}
    found = with_details(ENGINE, {**ENGINE.details, "attestation": attested})
    assert (found.outdated, found.failed) == (None, True)
    assert found.failure == "1 products write bare sums"


def test_what_else_failed_is_told_as_well() -> None:
    located = {"status": "failed", "reason": "blocks.0 is wrong"}
    found = with_details(GRAPH, {**OLD_GRAPH, "located": located})
    assert found.failure == f"blocks.0 is wrong; {found.outdated}"


@pytest.mark.parametrize(
    "changes",
    [
        *({"target": target.value} for target in Target if target is not Target.TENSORRT),
        {"details": {"quantization": {"base": "fp32"}}},  # its sums are float32
        {"details": {"quantization": {"mode": "dynamic"}}},
        {"details": {}},
        {"precision": Precision.FP16},
        {"precision": Precision.INT8_WEIGHTS},
        {"precision": Precision.FP8_WEIGHTS},
    ],
    ids=str,
)
def test_graphs_of_other_kinds_are_not_outdated(changes: dict[str, Any]) -> None:
    found = with_details(GRAPH, OLD_GRAPH)
    assert found.outdated is not None
    assert dataclasses.replace(found, **changes).outdated is None


@pytest.mark.parametrize(
    "precision", [one for one in Precision if one not in (Precision.INT8, Precision.FP8)]
)
def test_engines_without_products_of_codes_are_not_outdated(precision: Precision) -> None:
    found = with_details(ENGINE, OLD_ENGINE, precision=precision)
    assert (found.outdated, found.failed) == (None, False)


@pytest.mark.parametrize(
    "draft", [with_details(GRAPH, OLD_GRAPH), with_details(ENGINE, OLD_ENGINE)], ids=["graph", "en"]
)
def test_they_are_listed_and_refused_and_taken_by_force(
    workspace: Workspace, draft: Manifest
) -> None:
    old = store(workspace, draft=draft)
    new = store(workspace, b"new", GRAPH)
    assert draft.outdated is not None
    assert workspace.check().problems == (f"{old.path}: {draft.outdated}",)
    with pytest.raises(ArtifactError, match="through float16"):
        workspace.open(old.path)
    assert workspace.open(old.path, force=True) == old
    assert workspace.open(new.path) == new
    if draft.kind == "onnx":
        progress = Mock()
        options: dict[str, Any] = {"purpose": "bench", "progress": progress}
        assert usable_artifacts(workspace, (), force=False, **options) == [new]
        progress.note.assert_called_once_with(f"left out {old.path.name}: {draft.outdated}")
        assert len(usable_artifacts(workspace, (), force=True, **options)) == 2


def test_inspect_tells_of_it(workspace: Workspace) -> None:
    for draft in (with_details(ENGINE, OLD_ENGINE), ENGINE):
        artifact = store(workspace, repr(draft.outdated).encode(), draft)
        found = inspect_artifact(artifact.path, workspace=workspace)
        assert found["manifest"]["outdated"] == draft.outdated


def test_a_workspace_of_new_ones_has_no_problems(workspace: Workspace) -> None:
    cpu = with_details(GRAPH, {"quantization": {"base": "fp32"}}, target=Target.CPU.value)
    portable = dataclasses.replace(cpu, target=Target.PORTABLE.value)
    for number, draft in enumerate((GRAPH, ENGINE, cpu, portable)):
        store(workspace, bytes([number]), draft)
    assert workspace.check().problems == ()
    assert [artifact.require_manifest().failed for artifact in workspace.artifacts()] == [False] * 4
