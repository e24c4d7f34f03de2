"""A reader in a fresh folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .reader import Reader, checkout_in


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reader]:
    """A reader in a folder that looks like a checkout, or in an empty one beside it."""
    monkeypatch.delenv("T2T_DEPLOY_WORKSPACE", raising=False)
    checkout = checkout_in(tmp_path)

    def make(
        *, in_process: bool, marks: frozenset[str] = frozenset(), beside: bool = False
    ) -> Reader:
        folder = tmp_path / "work" if beside else checkout
        folder.mkdir(exist_ok=True)
        return Reader(folder, in_process, marks)

    return make
