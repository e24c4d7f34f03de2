"""Commands that compute with PyTorch, in forks of a process that did too; see `forked.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from natural import TEST, natural_crops, write_calibration_crops

from ..program import finish
from ..small import TINY_FOR_8_BITS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are safe on Linux alone")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's description, and pictures."""
    (tmp_path / "tiny.toml").write_text(TINY_FOR_8_BITS)
    write_calibration_crops(tmp_path / "train", 8)
    (tmp_path / "val").mkdir()
    for picture in natural_crops(1, 0, TEST):
        picture.save(tmp_path / "val" / "0.png")
    return tmp_path


def forked(folder: Path, *commands: str) -> dict[str, Any]:
    """What forks answer, by command."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.commands.forked import main"
    done = finish(*commands, code=f"{code}; main()", cwd=folder, status=0)
    return dict(done.json)


def test_export_and_verify_work_in_forks(folder: Path) -> None:
    found = forked(folder, "export", "verify")
    assert found == {"export": True, "verify": True}


@pytest.mark.slow
def test_all_that_computes_with_pytorch_works_in_forks(folder: Path) -> None:
    found = forked(
        folder, "calibrate", "quantize", "evaluate", "inspect", "nodewise", "locate", "export"
    )
    assert found["export"] is found["nodewise"] is found["locate"] is True
    assert found["quantize"] == "int8"
    for name in ("calibrate", "evaluate", "inspect"):
        assert isinstance(found[name], int) and found[name] > 0, name
