"""The examples in the functions' docstrings and in docs/python-api.md, run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import t2t_deploy

from ..needs import needs_tensorrt_rtx
from ..noise import write_noise
from ..small import TINY_FOR_8_BITS

GUIDE = Path(__file__).parents[2] / "docs" / "python-api.md"
SLOW = {"benchmark", "build_engine", "calibrate_onnx", "quantize_onnx", "run_recipe", "tune"}
ORDER = (
    *("export_onnx", "compare_exports", "calibrate_onnx", "quantize_onnx", "build_engine"),
    *("package_artifact", "run_recipe", "load_session", "verify_artifacts"),
    *("evaluate_artifacts", "benchmark", "predict_images", "predict_across"),
    *("inspect_artifact", "draw_features", "examine_machine", "tune"),
)
WITHOUT = {"compare_exports", "predict_across"}  # minutes, and a cluster: shown in no example
RECIPE = """\
[model]
config = "tiny.toml"

[export]
name = "float"

[quantize]
mode = "dynamic"
no-speed = true
"""


@pytest.fixture
def folder(empty_folder: Path) -> None:
    """What the examples find in the folder they run in."""
    for name, count in {"train": 12, "val": 4}.items():
        write_noise(*(empty_folder / name / f"{index}.png" for index in range(count)))
    (empty_folder / "tiny.toml").write_text(TINY_FOR_8_BITS)
    (empty_folder / "recipe.toml").write_text(RECIPE)


def examples() -> list[doctest.DocTest]:
    """In the order in which they go on from each other, a function each."""
    finder = doctest.DocTestFinder(exclude_empty=False)
    return [
        test
        for name in ORDER
        for test in finder.find(getattr(t2t_deploy, name), name, module=False, globs={})
    ]


def name_of(test: doctest.DocTest) -> str:
    return test.name.rpartition(".")[2]


def run(tests: list[doctest.DocTest], capsys: pytest.CaptureFixture[str]) -> None:
    """Run examples one after another; each goes on with the names of those before."""
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    names: dict[str, object] = {}
    for test in tests:
        test.globs = names
        runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_every_function_has_an_example() -> None:
    without = {name_of(test) for test in examples() if not test.examples}
    assert without == WITHOUT


def test_the_examples_do_what_they_say(folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    run([test for test in examples() if name_of(test) not in SLOW], capsys)


@pytest.mark.slow
@needs_tensorrt_rtx
def test_all_examples_in_order(folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    run(examples(), capsys)


@pytest.mark.slow
@needs_tensorrt_rtx
def test_the_guide_does_what_it_says(folder: None) -> None:
    result = doctest.testfile(str(GUIDE), module_relative=False, optionflags=doctest.REPORT_NDIFF)
    assert result.attempted > 10 and result.failed == 0
