"""A tiny model in its forms, exported once, and packages of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from triton_server import why_no_server

from t2t_deploy.commands import Package, package_artifact
from t2t_deploy.workspace import Artifact, Workspace

from ...small import tiny_exports

SKIPPED = why_no_server()
needs_server = pytest.mark.skipif(SKIPPED is not None, reason=str(SKIPPED))


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("serving")
    return tiny_exports(folder, *({"batch": batch} for batch in (None, 4, 1))).root


@pytest.fixture
def workspace(exported_once: Path, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(exported_once, tmp_path / "artifacts")))


def by_batch(workspace: Workspace) -> dict[int | None, Artifact]:
    """The tiny model by its batch; None is a free one."""
    return {a.require_manifest().batch: a for a in workspace.artifacts("onnx")}


@pytest.fixture
def artifact(workspace: Workspace) -> Callable[[int | None], Artifact]:
    return by_batch(workspace).__getitem__


@pytest.fixture
def package(
    workspace: Workspace, tmp_path: Path, artifact: Callable[[int | None], Artifact]
) -> Callable[..., Package]:
    """Package the tiny model of a free batch, or another artifact, into ``tmp_path/models``."""

    def make(**options: Any) -> Package:
        options.setdefault("artifact", artifact(None).path)
        made = package_artifact(triton=tmp_path / "models", **options, workspace=workspace)
        assert isinstance(made, Package)
        return made

    return make


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("".join(f"class {index}\n" for index in range(10)))
    return path
