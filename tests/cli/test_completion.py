"""What a shell gets when somebody presses Tab."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..program import environment, finish
from .command import Run


def completed(*words: str) -> list[str]:
    """Answers of the program for the last word, as click's bash script asks for them."""
    asked = {
        "_T2T_DEPLOY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("t2t-deploy", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = finish(env=environment() | asked)
    assert (done.status, done.err) == (0, "")
    return [line.partition(",")[2] for line in done.out.splitlines()]


def test_commands_options_and_values() -> None:
    assert completed("be") == ["bench"]
    assert completed("export", "--prec") == ["--precision"]
    assert completed("export", "--precision", "") == ["fp32", "fp16", "bf16"]
    assert completed("export", "--variant", "t_") == ["t_14", "t_19", "t_24"]
    assert completed("workspace", "pr") == ["prune"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_calls_the_program_back(run: Run, shell: str, tmp_path: Path) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed: click asks for its version")
    done = run("completion", shell, status=0)
    assert f"_T2T_DEPLOY_COMPLETE={shell}_complete" in done.out
    assert json.loads(run("completion", shell, "--json").out) == {
        "shell": shell,
        "script": done.out.removesuffix("\n"),
    }
    if shutil.which(shell):
        script = tmp_path / "completion"
        script.write_text(done.out, encoding="utf-8")
        checked = subprocess.run([shell, "-n", script], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_completes(run: Run, tmp_path: Path) -> None:
    """The script in a real shell: it puts the answers where bash looks for them."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    named = tmp_path / "t2t-deploy"
    program = shlex.join((sys.executable, "-m", "t2t_deploy"))
    named.write_text(f'#!/bin/sh\nexec {program} "$@"\n', encoding="utf-8")
    named.chmod(0o755)
    lines = (
        run("completion", "bash").out,
        "COMP_WORDS=(t2t-deploy export --variant 1) COMP_CWORD=3",
        "_t2t_deploy_completion t2t-deploy",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    found = environment() | {"PATH": path}
    bash = ("bash", "-c", "\n".join(lines))
    done = subprocess.run(bash, env=found, capture_output=True, text=True)
    answers = done.stdout.split()
    assert "14" in answers and "14_wide" in answers and "7" not in answers, done.stderr
