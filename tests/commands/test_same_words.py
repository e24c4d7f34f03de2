"""The command line has nothing that the functions lack, under the same names."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest

import t2t_deploy
from t2t_deploy import Workspace, verify_artifacts
from t2t_deploy.cli._main import cli
from t2t_deploy.errors import DeployError, UsageError
from t2t_deploy.types import Precision

FUNCTIONS = {
    "export": ("export_onnx", "compare_exports"),
    "calibrate": ("calibrate_onnx",),
    "quantize": ("quantize_onnx",),
    "build-trt": ("build_engine",),
    "verify": ("verify_artifacts",),
    "evaluate": ("evaluate_artifacts",),
    "bench": ("benchmark",),
    "predict": ("predict_images", "predict_across"),
    "inspect": ("inspect_artifact", "draw_features"),
    "package": ("package_artifact",),
    "tune": ("tune",),
    "run": ("run_recipe",),
    "doctor": ("examine_machine",),
}
# commands that are no function, and where their things are
ELSEWHERE = {"variants": "VARIANTS", "workspace": "Workspace"}
# of a shell alone
SHELL = {"completion"}
# how a command talks, and how it waits: `Workspace(folder, LockPolicy(wait=False))`
TALK = {"--json", "-v", "--verbose", "-q", "--quiet", "--help", "-h", "--no-wait"}
# options whose function has another word, with the reason
OTHERWISE = {
    ("export", "--compare"): "",  # a function of its own
    ("calibrate", "--no-equalise"): "equalise",
    ("quantize", "--no-equalise"): "equalise",
    ("quantize", "--no-speed"): "speed",
    ("tune", "--for"): "goal",  # a word of Python's own
    ("predict", "-0"): "",  # of names on stdin
    ("predict", "--null"): "",
    ("run", "--example"): "",  # t2t_deploy.recipe.example_recipe
    ("run", "-o"): "",
    ("inspect", "other"): "",  # a second call; draw_features takes several
    ("doctor", "--report"): "",  # t2t_deploy.commands.bug_report of what it returns
    **{("build-trt", f"--{precision.value}"): "precision" for precision in Precision},
}
SHORT = {"-o": "output"}


def command_of(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def parameters_of(function: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(t2t_deploy, function)).parameters


def test_every_command_is_a_function() -> None:
    assert sorted({*FUNCTIONS, *ELSEWHERE, *SHELL}) == sorted(cli.list_commands(click.Context(cli)))
    assert all(hasattr(t2t_deploy, name) for name in ELSEWHERE.values())
    for command in ("artifacts", "check", "prune"):  # of `workspace`; the first is `list`
        assert callable(getattr(Workspace, command))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_an_argument(name: str) -> None:
    taken = set().union(*map(parameters_of, FUNCTIONS[name]))
    lacking = []
    for parameter in command_of(name).params:
        words = {parameter.name or ""}
        if isinstance(parameter, click.Option):
            words = set(parameter.opts) - TALK
        for word in words:
            plain = SHORT.get(word, word.lstrip("-").replace("-", "_"))
            wanted = OTHERWISE.get((name, word), plain)
            if wanted and wanted not in taken and not (name == "doctor" and wanted == "workspace"):
                lacking.append(word)
    assert lacking == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_given_by_name(name: str) -> None:
    for parameters in map(parameters_of, FUNCTIONS[name]):
        by_place = [p for p in parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        assert len(by_place) <= 2


def test_what_is_public_is_there_and_nothing_else_is() -> None:
    assert all(getattr(t2t_deploy, name) is not None for name in t2t_deploy.__all__)
    assert set(t2t_deploy.__all__) <= set(dir(t2t_deploy))
    with pytest.raises(AttributeError, match="module 't2t_deploy' has no attribute 'export_onxx'"):
        _ = t2t_deploy.export_onxx  # type: ignore[attr-defined]  # the test


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("export_onnx", {"variant": "7", "precision": "int4"}, "precision is 'int4'; expected one"),
        ("export_onnx", {"variant": "7", "target": "gpu"}, "target is 'gpu'; expected one of 'por"),
        ("export_onnx", {"variant": "7", "batch": 0}, "batch is 0; expected 'dynamic' or a whole "),
        ("export_onnx", {}, "nothing says which model to export"),
        (
            "verify_artifacts",
            {"artifacts": 5},
            "artifacts is 5; expected a path, or a list of such",
        ),
        (
            "load_session",
            {"artifact": "a.onnx", "device": "gpu"},
            "device is 'gpu'; expected 'cuda:0'",
        ),
        ("build_engine", {"profile": "1:8:32", "max_batch": 4}, "both set the batch; use one way"),
        ("evaluate_artifacts", {"images": "v", "workers": 2}, "are about a cluster; give ray"),
        ("package_artifact", {"triton": "m", "format": "zip"}, "format is 'zip'; expected one of"),
    ],
)
def test_a_wrong_argument_is_said_in_one_line(
    function: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as refused:
        getattr(t2t_deploy, function)(**options)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, DeployError) and not list(Path().iterdir())


@pytest.mark.parametrize(
    ("variable", "given", "used"),
    [
        ("elsewhere", None, "elsewhere"),
        ("", None, "artifacts"),
        ("", "mine", "mine"),
        ("", Workspace(Path("own")), "own"),
    ],
)
def test_the_workspace_is_the_command_lines(
    monkeypatch: pytest.MonkeyPatch, variable: str, given: str | Workspace | None, used: str
) -> None:
    if variable:
        monkeypatch.setenv("T2T_DEPLOY_WORKSPACE", variable)
    with pytest.raises(DeployError, match=f"workspace {used} has no artifact"):
        verify_artifacts(workspace=given)
