"""t2t-deploy run: what it prints, how it exits, how it goes on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.engine import Unavailable
from t2t_deploy.recipe import example_recipe

from ..noise import write_noise
from ..program import start
from ..small import TINY_FOR_8_BITS
from .command import Run

EXPORT = '[model]\nconfig = "tiny.toml"\n\n[export]\nname = "float"\n'
PACKAGE = '\n[package]\ntriton = "models"\n'


@pytest.fixture
def recipe(empty_folder: Path, tiny_toml: Path) -> Path:
    """An export and a model repository, of the tiny model, in a folder of their own."""
    folder = empty_folder / "a folder é"
    folder.mkdir()
    (folder / "tiny.toml").write_text(tiny_toml.read_text())
    path = folder / "recipe.toml"
    path.write_text(EXPORT + PACKAGE)
    return path


def statuses(values: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["status"] for step in values["steps"]}


def test_it_prints_each_step_and_each_commands_own_json(run: Run, recipe: Path) -> None:
    first = run("run", recipe, "--json", status=0)
    assert statuses(first.json) == {"export float": "done", "package float": "done"}
    assert first.json["exit_status"] == 0 and first.json["workspace"] == "artifacts"
    assert "[1/2] export float: not done before ..." in first.err
    export, package = (step["result"] for step in first.json["steps"])
    assert export["verification"]["status"] == "passed"
    assert package["model"]["name"] == "t2t_vit_tiny_fp32"
    assert Path(package["repository"]) == recipe.parent / "models"
    own = run.json("package", export["artifact"]["path"], "--triton", recipe.parent / "models")
    assert {**package, "notes": []} == {**own, "notes": []}

    again = run("run", recipe, status=0)
    assert again.err.count("skipped: nothing it depends on changed") == 2
    assert again.out.count("skipped") == 2 and again.out.count("nothing it depends on changed") == 2


def test_a_step_that_fails_stops_what_needs_it_alone(run: Run, recipe: Path) -> None:
    more = '[[export]]\nname = "bad"\noutput = "tiny.toml/a.onnx"\n\n[[export]]\nname = "float"\n'
    package = '[[package]]\nfrom = "{0}"\nname = "{0}"\ntriton = "m"\n'
    packages = [package.format(name) for name in ("bad", "float")]
    recipe.write_text('[model]\nconfig = "tiny.toml"\n\n' + more + "".join(packages))
    done = run("run", recipe, "--json", status=1)
    assert statuses(done.json) == {
        "export bad": "failed",
        "export float": "done",
        "package bad": "not_run",
        "package float-2": "done",
    }
    bad, _, unmade, _ = done.json["steps"]
    assert "tiny.toml" in bad["reason"] and bad["exit_status"] == 1 and bad["result"] is None
    assert unmade["reason"] == "it needs export bad, which failed"
    assert done.err.splitlines()[-1].startswith("error: failed: export bad (")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('checkpoint = "none.pth"\n', "checkpoint: cannot read "),
        ("[expected]\nclasses = 11\n", "the recipe expects 11: use the file"),
    ],
)
def test_a_wrong_model_stops_everything(run: Run, recipe: Path, change: str, reason: str) -> None:
    recipe.write_text(recipe.read_text().replace('"tiny.toml"\n', f'"tiny.toml"\n{change}'))
    done = run.json("run", recipe, status=1)
    assert reason in done["steps"][0]["reason"]
    assert set(statuses(done).values()) <= {"failed", "not_run"}
    assert not Path("artifacts").exists() and not (recipe.parent / "models").exists()


@pytest.mark.parametrize(("top1", "within"), [(99.0, 0.5), (50.0, 50.0)])
def test_an_accuracy_that_is_not_compared_fails(
    run: Run, recipe: Path, top1: float, within: float
) -> None:
    """The pictures have three class folders, the model another number of classes."""
    write_noise(*(recipe.parent / "val" / name / "0.png" for name in "abc"))
    expected = f"[expected]\ntop1 = {top1}\ntop1-within = {within}\n"
    recipe.write_text(EXPORT + expected + '[evaluate]\nimages = "val"\n')
    done = run("run", recipe, "--json", status=1)
    assert statuses(done.json)["evaluate"] == "failed"
    reason = done.json["steps"][-1]["reason"]
    assert reason.startswith(
        f"top1 {top1:g} is expected and not compared: nothing here can be eval"
    )
    assert "has 3 class folders" in reason
    recipe.write_text(EXPORT + '[evaluate]\nimages = "val"\n')
    done = run("run", recipe, "--json", status=1)
    assert done.json["steps"][-1]["reason"].startswith("nothing here can be evaluated: ")


@pytest.mark.parametrize("expected", [False, True])
def test_a_lack_of_tools_is_not_run_unless_something_is_expected(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch, expected: bool
) -> None:
    write_noise(*(recipe.parent / "val" / name / "0.png" for name in "0123456789"))
    recipe.write_text(
        EXPORT
        + ("[expected]\ntop1 = 50\ntop1-within = 50\n" if expected else "")
        + '[evaluate]\nimages = "val"\nconfusion = "c.png"\n[bench]\nbackend = "ort-cuda"\n'
    )
    monkeypatch.setattr("t2t_deploy._optional._SPELLINGS", {"matplotlib": ("absent_matplotlib",)})
    monkeypatch.setattr(
        "t2t_deploy.runtime._session.why_no_device", lambda device=0: Unavailable("no GPU", "buy")
    )
    done = run("run", recipe, "--json", status=1 if expected else 0)
    assert statuses(done.json) | {"model": ""} == {
        "model": "",
        "export float": "done",
        "evaluate": "failed" if expected else "not_run",
        "bench": "not_run",
    }
    evaluate, bench = done.json["steps"][-2:]
    assert "matplotlib" in evaluate["reason"] and "no GPU" in bench["reason"]


def test_a_bench_that_measures_nothing_fails(run: Run, recipe: Path) -> None:
    """The page is made of what was measured, so it is not run."""
    recipe.write_text(
        EXPORT + 'target = "tensorrt"\n[bench]\nbackend = "ort-cpu"\nreport = "r.html"\n'
    )
    done = run("run", recipe, "--json", status=1)
    assert statuses(done.json) == {
        "export float": "done",
        "bench": "failed",
        "report": "not_run",
    }
    assert "made for TensorRT" in done.json["steps"][1]["reason"]


def test_engines_without_a_builder(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "t2t_deploy._optional._SPELLINGS", {"tensorrt_rtx": ("tensorrt_rtx_that_is_absent",)}
    )
    build = '\n[build-trt]\nname = "engine"\nprecision = "fp16"\n'
    recipe.write_text(EXPORT + build + '\n[[package]]\nfrom = "engine"\ntriton = "models"\n')
    done = run("run", recipe, "--json", status=0)
    assert statuses(done.json) == {
        "export float": "done",
        "build-trt engine": "not_run",
        "package engine": "not_run",
    }
    _, engine, package = done.json["steps"]
    assert engine["reason"].startswith("tensorrt_rtx is not installed")
    assert package["reason"] == "it needs build-trt engine, which was not run"
    assert "note: [2/3] build-trt engine: not run: tensorrt_rtx is not installed" in done.err


def test_workspace_of_a_recipe(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.write_text('workspace = "own"\n' + EXPORT)
    assert run("run", recipe).status == 0
    assert [path.name for path in recipe.parent.iterdir() if path.is_dir()] == ["own"]
    shutil.copytree(recipe.parent / "own", "named")
    named = run.json("run", recipe, "--workspace", "named")
    assert named["workspace"] == "named" and statuses(named) == {"export float": "skipped"}
    monkeypatch.setenv("T2T_DEPLOY_WORKSPACE", "named")
    told = run.json("run", recipe)
    assert told["workspace"] == "named" and statuses(told) == {"export float": "skipped"}


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, "no recipe was named; expected RECIPE.toml, or --example to write one"),
        (("x.toml", "--example"), 2, "--example writes a recipe and follows none"),
        (("x.toml", "-o", "y"), 2, "-o is for --example"),
        (("x.toml",), 1, "cannot read x.toml: No such file or directory"),
    ],
)
def test_wrong_use(run: Run, words: tuple[str, ...], status: int, message: str) -> None:
    done = run("run", *words, status=status)
    assert f"error: {message}" in done.err and done.out == ""


def test_an_unknown_key_names_the_nearest(run: Run, empty_folder: Path) -> None:
    Path("r.toml").write_text('[model]\nvarient = "7"\n')
    assert run.fails("RecipeError", "run", "r.toml") == (
        "r.toml: [model] has the unknown key 'varient'; did you mean 'variant'?"
    )


def test_the_example_is_printed_or_written(run: Run, empty_folder: Path) -> None:
    assert run("run", "--example").out == example_recipe()
    assert run("run", "--example", "-o", "new/r.toml", status=0).out == "written: new/r.toml\n"
    assert Path("new/r.toml").read_text() == example_recipe()
    assert "is there already" in run("run", "--example", "-o", "new/r.toml", status=1).err
    assert run.json("run", "--example")["text"] == example_recipe()


def kill_at(recipe: Path, line: str, number: int) -> int:
    """Follow the recipe in a process that gets a signal when it says this."""
    with start("run", recipe, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for told in process.stderr:
            if line in told:
                os.kill(process.pid, number)
                break
        process.stderr.read()
        return process.wait(60)


@pytest.mark.slow
def test_a_killed_run_goes_on(run: Run, recipe: Path) -> None:
    left = kill_at(recipe, "[2/2] package", signal.SIGKILL)
    assert left in (-signal.SIGKILL, 0)
    assert statuses(run.json("run", recipe, status=0))["export float"] == "skipped"
    assert run("workspace", "check").status == 0


WHOLE = """\
[model]
config = "tiny.toml"

