"""A copy of the source: a build leaves folders behind where it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED_AT = 1_700_000_000  # as `make dist` sets it: the time of the commit


def run(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where this checkout cannot be imported."""
    left_out = ("PYTHONPATH", "T2T_DEPLOY_WORKSPACE", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=kept | {"SOURCE_DATE_EPOCH": str(COMMITTED_AT)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def build_wheel(source: Path, out: Path, *more: str) -> Path:
    """Build the wheel, and more, from the source tree, as `pip install .` does it."""
    options = ("--no-isolation", "--wheel", *more, "--outdir", out)
    done = run(sys.executable, "-m", "build", *options, source, folder=source)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


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
