"""Accuracy of artifacts on a folder of pictures, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from t2t_deploy.model import config_from_toml, random_state_dict

from ..needs import needs_openvino
from ..noise import write_noise
from ..onnx_models import parsed
from .command import Change, Run, Temporaries, manifest_of
from .graphs import edited, scaled

CLASSES = 10


@pytest.fixture(scope="session")
def labelled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of noise in each of ten class folders."""
    root = tmp_path_factory.mktemp("pictures") / "val"
    names = (f"class {label}/{index}.png" for label in range(CLASSES) for index in range(3))
    write_noise(*(root / name for name in names), size=(36, 40))
    return root


@pytest.fixture
def val(labelled_once: Path, empty_folder: Path) -> Path:
    shutil.copytree(labelled_once, empty_folder / "val")
    return Path("val")


@pytest.fixture
def flat(val: Path) -> Path:
    """The same pictures without labels."""
    root = Path("flat")
    root.mkdir()
    for path in val.rglob("*.png"):
        shutil.copy(path, root / f"{path.parent.name} {path.name}")
    return root


@pytest.fixture
def always_one_class(onnx_file: Path, alter: Change) -> Change:
    """Make the artifact's classifier give the same bias to every picture."""

    def change(bias: np.ndarray) -> None:
        alter(onnx_file, scaled("head.weight", 0))
        alter(onnx_file, edited("head.bias", lambda values: bias.astype(values.dtype)))

    return change


def test_labels_and_reference(run: Run, workspace: Path, val: Path) -> None:
    done = run.json("evaluate", "--images", val, status=0)
    (row,) = done["results"]
    assert (row["images"], row["status"], row["reason"], row["batch"]) == (30, "passed", None, 8)
    assert row["agreement"] == 1.0
    assert 0 <= row["rel_l2_mean"] <= row["rel_l2_max"] < 1e-5
    assert row["reference"] == {"top1": row["top1"], "top5": row["top5"]}
    assert done["images"] == {
        "folder": "val",
        "count": 30,
        "left_out": 0,
        "labelled": True,
        "unreadable": [],
    }


def test_one_class_for_all(run: Run, onnx_file: Path, val: Path, always_one_class: Change) -> None:
    """Right on the pictures of one class, and five classes in front."""
    bias = np.zeros(CLASSES)
    bias[[3, 0, 1, 2, 4]] = (9, 8, 7, 6, 5)
    always_one_class(bias)
    for name in ("1.png", "2.png"):
        (val / "class 3" / name).unlink()
    (row,) = run.json("evaluate", "--images", val)["results"]
    assert (row["images"], row["top1"], row["top5"]) == (28, 1 / 28, 13 / 28)
    assert row["agreement"] < 1 and row["rel_l2_mean"] > 0.1
    # named by numbers: class 3 is now another folder, which has three pictures
    for label in range(CLASSES):
        (val / f"class {label}").rename(val / str((label + 3) % CLASSES))
    (row,) = run.json("evaluate", "--images", val)["results"]
    assert (row["images"], row["top1"], row["top5"]) == (28, 3 / 28, 15 / 28)


def test_the_table(run: Run, workspace: Path, val: Path) -> None:
    done = run("evaluate", "--images", val, status=0)
    for word in ("top-1", "top-5", "agreement", "tiny 32px reference", "100.00%", "passed"):
        assert word in done.out
    assert "evaluating tiny-32-fp32-portable-" in done.err


def test_without_labels_there_is_agreement_only(run: Run, workspace: Path, flat: Path) -> None:
    done = run.json("evaluate", "--images", flat, status=0)
    (row,) = done["results"]
    assert (row["images"], row["agreement"], row["top1"], row["top5"]) == (30, 1.0, None, None)
    assert not done["images"]["labelled"]


