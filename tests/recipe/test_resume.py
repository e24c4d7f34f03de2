"""Which steps run again: exactly those whose inputs, options, files or tools changed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from t2t_deploy._limits import Limits
from t2t_deploy.model import config_from_toml, random_state_dict, save_weights
from t2t_deploy.recipe import StepStatus, _fingerprint, _records
from t2t_deploy.serving.web import DEFAULT_FOLDER
from t2t_deploy.workspace import Workspace, manifest_text

from ..noise import write_noise
from ..web_runtime import write_runtime
from .conftest import STEPS, followed, run_again, statuses

EXPORT, CALIBRATE, QUANTIZE, EVALUATE, PACKAGE = STEPS


def change(folder: Path, old: str, new: str) -> None:
    path = folder / "recipe.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_runs_again_where_nothing_changed(done: Path) -> None:
    again = followed(done)
    assert statuses(again) == dict.fromkeys(STEPS, "skipped")
    assert {step.reason for step in again.steps} == {"nothing it depends on changed"}
    # a workspace that was moved: results name the files where they are now
    results = {step.step: step.result for step in again.steps}
    made = results[EXPORT]
    assert made is not None and Path(made["artifact"]["path"]).is_relative_to(done)


@pytest.mark.slow
def test_a_model_is_called_after_its_file(done: Path) -> None:
    (done / "tiny.toml").rename(done / "renamed.toml")
    change(done, "tiny.toml", "renamed.toml")
    again = followed(done)
    assert run_again(again) == list(STEPS)
    assert again.steps[0].reason == "model's name changed from tiny to renamed"


def test_an_added_picture_of_one_folder(done: Path) -> None:
    # in another class: the order of the pictures stays as it was
    (done / "val" / "a" / "2.png").rename(done / "val" / "b" / "0.png")
    assert run_again(followed(done)) == [EVALUATE]
    write_noise(done / "val" / "a" / "more.png", seed=107)
    assert run_again(followed(done)) == [EVALUATE]
    write_noise(done / "train" / "more.png", seed=8)
    assert run_again(followed(done)) == [CALIBRATE, QUANTIZE, EVALUATE, PACKAGE]


def test_a_changed_option(done: Path) -> None:
    change(done, 'triton = "models"', 'triton = "models"\ntop = 2')
    assert run_again(followed(done)) == [PACKAGE]
    change(done, "no-speed = true", 'no-speed = true\nbase = "fp32"\ntarget = "cpu"')
    found = {step.step: step.reason for step in followed(done).steps}
    assert 'option target changed from "portable" to "cpu"' in found[QUANTIZE]
    assert found[EXPORT] == "nothing it depends on changed"


def test_dates_names_and_defaults_written_out_do_not_count(done: Path) -> None:
    for path in sorted(done.rglob("*")):
        os.utime(path, (1, 1))
    (done / "train" / "0.png").rename(done / "train" / "00.png")
    (done / "val").rename(done / "test")
    change(done, 'images = "val"', 'images = "test"')
    change(done, 'name = "float"', 'name = "float"\nprecision = "fp32"\ntail = "logits"')
    change(done, 'images = "train"', 'images = "train"\ncount = 512\nmethod = "minmax"')
    (done / "recipe.toml").rename(done / "other.toml")
    assert run_again(followed(done, "other.toml")) == []


def test_a_changed_checkpoint(fresh: Path) -> None:
    recipe = fresh / "recipe.toml"
    text = recipe.read_text()
    recipe.write_text(text[: text.index("[calibrate]")] + '[package]\ntriton = "models"\n')
    steps = [EXPORT, "package float"]
    config = config_from_toml(fresh / "tiny.toml")
    save_weights(random_state_dict(config, 1), fresh / "own.safetensors")
    change(fresh, "[model]\n", '[model]\ncheckpoint = "own.safetensors"\n')
    assert run_again(followed(fresh)) == steps
    (fresh / "own.safetensors").rename(fresh / "same.safetensors")
    change(fresh, "own.safetensors", "same.safetensors")
    assert run_again(followed(fresh)) == []
    save_weights(random_state_dict(config, 2), fresh / "same.safetensors")
    again = followed(fresh)
    assert run_again(again) == steps
    assert [step.reason for step in again.steps] == ["checkpoint changed", "artifact float changed"]


@pytest.mark.parametrize(
    ("tool", "wanted"),
    [
        pytest.param("onnxsim", [EXPORT, CALIBRATE, QUANTIZE], marks=pytest.mark.slow),
        ("pillow", [CALIBRATE, EVALUATE]),
        ("openvino", []),
        pytest.param("t2t-deploy", list(STEPS), marks=pytest.mark.slow),
    ],
)
def test_a_newer_tool(
    done: Path, monkeypatch: pytest.MonkeyPatch, tool: str, wanted: list[str]
) -> None:
    """Steps after one that made the very same file again are skipped."""
    if tool == "t2t-deploy":
        monkeypatch.setattr("t2t_deploy.recipe._fingerprint.__version__", "99")
    else:
        known: Callable[[str], str] = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: "99" if name == tool else known(name)
        )
    again = followed(done)
    assert run_again(again) == wanted
    if wanted:
        first = next(step for step in again.steps if step.status is StepStatus.DONE)
        assert f"version of {tool} changed from " in first.reason and " to 99" in first.reason
    ranges = next(step for step in again.steps if step.step == CALIBRATE)
    assert ranges.result is not None
    assert ranges.result["ranges"]["reused"] is (CALIBRATE not in wanted)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        pytest.param("onnx/*-fp32-*.onnx", EXPORT, marks=pytest.mark.slow),
        ("onnx/*-int8-*.onnx", QUANTIZE),
        ("calibration/*.ranges", CALIBRATE),
        ("../models/*_images/config.pbtxt", PACKAGE),
    ],
)
def test_an_altered_file(done: Path, pattern: str, wanted: str) -> None:
    (path,) = (done / "artifacts").glob(pattern)
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    again = followed(done)
    if wanted == PACKAGE:  # what a person changed there is never written over
        assert statuses(again)[PACKAGE] == "failed"
        assert "was changed" in again.steps[-1].reason
        return
    assert run_again(again) == [wanted]
    (redone,) = [step for step in again.steps if step.status is StepStatus.DONE]
    assert " was altered" in redone.reason
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        pytest.param("onnx/*-int8-*.onnx", [QUANTIZE], marks=pytest.mark.slow),
        pytest.param("onnx/*-int8-*.manifest.json", [QUANTIZE], marks=pytest.mark.slow),
        pytest.param("weights/*.safetensors", [EXPORT], marks=pytest.mark.slow),
        pytest.param("calibration/*.ranges", [CALIBRATE], marks=pytest.mark.slow),
        ("../models/*_images", [PACKAGE]),
    ],
)
def test_a_removed_file(done: Path, pattern: str, wanted: list[str]) -> None:
    (path,) = (done / "artifacts").glob(pattern)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_again(followed(done)) == wanted
    assert path.exists()
    assert run_again(followed(done)) == []


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        pytest.param("[" * 100_000, id="nested"),
        manifest_text({}),
        manifest_text({"step": "export", "recipe": "a.toml", "parts": 5}),
        manifest_text({"step": "export"}).replace("export", "verify"),
    ],
)
def test_what_is_no_record_counts_as_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    assert _records._read(path) is None


def test_a_damaged_record(done: Path) -> None:
    for path in (done / "artifacts" / "recipes").glob("*.json"):
        if json.loads(path.read_text())["step"] == EVALUATE:
            path.write_text(path.read_text().replace('"top1"', '"top2"'))
    again = followed(done)
    assert run_again(again) == [EVALUATE]
    assert again.steps[3].reason == "not done before, or its record is damaged"


@pytest.mark.slow
def test_a_failed_check_since_then(done: Path) -> None:
    (path,) = (done / "artifacts" / "onnx").glob("*-int8-*.onnx")
    workspace = Workspace(done / "artifacts")
    artifact = workspace.open(path)
    before = artifact.require_manifest().verification or {}
    failed = {**before, "status": "failed", "reason": "found later"}
    workspace.update(artifact, verification=failed)
    again = followed(done)
    assert run_again(again) == [QUANTIZE]
    assert "found later" in again.steps[2].reason


def test_an_artifact_of_one_recipe_serves_another(done: Path) -> None:
    text = (done / "recipe.toml").read_text()
    text = text.replace('"float"', '"mine"').replace('"int8"', '"small"')
    (done / "second.toml").write_text(text)
    again = followed(done, "second.toml")
    assert list(statuses(again)) == [
        *("export mine", "calibrate small", "quantize small", "evaluate", "package small")
    ]
    assert run_again(again) == []


def test_a_preparation_is_a_word_or_a_file_whose_content_counts(done: Path) -> None:
    change(done, 'config = "tiny.toml"', 'config = "tiny.toml"\npreparation = "cifar"')
    assert EXPORT in run_again(followed(done))
    assert run_again(followed(done)) == []
    (done / "own.toml").write_text("crop_fraction = 0.8\n")
    change(done, 'preparation = "cifar"', 'preparation = "own.toml"')
    assert EXPORT in run_again(followed(done))
    (done / "own.toml").write_text("crop_fraction = 0.7\n")
    found = {step.step: step.reason for step in followed(done).steps}
    assert found[EXPORT] == "preparation changed"


@pytest.mark.parametrize(
    ("limits", "cores"), [(Limits(4), "4"), (Limits(4, 1.5), "4, a quota of 1.5")]
)
def test_measured_times_depend_on_the_quota(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, cores: str
) -> None:
    monkeypatch.setattr(_fingerprint, "read_limits", lambda: limits)
    assert _fingerprint.machine(processor=True)["cores"] == cores
    assert "cores" not in _fingerprint.machine(processor=False)


def test_a_page_is_made_again_where_its_runtime_or_an_example_changed(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done)
    write_runtime(done / "runtime")
    (done / "examples").mkdir()
    Image.new("RGB", (40, 40)).save(done / "examples/a.png")
    page = 'web = "page"\nort-web = "runtime"\nexamples = "examples"'
    change(done, 'triton = "models"', page)
    assert run_again(followed(done)) == [PACKAGE]
    assert run_again(followed(done)) == []
    script = done / "runtime/dist/ort.wasm.min.mjs"
    script.write_text("another release")
    assert run_again(followed(done)) == [PACKAGE]
    assert (done / "page/runtime/ort.wasm.min.mjs").read_text() == "another release"
    Image.new("RGB", (40, 40), "red").save(done / "examples/a.png")
    assert run_again(followed(done)) == [PACKAGE]
    # the folder that make web-runtime fills
    change(done, 'ort-web = "runtime"\n', "")
    for text in ("one", "two"):
        script.write_text(text)
        (done / DEFAULT_FOLDER).mkdir(parents=True, exist_ok=True)
        with tarfile.open(done / DEFAULT_FOLDER / "onnxruntime-web-1.tgz", "w:gz") as packed:
            packed.add(done / "runtime", "package")
        assert run_again(followed(done)) == [PACKAGE]
        assert run_again(followed(done)) == []
