"""The tutorial to its end: a real server answers its client."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_server import ServerProcess

from ...docs.console import Command, steps_of
from ...docs.reader import ROOT, Reader, checkout_in
from .conftest import needs_server

pytestmark = needs_server
TUTORIAL = ROOT / "docs" / "tutorial.md"
MARK = "needs-triton"


def test_the_server_answers_as_the_tutorial_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.delenv("T2T_DEPLOY_WORKSPACE", raising=False)
    steps = list(steps_of(TUTORIAL.read_text(encoding="utf-8")))
    asking = [step for step in steps if isinstance(step, Command) and MARK in step.marks]
    assert len(asking) == 1
    somebody = Reader(checkout_in(tmp_path), in_process=True, marks=frozenset({MARK}))
    somebody.take(steps[: steps.index(asking[0])], TUTORIAL)
    client = somebody.folder / "ask.py"
    with ServerProcess(somebody.folder / "models", tmp_path / "server.log") as server:
        text = client.read_text()
        assert text.count("localhost:8001") == 1
        client.write_text(text.replace("localhost:8001", server.grpc_url))
        somebody.take(asking, TUTORIAL)
    assert somebody.typed[-1] == "python ask.py"
