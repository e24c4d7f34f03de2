"""Names and order of classes, from export to what shows or uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
import torch

from t2t_deploy.model import config_from_toml, random_state_dict
from t2t_deploy.workspace import manifest_path_for

from ..noise import write_noise
from .command import Run, manifest_of

NAMES = ["cat", "dog", "cow", "pig", "hen", "fox", "owl", "bat", "ant", "bee"]


@pytest.fixture
def labels(empty_folder: Path) -> Path:
    path = Path("class_to_idx.json")
    path.write_text(json.dumps({name: index for index, name in enumerate(NAMES)}))
    return path


@pytest.fixture
def named(run: Run, tiny_toml: Path, labels: Path) -> Path:
    """An export of weights that are no seeded random ones to it, with names of classes."""
    torch.save(random_state_dict(config_from_toml(tiny_toml), seed=3), "m.pth")
    words = ("--config", tiny_toml, "--checkpoint", "m.pth", "-o", "m.onnx")
    run("export", *words, "--labels", labels, status=0)
    return Path("m.onnx")


@pytest.fixture
def val(empty_folder: Path) -> Path:
    """Three pictures in each of nine of the ten classes, by their names."""
    write_noise(*(Path("val", name, f"{i}.png") for name in NAMES[:9] for i in range(3)))
    return Path("val")


def test_names_are_in_the_manifest_and_the_file(run: Run, named: Path) -> None:
    manifest = manifest_of(named)
    assert manifest["details"]["class_names"] == NAMES and manifest["manifest_version"] == 2
    (prop,) = onnx.load(named).metadata_props
    assert (prop.key, json.loads(prop.value)) == ("class_names", NAMES)


def test_an_export_without_names_is_as_before(run: Run, onnx_file: Path) -> None:
    manifest = manifest_of(onnx_file)
    assert "class_names" not in manifest["details"] and manifest["manifest_version"] == 1
    assert not onnx.load(onnx_file).metadata_props


def test_labels_that_do_not_fit_are_no_export(run: Run, tiny_toml: Path) -> None:
    Path("two.txt").write_text("cat\ndog\n")
    words = ("--config", tiny_toml, "--labels", "two.txt", "-o", "m.onnx")
    done = run("export", *words, status=1)
    assert "two.txt has 2 labels and the artifact 10 classes" in done.err
    assert not Path("m.onnx").exists()


def test_a_repeated_name_is_noted(run: Run, tiny_toml: Path) -> None:
    Path("ten.txt").write_text("\n".join(["crane", *NAMES[:8], "crane"]))
    done = run("export", "--config", tiny_toml, "--labels", "ten.txt", status=0)
    assert "note: 2 classes (0, 9) have the label 'crane'" in done.err


def test_predict_and_package_take_the_names(run: Run, named: Path, val: Path) -> None:
    picture = val / "cat" / "0.png"
    found = run.json("predict", named, picture, status=0)
    assert found["labels"] == "artifact"
    top = found["results"][0]["top"]
    assert [one["label"] for one in top] == [NAMES[one["index"]] for one in top]
    Path("other.txt").write_text("\n".join(f"other {index}" for index in range(10)))
    found = run.json("predict", named, picture, "--labels", "other.txt", status=0)
    assert found["results"][0]["top"][0]["label"].startswith("other ")
    done = run.json("package", named, "--triton", "models", status=0)
    assert done["ensemble"]["labels"]
    written = [path.read_text() for path in Path("models").rglob("labels.txt")]
    assert written and set(written) == {"".join(f"{name}\n" for name in NAMES)}


def test_a_file_without_its_manifest_keeps_its_names(run: Run, named: Path, val: Path) -> None:
    manifest_path_for(named).unlink()
    found = run.json("predict", named, val / "cat" / "0.png", status=0)
    assert found["labels"] == "artifact"
    done = run("evaluate", named, "--images", val, status=0)
    assert "note: class folders are matched by the model's class names" in done.err


def test_quantised_files_inherit_the_names(run: Run, named: Path) -> None:
    words = ("--mode", "dynamic", "--no-speed", "-o", "q.onnx")
    run("quantize", named, *words)  # so small a model may fail its check
    assert manifest_of(Path("q.onnx"))["details"]["class_names"] == NAMES
    assert json.loads(onnx.load("q.onnx").metadata_props[0].value) == NAMES


def test_folders_are_matched_by_the_names(run: Run, named: Path, val: Path) -> None:
    """Whatever their order is, and although one class has no folder."""
    by_name = run.json("evaluate", named, "--images", val, "--json")["results"][0]
    shutil.copytree(val, "numbered")
    for index, name in enumerate(NAMES[:9]):
        (Path("numbered") / name).rename(Path("numbered") / str(index))
    words = ("evaluate", named, "--images", "numbered", "--class-order", "number")
    by_number = run.json(*words)["results"][0]
    assert by_name["top1"] == by_number["top1"] is not None
    assert by_name["top5"] == by_number["top5"]


def test_an_order_that_is_open_stops_the_command(run: Run, onnx_file: Path, val: Path) -> None:
    for name in NAMES[:9]:
        shutil.copytree(val / name, Path("counted") / f"c{NAMES.index(name) + 1}")
    write_noise(Path("counted", "c10", "0.png"))
    message = run.fails("ImageError", "evaluate", onnx_file, "--images", "counted")
    assert "counted/c10 is class 1 in text order and class 9 in natural order" in message
    assert "class order" in message and "class_to_idx.json" in message
    quantize = ("quantize", onnx_file, "--mode", "dynamic", "--max-drop", 1, "--eval", "counted")
    assert run.fails("ImageError", *quantize) == message
    for order in ("text", "natural", "number"):
        run("evaluate", onnx_file, "--images", "counted", "--class-order", order, status=0)
    done = run("evaluate", onnx_file, "--images", "counted", "--class-order", "none.json", status=1)
    assert "cannot read the labels none.json" in done.err
    # of a whole workspace it is said of each artifact
    assert message in run("evaluate", "--images", "counted", status=1).err


def test_a_class_order_without_pictures(run: Run, onnx_file: Path) -> None:
    words = ("quantize", onnx_file, "--mode", "dynamic", "--class-order", "text")
    assert "give them with eval" in run(*words, status=2).err


def test_chance_is_said_of_weights_that_are_not_random(run: Run, named: Path, val: Path) -> None:
    done = run("evaluate", named, "--images", val, "--json", status=0)
    assert "which is not above chance (10.00%) at 95 %: the labels may be in another" in done.err
    assert done.json["results"][0]["reason"] == "labels may be in another order"


def test_a_recipe_has_labels_and_an_order(run: Run, tiny_toml: Path, labels: Path) -> None:
    write_noise(*(Path("counted", f"c{i}", "0.png") for i in range(10)))
    order = json.dumps({f"c{i}": i for i in range(10)})
    Path("order.json").write_text(order)
    Path("recipe.toml").write_text(
        f"[model]\nconfig = {str(tiny_toml)!r}\nlabels = 'class_to_idx.json'\n"
        "[evaluate]\nimages = 'counted'\nclass-order = 'order.json'\n"
    )
    run("run", "recipe.toml", status=0)
    assert run("run", "recipe.toml", status=0).out.count("skipped") == 2
    Path("order.json").write_text(order + " ")
    done = run("run", "recipe.toml", status=0)
    assert "export fp32: skipped" in done.err and "evaluate: skipped" not in done.err
    labels.write_text(labels.read_text().replace("cat", "cats"))
    recipe = Path("recipe.toml")
    recipe.write_text(recipe.read_text().replace("order.json", "natural"))
    run("run", "recipe.toml", status=0)
    found = [json.loads(made.read_text()) for made in Path("artifacts/onnx").glob("*.json")]
    assert "cats" in [made["details"]["class_names"][0] for made in found]
