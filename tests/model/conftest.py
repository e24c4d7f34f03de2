from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy.model import random_state_dict

from .tiny import CONFIG, StateDict


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def weights() -> StateDict:
    return random_state_dict(CONFIG)
