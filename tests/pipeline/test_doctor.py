"""Which wheels fill the onnxruntime folder."""

from __future__ import annotations

import importlib.metadata

import pytest

from t2t_deploy.pipeline import _doctor, examine_machine


@pytest.mark.parametrize(
    ("installed", "importable", "problem"),
    [
        (["onnxruntime"], True, None),
        (["onnxruntime-gpu"], True, None),
        ([], False, "neither is installed: pip install 't2t-deploy[cpu]' or [gpu]"),
        (["onnxruntime", "onnxruntime-gpu"], True, "both are installed and overwrite each other's"),
        (["onnxruntime"], False, "onnxruntime is registered but its files are gone: reinstall it"),
    ],
)
def test_exactly_one_onnxruntime(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], importable: bool, problem: str | None
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if not name.startswith("onnxruntime"):
            return known(name)
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(_doctor, "is_installed", lambda module: importable)
    found = examine_machine()["onnxruntime"]
    assert found["installed"] == installed
    assert found["problem"] == problem or found["problem"].startswith(problem)
