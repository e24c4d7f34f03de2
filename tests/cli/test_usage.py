"""Help, wrong usage, and how errors look to people and to scripts."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from t2t_deploy import __version__
from t2t_deploy.cli import _machine
from t2t_deploy.errors import ArtifactError

from ..program import PIPES, finish, start
from .command import Run

Fail = Callable[[Exception], None]

COMMANDS = [
    *("variants", "export", "calibrate", "quantize", "build-trt", "verify", "evaluate", "bench"),
    *("predict", "inspect", "package", "tune", "run"),
    *("workspace", "doctor", "completion"),
]


SMALLEST = ["export", "--variant", "7"]


def test_help_lists_the_commands_in_the_order_of_the_work(run: Run) -> None:
    done = run("--help", status=0)
    assert done.err == ""
    listed = done.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS


def test_version(run: Run) -> None:
    assert run("--version", status=0).out == (f"t2t-deploy, version {__version__}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command. Try 't2t-deploy --help'."),
        (["workspace"], "Missing command. Try 't2t-deploy workspace --help'."),
        (["nosuch"], "No such command 'nosuch'. Try 't2t-deploy --help'."),
        (["export", "--nosuch"], "No such option"),
        (["export", "--precision", "int4"], "'int4' is not one of"),
        (["export", "--batch", "0"], "'0'; expected 'dynamic' or a whole number from 1"),
        (["export", "--batch", "some"], "'some'; expected 'dynamic'"),
        (["export", "--num-classes", "0"], "0 is not in the range"),
        (["export"], "nothing says which model to export; give a variant, such as 14"),
        (["export", "--variant", "7", "--config", "x.toml"], "variant and config both"),
        (["export", "--variant", "7", "-o", "."], "is a directory"),
        (["build-trt", "--fp16", "--fp32"], "--fp16 and --fp32 were given together"),
        (["build-trt", "--fp32", "--fp16", "--bf16"], "an engine has one precision: choose one"),
        (["build-trt", "--profile", "1:8"], "batch profile is '1:8'; expected MIN:OPT:MAX"),
        (["build-trt", "--profile", "8:4:32"], "batch profile is 8:4:32; expected 1 <= min"),
        (["build-trt", "--min-batch", "4", "--max-batch", "2"], "batch profile is 4:4:2"),
        (["build-trt", "--profile", "1:1:1", "--max-batch", "2"], "both set the batch"),
        (["bench", "--batch", "1,x"], "'1,x'; expected a whole number from 1, or a list"),
        (["bench", "--threads", "0"], "0 is not in the range"),
        (["inspect"], "Missing argument 'ARTIFACT'"),
        (
            [*SMALLEST, "--soft-split", "fold"],
            "'fold' is no soft-split form; expected one of: aut",
        ),
        ([*SMALLEST, "--soft-split", "conv,conv"], "2 soft-split forms given: conv,conv; expected"),
        (
            [*SMALLEST, "--performer", "fast"],
            "'fast' is no performer form; expected one of: auto,",
        ),
        ([*SMALLEST, "--opset", "9"], "opset is 9; expected a whole number from 17 to 23"),
    ],
)
def test_wrong_usage(run: Run, words: list[str], message: str) -> None:
    done = run(*words, status=2)
    assert done.out == ""
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert message in done.err
    assert list(Path().iterdir()) == []
    if message.startswith("Missing command"):
        return  # groups take no --json
    assert message in run.fails("UsageError", *words, status=2)


def test_a_workspace_that_is_a_file(run: Run) -> None:
    Path("artifacts").write_text("no folder")
    assert "Directory 'artifacts' is a file" in run("workspace", "list", status=2).err


def test_an_error_for_people_and_for_scripts(run: Run) -> None:
    message = "workspace artifacts has no suitable onnx artifact; make one first: t2t-deploy export"
    done = run("build-trt", "--fp16", status=1)
    assert (done.out, done.err) == ("", f"error: {message}\n")
    done = run("build-trt", "--fp16", "--json", status=1)
    assert done.err == f"error: {message}\n"
    assert done.json == {"error": {"kind": "ArtifactError", "message": message}}


def test_a_bug_shows_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Mock(side_effect=ZeroDivisionError("a bug"))
    monkeypatch.setattr("t2t_deploy.commands.examine_machine", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("doctor")


def test_status_and_streams_of_a_process(tmp_path: Path) -> None:
    done = finish("bench", "--json")
    assert done.status == 1
    assert done.json["error"]["kind"] == "ArtifactError"
    assert done.err == (
        "error: workspace artifacts has nothing to bench; make an artifact first: "
        "t2t-deploy export --variant 14\n"
    )
    assert list(tmp_path.iterdir()) == []


# -- errors that no code of ours expected --------------------------------------------------------


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Have a command raise an error in the middle of its work."""
    return lambda err: monkeypatch.setattr(_machine.variants, "callback", Mock(side_effect=err))


@pytest.mark.parametrize(
    ("err", "message"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "a/b.txt"),
            "Read-only file system (a/b.txt); see to it and run the command again",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            "Input/output error; see to it and run the command again",
        ),
    ],
)
def test_a_machine_error_is_one_line(run: Run, fail: Fail, err: Exception, message: str) -> None:
    fail(err)
    done = run("variants", "--json", status=1)
    assert done.err == f"error: {message}\n"
    assert done.json == {"error": {"kind": "MachineError", "message": message}}


def test_an_error_that_the_system_did_not_give_is_a_bug(run: Run, fail: Fail) -> None:
    fail(OSError("odd"))
    with pytest.raises(OSError, match=r"^odd$"):
        run("variants")


def test_too_little_memory_is_one_line_whatever_raised_it(run: Run, fail: Fail) -> None:
    refused = ArtifactError("ONNX Runtime refuses it; export the model again")
    refused.__cause__ = MemoryError()
    for err in (refused, MemoryError()):
        fail(err)
        done = run("variants", "--json", status=1)
        assert done.json["error"]["kind"] == "MemoryShortError"
        assert done.err == f"error: {done.json['error']['message']}\n"
        assert done.err.startswith("error: out of memory in 'variants'")


def test_a_reader_that_went_away_is_not_told() -> None:
    """As of `t2t-deploy variants | head`."""
    with start("variants", "--json", stdin=subprocess.DEVNULL, **PIPES) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(120) == 1
        assert process.stderr.read() == ""
