from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.model import random_state_dict

from .tiny import CONFIG, StateDict


@pytest.fixture(autouse=True)
def _in_an_empty_folder(empty_folder: Path) -> None:
    """Every test starts in one."""


@pytest.fixture(scope="session")
def weights() -> StateDict:
    return random_state_dict(CONFIG)
