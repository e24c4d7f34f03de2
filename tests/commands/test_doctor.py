"""Which wheels fill the onnxruntime folder."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from t2t_deploy.bench import _environment
from t2t_deploy.cli._machine import _about
from t2t_deploy.commands import _doctor, examine_machine


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


@pytest.mark.parametrize(
    ("flags", "shown", "vnni", "bf16"),
    [
        ("fpu avx2 fma avx512_vnni_extra", ("avx2",), False, False),
        ("avx2 avx_vnni", ("avx2", "avx_vnni"), True, False),
        ("avx512_vnni avx512_bf16", ("avx512_bf16", "avx512_vnni"), True, True),
        ("avx512_bf16", ("avx512_bf16",), False, True),
        ("fpu", (), False, False),
    ],
)
def test_what_the_processor_multiplies(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    shown: tuple[str, ...],
    vnni: bool,
    bf16: bool,
) -> None:
    info = tmp_path / "cpuinfo"
    first = f"processor\t: 0\nmodel name\t: Test CPU\nflags\t\t: {flags}\n"
    info.write_text(f"{first}\nprocessor\t: 1\nflags\t\t: avx_vnni avx512_bf16\n")
    monkeypatch.setattr(_environment, "_CPUINFO", info)
    found = examine_machine()["processor"]
    assert found == {"model": "Test CPU", "flags": shown, "vnni": vnni, "bf16": bf16}


def test_a_processor_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_environment, "_CPUINFO", tmp_path / "none")
    found = examine_machine()["processor"]
    assert (found["flags"], found["vnni"], found["bf16"]) == (None, None, None)
    assert "cannot be read here" in "".join(_about(found))
