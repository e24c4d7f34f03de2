"""A bug report tells what is installed, and nothing of who and where."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest

from t2t_deploy.commands import bug_report, examine_machine
from t2t_deploy.commands._doctor import without_paths


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cannot open /home/ann/models/x.pth: gone", "cannot open <path>/x.pth: gone"),
        (
            "in '/opt/secret project/a.so'",
            "in '/opt/secret project/a.so'".replace("/opt/secret", "<path>/secret"),
        ),
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
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

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
