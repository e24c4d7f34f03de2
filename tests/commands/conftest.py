from __future__ import annotations

from pathlib import Path

import pytest

from ..trained import write_digits


@pytest.fixture(scope="session")
def digit_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`calibration` and `test`, pictures in class folders that no test changes."""
    return write_digits(tmp_path_factory.mktemp("digits"))