[export]
name = "float"

[calibrate]
images = "train"

[quantize]
name = "int8"
no-speed = true

[verify]
nodewise = true

[evaluate]
images = "val"

[bench]
backend = "ort-cpu"
rounds = 5
report = "report.html"
csv = "bench.csv"

[package]
from = "float"
triton = "models"
"""
STEPS = [
    *("export float", "calibrate int8", "quantize int8", "verify", "evaluate", "bench", "report"),
    "package float",
]


@pytest.fixture
def whole(recipe: Path) -> Path:
    recipe.write_text(WHOLE)
    (recipe.parent / "tiny.toml").write_text(TINY_FOR_8_BITS)
    for seed, (name, count) in enumerate((("train", 12), ("val", 4))):
        write_noise(*(recipe.parent / name / f"{index}.png" for index in range(count)), seed=seed)
    return recipe


@pytest.mark.slow
def test_the_whole_way_and_only_the_page_again(run: Run, whole: Path) -> None:
    first = run("run", whole, "--json", status=0)
    assert statuses(first.json) == dict.fromkeys(STEPS, "done"), first.err
    page, table = whole.parent / "report.html", whole.parent / "bench.csv"
    before = page.read_bytes()
    assert b"<html" in before and table.read_text().startswith("backend,")
    assert statuses(run.json("run", whole)) == dict.fromkeys(STEPS, "skipped")
    page.unlink()
    third = run.json("run", whole)
    assert statuses(third) == dict.fromkeys(STEPS, "skipped") | {"report": "done"}
    assert page.read_bytes() == before
    measured = [step["result"] for step in third["steps"] if step["step"] == "bench"]
    assert measured == [step["result"] for step in first.json["steps"] if step["step"] == "bench"]


@pytest.mark.slow
def test_a_check_that_falls_short_exits_3(run: Run, whole: Path, tiny_toml: Path) -> None:
    """Static INT8 of a model this narrow is further off than is allowed."""
    text = whole.read_text()
    text = text[: text.index("[verify]")] + text[text.index("[evaluate]") : text.index("[bench]")]
    whole.write_text(text + '[package]\nfrom = "int8"\ntriton = "models"\n')
    narrow = tiny_toml.read_text().replace("_dim = 16", "_dim = 8")
    assert narrow.count("_dim = 8") == 2
    (whole.parent / "tiny.toml").write_text(narrow)
    done = run.json("run", whole, status=3)
    assert statuses(done) == {
        "export float": "done",
        "calibrate int8": "done",
        "quantize int8": "failed",
        "evaluate": "done",
        "package int8": "not_run",
    }
    _, _, quantized, evaluated, _ = done["steps"]
    assert quantized["exit_status"] == 3
    assert quantized["result"]["verification"]["status"] == "failed"
    assert evaluated["reason"] == "not done before; left out int8 (quantize int8 failed)"
    assert len(evaluated["result"]["results"]) == 1
    again = run.json("run", whole, status=3)
    assert statuses(again)["quantize int8"] == "failed"
    assert statuses(again)["evaluate"] == "skipped"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_killed_in_every_step_in_turn_ends_like_one_that_was_not(
    run: Run, whole: Path, number: signal.Signals
) -> None:
    wanted = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    for position, step in enumerate(STEPS, start=1):
        line = f"[{position}/{len(STEPS)}] {step}: "
        left = kill_at(whole, line, number)
        assert left in (wanted, 0), step  # the last steps may have been done by then
        assert run("workspace", "check").status == 0
    last = run.json("run", whole, status=0)
    # each kill came after the step before it was kept
    assert list(statuses(last).values())[:6] == ["skipped"] * 6
    assert statuses(run.json("run", whole)) == dict.fromkeys(STEPS, "skipped")
    assert list(Path("artifacts").rglob(".t2t-tmp-*")) == [] or number is signal.SIGKILL


@pytest.mark.slow
@pytest.mark.usefixtures("tensorrt_rtx")
def test_the_example_runs_whole(run: Run, empty_folder: Path) -> None:
    assert run("run", "--example", "-o", "recipe.toml").status == 0
    done = run.json("run", "recipe.toml", status=0)
    assert statuses(done) == dict.fromkeys(
        [
            *("export float", "export gpu", "quantize int8", "build-trt engine", "verify"),
            *("bench", "report", "package int8"),
        ],
        "done",
    )
    assert Path("report.html").is_file() and Path("bench.csv").is_file()
    assert json.loads(run("run", "recipe.toml", "--json").out)["exit_status"] == 0
