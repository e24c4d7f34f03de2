"""What `doctor` finds; its bug report tells what is installed, and nothing of who and where."""

from __future__ import annotations

import dataclasses
import getpass
import importlib.metadata
import json
import platform
from pathlib import Path
from unittest.mock import Mock

import pytest

from t2t_deploy import _processor
from t2t_deploy._limits import Limits
from t2t_deploy.cli._machine import _about, _about_limits
from t2t_deploy.commands import _doctor, bug_report, examine_machine
from t2t_deploy.commands._doctor import without_paths


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
    monkeypatch.setattr(_processor, "_CPUINFO", info)
    found = examine_machine()["processor"]
    assert found == {"model": "Test CPU", "flags": shown, "vnni": vnni, "bf16": bf16}


def test_a_processor_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processor, "_CPUINFO", tmp_path / "none")
    found = examine_machine()["processor"]
    assert (found["flags"], found["vnni"], found["bf16"]) == (None, None, None)
    assert "cannot be read here" in "".join(_about(found))


@pytest.mark.parametrize(
    ("limits", "processors", "line"),
    [
        (Limits(8), 8, "8 cores, no quota, no memory limit; 8 threads by default"),
        (
            *(Limits(8, 0.5, 512 << 20), 1),
            "8 cores, a quota of 0.5 processors, 512 MiB of memory; 1 thread by default",
        ),
    ],
)
def test_limits_of_a_container_are_found_and_said(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, processors: int, line: str
) -> None:
    monkeypatch.setattr(_doctor, "read_limits", lambda: limits)
    found = examine_machine()["limits"]
    assert found == dataclasses.asdict(limits) | {"processors": processors}
    assert _about_limits(found) == f"limits: {line}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cannot open /home/ann/models/x.pth: gone", "cannot open <path>/x.pth: gone"),
        ("in '/opt/secret project/a.so'", "in '<path>/secret project/a.so'"),
        (r"at C:\Users\Ann\x.dll, line 3", r"at <path>/x.dll, line 3"),
        ("(/usr/lib/libcuda.so.1)", "(<path>/libcuda.so.1)"),
        ("images/s and and/or, 3 /4", "images/s and and/or, 3 /4"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("~/x/y", "~/x/y"),
        ("error:/home/ann/x", "error:<path>/x"),
    ],
)
def test_paths_keep_their_last_part(text: str, wanted: str) -> None:
    assert without_paths(text) == wanted


def test_user_and_host_are_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    monkeypatch.setattr(platform, "node", lambda: "lab-7")
    assert without_paths("ann at lab-7: an annex of lab-70") == (
        "<user> at <host>: an annex of lab-70"
    )


def test_known_places_may_have_spaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = tmp_path / "ann smith" / "secret project"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(Path, "home", lambda: here.parent)
    text = f"{here}/a.onnx, {here.parent}/.cache/b"
    assert without_paths(text) == "<cwd>/a.onnx, ~/.cache/b"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Mock(side_effect=KeyError("getpwuid(): uid not found: 1234"))
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert without_paths("nobody") == "nobody"


def test_the_report_holds_what_doctor_found_but_no_path_of_this_machine() -> None:
    found = examine_machine() | {"why_no_device": "no library in /private/place/lib.so"}
    report = bug_report(found)
    assert f"t2t-deploy {found['t2t_deploy']}, Python {found['python']}" in report
    for backend in found["backends"]:
        assert f"| {backend['name']} | {backend['version'] or '-'} |" in report
    details = json.loads(report.partition("```json\n")[2].partition("```")[0])
    assert details["versions"] == found["versions"]
    assert details["why_no_device"] == "no library in <path>/lib.so"
    assert str(Path(__file__).parents[2]) not in report
