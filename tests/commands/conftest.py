from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from t2t_deploy.workspace import Workspace

from ..trained import export_weights, trained_weights, write_digits


@pytest.fixture(autouse=True)
def _in_an_empty_folder(empty_folder: Path) -> None:
    """Every test starts in one, `./artifacts` being its workspace."""


@pytest.fixture(scope="session")
def digit_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`calibration` and `test`, pictures in class folders that no test changes."""
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = Workspace(tmp_path_factory.mktemp("performer") / "artifacts")
    export_weights(workspace, "performer", trained_weights("performer"))
    return workspace.root


@pytest.fixture
def digits_workspace(digits_once: Path, empty_folder: Path) -> None:
    """`./artifacts` with the performer that was trained on them, to be changed at will."""
    shutil.copytree(digits_once, empty_folder / "artifacts")
