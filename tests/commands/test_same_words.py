"""The command line has nothing that the functions lack, under the same names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import t2t_deploy
from t2t_deploy import (
    Workspace,
    benchmark,
    build_engine,
    calibrate_onnx,
    compare_exports,
    draw_features,
    evaluate_artifacts,
    examine_machine,
    export_onnx,
    inspect_artifact,
    load_session,
    package_artifact,
    predict_across,
    predict_images,
    quantize_onnx,
    run_recipe,
    verify_artifacts,
)
from t2t_deploy.cli._main import cli
from t2t_deploy.errors import DeployError, UsageError
from t2t_deploy.types import Precision

FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "export": (export_onnx, compare_exports),
    "calibrate": (calibrate_onnx,),
    "quantize": (quantize_onnx,),
    "build-trt": (build_engine,),
    "verify": (verify_artifacts,),
    "evaluate": (evaluate_artifacts,),
    "bench": (benchmark,),
    "predict": (predict_images, predict_across),
    "inspect": (inspect_artifact, draw_features),
    "package": (package_artifact,),
    "run": (run_recipe,),
    "doctor": (examine_machine,),
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


def test_every_command_is_a_function() -> None:
    assert sorted({*FUNCTIONS, *ELSEWHERE, *SHELL}) == sorted(cli.list_commands(click.Context(cli)))
    assert all(hasattr(t2t_deploy, name) for name in ELSEWHERE.values())
    for command in ("artifacts", "check", "prune"):  # of `workspace`; the first is `list`
        assert callable(getattr(Workspace, command))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_option_is_an_argument(name: str) -> None:
    taken = {
        word for function in FUNCTIONS[name] for word in inspect.signature(function).parameters
    }
    lacking = []
    for parameter in command_of(name).params:
        if not isinstance(parameter, click.Option):
            words = {parameter.name or ""}
        else:
            words = set(parameter.opts) - TALK
        for word in words:
            plain = SHORT.get(word, word.lstrip("-").replace("-", "_"))
            wanted = OTHERWISE.get((name, word), plain)
            if wanted and wanted not in taken and not (name == "doctor" and wanted == "workspace"):
                lacking.append(word)
    assert lacking == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_given_by_name(name: str) -> None:
    for function in FUNCTIONS[name]:
        kinds = [one.kind for one in inspect.signature(function).parameters.values()]
        by_place = [kind for kind in kinds if kind is not inspect.Parameter.KEYWORD_ONLY]
        assert len(by_place) <= 2


def test_what_is_public_is_there_and_nothing_else_is() -> None:
    assert all(getattr(t2t_deploy, name) is not None for name in t2t_deploy.__all__)
    assert set(t2t_deploy.__all__) <= set(dir(t2t_deploy))
    with pytest.raises(AttributeError, match="module 't2t_deploy' has no attribute 'export_onxx'"):
        _ = t2t_deploy.export_onxx  # type: ignore[attr-defined]  # the test


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: export_onnx(variant="7", precision="int4"),
            "precision is 'int4'; expected one of",
        ),
        (lambda: export_onnx(variant="7", target="gpu"), "target is 'gpu'; expected one of 'port"),
        (
            lambda: export_onnx(variant="7", batch=0),
            "batch is 0; expected 'dynamic' or a whole number",
        ),
        (lambda: export_onnx(), "nothing says which model to export"),
        (
            lambda: verify_artifacts("a.onnx"),
            "artifacts is 'a.onnx'; expected a list of paths: write it in",
        ),
        (
            lambda: load_session("a.onnx", device="gpu"),
            "device is 'gpu'; expected 'cuda:0', 'cuda:1'",
        ),
        (lambda: build_engine(profile="1:8:32", max_batch=4), "both set the batch; use one way"),
        (
            lambda: evaluate_artifacts(images="v", workers=2),
            "workers are about a cluster; give ray",
        ),
        (lambda: package_artifact(triton="m", format="zip"), "format is 'zip'; expected one of"),
    ],
)
def test_a_wrong_argument_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        call()
    assert message in str(refused.value)
    assert isinstance(refused.value, DeployError) and not list(tmp_path.iterdir())


def test_the_workspace_is_the_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2T_DEPLOY_WORKSPACE", "elsewhere")
    with pytest.raises(DeployError, match="workspace elsewhere has no artifact"):
        verify_artifacts()
    monkeypatch.delenv("T2T_DEPLOY_WORKSPACE")
    with pytest.raises(DeployError, match="workspace artifacts has no artifact"):
        verify_artifacts()
    with pytest.raises(DeployError, match="workspace mine has no artifact"):
        verify_artifacts(workspace="mine")
    with pytest.raises(DeployError, match="workspace own has no artifact"):
        verify_artifacts(workspace=Workspace(Path("own")))
