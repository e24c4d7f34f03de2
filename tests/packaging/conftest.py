"""A copy of the source: a build leaves folders behind where it runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a distribution is built from, with the links at the top."""
    folder = tmp_path_factory.mktemp("source")
    for entry in sorted(ROOT.iterdir()):
        if entry.is_symlink():
            (folder / entry.name).symlink_to(entry.readlink())
        elif entry.is_file():
            shutil.copy2(entry, folder)
    for name in ("t2t_deploy", "tests", "docs/man"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
