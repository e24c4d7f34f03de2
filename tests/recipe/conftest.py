"""A tiny recipe, followed once; tests change one thing each and follow it again."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from t2t_deploy.errors import RecipeError
from t2t_deploy.recipe import RecipeRun, follow_recipe, load_recipe
from t2t_deploy.workspace import Workspace

from ..noise import write_noise
from ..small import TINY_FOR_8_BITS

RECIPE = """\
workspace = "artifacts"

[model]
config = "tiny.toml"

[[export]]
name = "float"
batch = "dynamic"

[calibrate]
images = "train"

[[quantize]]
name = "int8"
no-speed = true

[evaluate]
images = "val"

[[package]]
from = "int8"

triton = "models"
"""
STEPS = ("export float", "calibrate int8", "quantize int8", "evaluate", "package int8")


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    """What is said of a recipe that is none: one line, which names it."""
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert refused.value.exit_status == 1
    return message


def uncommented(text: str) -> str:
    """A recipe with all its lines; prose, behind a space, is left."""
    return re.sub(r"^#(?=[^ \n])", "", text, flags=re.MULTILINE)


def followed(folder: Path, name: str = "recipe.toml") -> RecipeRun:
    recipe = load_recipe(folder / name)
    assert recipe.workspace is not None
    return follow_recipe(Workspace(recipe.workspace), recipe)


def statuses(done: RecipeRun) -> dict[str, str]:
    return {step.step: step.status.value for step in done.steps}


def run_again(done: RecipeRun) -> list[str]:
    """The steps that were not skipped; the others were."""
    found = statuses(done)
    assert set(found.values()) <= {"done", "skipped"}, done.to_dict()
    return [step for step, status in found.items() if status == "done"]


@pytest.fixture(scope="session")
def folder_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its pictures, not yet followed."""
    folder = tmp_path_factory.mktemp("recipe") / "here"
    for index in range(12):
        write_noise(folder / "train" / f"{index}.png", seed=index)
    for index in range(4):
        write_noise(folder / "val" / "ab"[index % 2] / f"{index}.png", seed=100 + index)
    (folder / "tiny.toml").write_text(TINY_FOR_8_BITS)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="session")
def done_once(folder_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(folder_once, tmp_path_factory.mktemp("done") / "here"))
    done = followed(folder)
    assert statuses(done) == dict.fromkeys(STEPS, "done"), done.to_dict()
    assert done.exit_status == 0
    return folder


@pytest.fixture
def fresh(folder_once: Path, tmp_path: Path) -> Path:
    """The recipe's folder, nothing done."""
    return Path(shutil.copytree(folder_once, tmp_path / "here"))


@pytest.fixture
def done(done_once: Path, tmp_path: Path) -> Path:
    """The recipe's folder, everything done, elsewhere than where it was done."""
    return Path(shutil.copytree(done_once, tmp_path / "moved"))