def test_every_artifact_side_by_side(run: Run, tiny_toml: Path, workspace: Path, val: Path) -> None:
    """A fixed batch that does not divide the pictures, bf16 and another model beside the first."""
    other = tiny_toml.with_name("other.toml")
    other.write_text(tiny_toml.read_text().replace('"performer"', '"transformer"'))
    run("export", "--config", tiny_toml, "--precision", "fp16", "--batch", 7)
    run("export", "--config", tiny_toml, "--precision", "bf16")
    run("export", "--config", other)
    rows = run.json("evaluate", "--images", val, status=0)["results"]
    assert [row["precision"] for row in rows] == ["fp32", "fp16", "bf16", "fp32"]
    assert [row["status"] for row in rows] == ["passed", "passed", "not_run", "passed"]
    assert [row["images"] for row in rows] == [30, 30, 0, 30]
    assert [row["batch"] for row in rows] == [8, 7, None, 8]
    assert "name it to evaluate it node by node" in rows[2]["reason"]
    assert rows[0]["rel_l2_max"] < 1e-5 < rows[1]["rel_l2_max"] < 5e-3
    assert rows[0]["reference"] == rows[1]["reference"] is not None

    (row,) = run.json("evaluate", rows[2]["artifact"], "--images", val, "--limit", 3)["results"]
    assert (row["status"], row["images"]) == ("passed", 3)
    assert row["reason"] == "evaluated node by node"
    assert 1e-4 < row["rel_l2_max"] < 4e-2


def test_the_batch_asked_for(run: Run, workspace: Path, val: Path) -> None:
    one = run.json("evaluate", "--images", val, "--batch", 13)["results"][0]
    assert (one["batch"], one["images"]) == (13, 30)


def test_a_limit_is_told(run: Run, workspace: Path, val: Path) -> None:
    done = run("evaluate", "--images", val, "--limit", 10, "--json")
    assert (done.json["results"][0]["images"], done.json["images"]["left_out"]) == (10, 20)
    assert "note: took 10 pictures, left out 20" in done.err


def test_pictures_that_cannot_be_read_exit_3(run: Run, workspace: Path, val: Path) -> None:
    for name in ("class 2/1.png", "class 7/0.png"):
        (val / name).write_bytes(b"cut")
    done = run("evaluate", "--images", val, "--json", status=3)
    (row,) = done.json["results"]
    assert (row["images"], row["status"]) == (28, "failed")
    assert row["reason"] == "2 of 30 pictures cannot be read"
    named = done.json["images"]["unreadable"]
    assert [line.split(":")[0] for line in named] == [
        "cannot read the picture val/class 2/1.png",
        "cannot read the picture val/class 7/0.png",
    ]
    assert done.err.splitlines()[-1].startswith("error: 2 pictures cannot be read; failed: tiny-32")
    done = run("evaluate", "--images", val, status=3)
    for line in named:
        assert line in done.out


def test_all_pictures_unreadable(run: Run, workspace: Path, val: Path) -> None:
    for path in val.rglob("*.png"):
        path.write_bytes(b"cut")
    done = run("evaluate", "--images", val, status=3)
    assert "30 of 30 pictures cannot be read" in done.out
    assert "and 20 more; --json names them all" in done.out


def test_nan_logits_exit_3(run: Run, workspace: Path, val: Path, always_one_class: Change) -> None:
    always_one_class(np.full(CLASSES, np.nan))
    (row,) = run.json("evaluate", "--images", val, status=3)["results"]
    assert (row["status"], row["top1"], row["top5"], row["agreement"]) == ("failed", 0, 0, 0)
    assert (row["non_finite"], row["rel_l2_mean"]) == (30, None)
    assert row["reason"] == "logits of 30 of 30 pictures are NaN or infinite"


def test_a_reference_without_numbers_exits_3(run: Run, tiny_toml: Path, val: Path) -> None:
    weights = random_state_dict(config_from_toml(tiny_toml))
    weights["head.weight"] *= 1e38
    weights["norm.weight"] *= 1e3
    torch.save(weights, "large.pth")
    words = ("--config", tiny_toml, "--checkpoint", "large.pth")
    assert run("export", *words).status == 3
    done = run.json("evaluate", "--images", val, "--force", status=3)
    assert "; the reference's logits of 30 of 30 pictures are NaN" in done["results"][0]["reason"]


def test_a_file_without_manifest(run: Run, onnx_file: Path, val: Path, flat: Path) -> None:
    """Labels tell its accuracy; without them nothing does."""
    foreign = onnx_file.rename("foreign.onnx")
    (row,) = run.json("evaluate", foreign, "--images", val, status=0)["results"]
    assert row["top1"] is not None
    assert (row["agreement"], row["reference"], row["precision"]) == (None, None, None)
    assert row["reason"] == "no reference: made from a file without manifest"
    done = run("evaluate", foreign, "--images", flat, status=1)
    assert "nothing here can be evaluated: no labels, and no reference: made from a" in done.err


