"""The recipes of the released checkpoints against the variant table, and files of their shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from t2t_deploy.model import VARIANTS, config_for_variant, random_state_dict
from t2t_deploy.recipe import follow_recipe, load_recipe, plan_steps
from t2t_deploy.recipe._load import Recipe
from t2t_deploy.workspace import Workspace

from .conftest import statuses, uncommented

RECIPES = sorted((Path(__file__).parents[2] / "docs" / "recipes").glob("*.toml"))
# the authors' model table; the two that are no row of the variant table carry their own accuracy
RELEASED = {
    "71.7_T2T_ViT_7": ("7", 224),
    "75.2_T2T_ViT_10": ("10", 224),
    "76.5_T2T_ViT_12": ("12", 224),
    "81.5_T2T_ViT_14": ("14", 224),
    "81.9_T2T_ViT_19": ("19", 224),
    "82.3_T2T_ViT_24": ("24", 224),
    "81.7_T2T_ViTt_14": ("t_14", 224),
    "82.4_T2T_ViTt_19": ("t_19", 224),
    "82.6_T2T_ViTt_24": ("t_24", 224),
    "83.3_T2T_ViT_14": ("14", 384),
    "84.2_T2T_ViT_24": ("24", 224),
}
NOTES = {"83.3_T2T_ViT_14": "83.3 at 384 px", "84.2_T2T_ViT_24": "84.2 with token labelling"}


def test_each_released_checkpoint_has_one() -> None:
    assert {path.stem for path in RECIPES} == set(RELEASED)
    published = {name for name, variant in VARIANTS.items() if variant.published.top1 is not None}
    assert {variant for variant, _ in RELEASED.values()} == published


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_expects_what_the_variant_table_says(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    variant, size = RELEASED[path.stem]
    given, expected = recipe.exports[0].given, recipe.expected
    assert expected is not None and expected.top1 is None  # nothing evaluates
    whole = tmp_path / path.name
    whole.write_text(uncommented(path.read_text()))
    expected = load_recipe(whole).expected
    assert given["variant"] == variant
    assert given["checkpoint"] == path.parent / f"{path.stem}.pth.tar"
    assert expected is not None and (expected.classes, expected.image_size) == (1000, size)
    known = VARIANTS[variant]
    if path.stem in NOTES:
        assert known.published.note == NOTES[path.stem]
        assert expected.top1 == float(known.published.note.split()[0])
    else:
        assert expected.top1 == known.published.top1
        assert expected.params == known.params
    assert f"{expected.top1}_" == path.stem[:5] and expected.within == 0.2
    exports = ["model", "export float", "export gpu"]
    assert [step.label for step in plan_steps(recipe)] == [
        *(*exports, "build-trt engine", "bench", "report", "package float")
    ]
    assert [step.label for step in plan_steps(load_recipe(whole))] == [
        *(*exports, "calibrate int8", "quantize int8", "build-trt engine", "evaluate"),
        *("bench", "report", "package float"),
    ]


def file_of_that_shape(recipe: Recipe, folder: Path, size: int) -> Path:
    """The recipe beside a file of the released layout, with random weights."""
    given = recipe.exports[0].given
    config = config_for_variant(given["variant"]).with_(image_size=size)
    content = {"epoch": 300, "state_dict_ema": random_state_dict(config, 0)}
    torch.save(content, folder / given["checkpoint"].name)
    copy: Path = folder / recipe.file.name
    text = recipe.file.read_text()
    # the model and its exports: the rest is tested on a tiny one
    copy.write_text(text[: text.index("# Pictures to take INT8")])
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["71.7_T2T_ViT_7", "83.3_T2T_ViT_14"])
def test_a_file_of_that_shape_goes_through(name: str, tmp_path: Path) -> None:
    (path,) = [path for path in RECIPES if path.stem == name]
    copy = file_of_that_shape(load_recipe(path), tmp_path, RELEASED[name][1])
    done = follow_recipe(Workspace(tmp_path / "artifacts"), load_recipe(copy))
    assert statuses(done) == dict.fromkeys(("model", "export float", "export gpu"), "done")
    found = done.steps[0].result
    expected = load_recipe(path).expected
    assert found is not None and expected is not None and found["params"] == expected.params


@pytest.mark.slow
def test_another_file_under_that_name_stops_everything(tmp_path: Path) -> None:
    (path,) = [path for path in RECIPES if path.stem == "83.3_T2T_ViT_14"]
    copy = file_of_that_shape(load_recipe(path), tmp_path, 224)
    done = follow_recipe(Workspace(tmp_path / "artifacts"), load_recipe(copy))
    assert [step.status.value for step in done.steps] == ["failed", "not_run", "not_run"]
    assert done.steps[0].reason == (
        "image-size of 83.3_T2T_ViT_14.pth.tar is 224; the recipe expects 384: use the file that "
        "the recipe is about, or correct [expected]"
    )
    assert done.exit_status == 1 and not (tmp_path / "artifacts").exists()