def test_a_file_that_is_no_classifier(run: Run, val: Path) -> None:
    onnx.save(parsed("g (float[n,4] a) => (float[n,4] b) { b = Relu(a) }"), "relu.onnx")
    done = run("evaluate", "relu.onnx", "--images", val, status=1)
    assert "relu.onnx takes a float32 (N, 4) and gives b float32 (N, 4); expected pic" in done.err


def test_class_folders_that_do_not_fit(run: Run, workspace: Path, val: Path) -> None:
    shutil.rmtree(val / "class 4")
    done = run("evaluate", "--images", val, status=1)
    assert "val has 9 class folders (class 0, class 1, class 2, ...) and the model 10" in done.err
    (path,) = Path("artifacts/onnx").glob("*.onnx")
    run.fails("ImageError", "evaluate", path, "--images", val)


def test_a_failed_artifact(run: Run, onnx_file: Path, val: Path, change_manifest: Change) -> None:
    verification = manifest_of(onnx_file)["verification"]
    change_manifest(onnx_file, verification=verification | {"status": "failed", "reason": "why"})
    done = run("evaluate", "--images", val, status=1)
    assert f"note: left out {onnx_file.name}: why" in done.err
    assert "workspace artifacts has nothing to evaluate; make an artifact first" in done.err
    assert run("evaluate", onnx_file, "--images", val).status == 1
    assert run("evaluate", "--images", val, "--force").status == 0


def test_an_engine_says_why_it_is_not_run(run: Run, engine_file: Path, val: Path) -> None:
    rows = {Path(r["artifact"]).suffix: r for r in run.json("evaluate", "--images", val)["results"]}
    row = rows[".engine"]
    assert (row["status"], row["images"], row["top1"]) == ("not_run", 0, None)
    assert row["reason"]
    done = run("evaluate", engine_file, "--images", val, status=1)
    assert done.err == f"error: nothing here can be evaluated: {row['reason']}\n"


def test_folders_that_are_no_classes_are_an_error(run: Run, workspace: Path) -> None:
    write_noise(*(Path("three") / name / "0.png" for name in "abc"))
    message = run.fails("MisfitError", "evaluate", "--images", "three")
    assert message.startswith("nothing here can be evaluated: three has 3 class folders (a, b, c)")


def test_the_confusion_of_classes(
    run: Run, workspace: Path, val: Path, flat: Path, temporaries: Temporaries
) -> None:
    pytest.importorskip("matplotlib")
    for folder in (val, flat):
        target = Path("new") / f"{folder.name}.png"
        done = run("evaluate", "--images", folder, "--confusion", target, status=0)
        assert f"confusion of classes: {target}" in done.out
        with Image.open(target) as picture:
            assert picture.format == "PNG"


def test_pictures_without_matplotlib(
    run: Run, workspace: Path, val: Path, bare_machine: None
) -> None:
    done = run("evaluate", "--images", val, "--confusion", "a.svg", status=2)
    assert "confusion is 'a.svg'; expected a path that ends in .png" in done.err
    done = run("evaluate", "--images", val, "--confusion", "a.png", status=1)
    assert "pip install 't2t-deploy[plot]'" in done.err
    assert done.err.count("\n") == 1  # before anything was computed


def test_wrong_usage(run: Run, workspace: Path) -> None:
    assert run("evaluate").status == 2
    assert run("evaluate", "--images", "x", "--batch", 0).status == 2
    done = run("evaluate", "--images", "missing", status=1)
    assert done.err == "error: missing is not a folder; give one with pictures\n"


@needs_openvino
def test_in_openvino(run: Run, tiny_toml: Path, workspace: Path, val: Path) -> None:
    run("export", "--config", tiny_toml, "--precision", "fp16")
    fp32, fp16 = run.json("evaluate", "--images", val, "--backend", "openvino", status=0)["results"]
    assert (fp32["status"], fp32["agreement"]) == ("passed", 1.0)
    assert fp16["status"] == "not_run" and "would compute fp16 in float32" in fp16["reason"]
    assert run("evaluate", "--images", val, "--backend", "gpu").status == 2
