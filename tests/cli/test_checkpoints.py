"""Weights files as people have them, exported: what is stored is what the file means."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from t2t_deploy._files import file_sha256
from t2t_deploy.model import ModelConfig, config_for_variant, random_state_dict
from t2t_deploy.workspace import read_manifest

from .command import Run

StateDict = dict[str, torch.Tensor]
Exported = tuple[Any, StateDict]
Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def weights(tiny: ModelConfig) -> StateDict:
    return random_state_dict(tiny, seed=1)


@pytest.fixture
def export(run: Run, tiny_toml: Path) -> Export:
    """Export a file; returns the manifest and the stored weights."""

    def call(path: Path, *options: object) -> Exported:
        form = ("--batch", 1, *(options or ("--config", tiny_toml)))
        done = run.json("export", "--checkpoint", path, *form, status=0)
        assert done["verification"]["status"] == "passed"
        manifest = read_manifest(Path(f"{done['artifact']['path']}.manifest.json"))
        assert manifest.weights["source"]["file"] == path.name
        assert manifest.weights["source"]["sha256"] == file_sha256(path)
        return manifest, load_file(f"artifacts/weights/{manifest.weights['sha256']}.safetensors")

    return call


def same(found: StateDict, wanted: StateDict) -> bool:
    return found.keys() == wanted.keys() and all(
        tensor.dtype == torch.float32 and torch.equal(tensor, wanted[key].float())
        for key, tensor in found.items()
    )


def saved(content: object) -> Path:
    torch.save(content, "model.pth.tar")
    return Path("model.pth.tar")


def test_a_released_file(export: Export, tiny: ModelConfig, weights: StateDict) -> None:
    path = saved(
        {
            "epoch": 310,
            "arch": "T2t_vit_14",
            "state_dict": random_state_dict(tiny, seed=2),
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
            "args": argparse.Namespace(model="t2t_vit_14", lr=5e-4),
            "state_dict_ema": weights,
        }
    )
    manifest, stored = export(path)
    assert same(stored, weights)
    assert manifest.weights["source"]["container"] == "state_dict_ema"


def with_prefix(weights: StateDict) -> StateDict:
    return {f"module.{key}": value for key, value in weights.items()}


# what is saved of weights, and the container that is found
FORMS: dict[str, tuple[Callable[[StateDict], object], str]] = {
    "state_dict": (lambda w: {"state_dict": w, "state_dict_ema": None}, "state_dict"),
    # as the authors' transfer_learning.py saves it
    "net": (lambda w: {"net": with_prefix(w), "acc": 98.3, "epoch": 59}, "net"),
    "bare": (lambda w: w, "file"),
    "module.": (with_prefix, "file"),
    "float16": (lambda w: {key: value.half() for key, value in w.items()}, "file"),
}


@pytest.mark.parametrize("form", [*FORMS, "legacy"])
def test_other_forms(export: Export, weights: StateDict, form: str) -> None:
    make, container = FORMS.get(form, FORMS["bare"])
    torch.save(make(weights), "model.pth", _use_new_zipfile_serialization=form != "legacy")
    manifest, stored = export(Path("model.pth"))
    wanted = {key: value.half() for key, value in weights.items()} if form == "float16" else weights
    assert same(stored, wanted)
    assert manifest.weights["source"]["container"] == container


def test_safetensors(export: Export, weights: StateDict) -> None:
    save_file(weights, "model.safetensors")
    manifest, stored = export(Path("model.safetensors"))
    assert same(stored, weights)
    assert manifest.weights["source"]["kind"] == "checkpoint"


def test_other_classes_come_from_the_file(export: Export, tiny: ModelConfig) -> None:
    manifest, stored = export(saved(random_state_dict(tiny.with_(num_classes=37))))
    assert manifest.config["num_classes"] == 37
    assert stored["head.weight"].shape == (37, 16)


def test_another_resolution(export: Export, weights: StateDict, tiny_toml: Path) -> None:
    manifest, stored = export(saved(weights), "--config", tiny_toml, "--image-size", 64)
    assert manifest.config["image_size"] == 64
    assert manifest.details["notes"] == ["pos_embed resized bicubically from 32 to 64 px"]
    old = weights["pos_embed"]
    grid = old[:, 1:].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    wanted = functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.equal(stored["pos_embed"][:, :1], old[:, :1])
    assert torch.equal(stored["pos_embed"][:, 1:], wanted.permute(0, 2, 3, 1).reshape(1, 16, 16))
    assert same(
        {key: value for key, value in stored.items() if key != "pos_embed"},
        {key: value for key, value in weights.items() if key != "pos_embed"},
    )


def test_the_resolution_comes_from_the_file(export: Export, tiny: ModelConfig) -> None:
    wanted = random_state_dict(tiny.with_(image_size=48))
    manifest, stored = export(saved(wanted))
    assert manifest.config["image_size"] == 48
    (note,) = manifest.details["notes"]
    assert note.startswith("9 positions are taken as 3x3, pictures of 48x48 pixels; where height")
    assert same(stored, wanted)


def test_the_variant_is_recognised(export: Export) -> None:
    config = config_for_variant("7").with_(num_classes=10, image_size=64)
    manifest, _ = export(saved(random_state_dict(config)), "-q")
    assert manifest.variant == "7"
    assert (manifest.config["num_classes"], manifest.config["image_size"]) == (10, 64)


def test_the_set_of_weights_is_chosen(export: Export, tiny_toml: Path, weights: StateDict) -> None:
    other = {key: value * 1.5 for key, value in weights.items()}
    path = saved({"state_dict": weights, "state_dict_ema": other})
    manifest, stored = export(path)
    assert same(stored, other)
    warning = "warning: state_dict and state_dict_ema differ by 33% of the norm of the weights; "
    assert manifest.details["notes"][1].startswith(warning)
    manifest, stored = export(path, "--config", tiny_toml, "--weights", "state_dict")
    assert same(stored, weights)
    assert manifest.weights["source"]["container"] == "state_dict"


def test_keys_are_ignored(export: Export, tiny_toml: Path, weights: StateDict) -> None:
    extra = {"aux_head.weight": torch.zeros(4, 16), "criterion.weight": torch.ones(4)}
    options = ("--ignore-keys", "aux_*", "--ignore-keys", "criterion.weight")
    manifest, stored = export(saved({**weights, **extra}), "--config", tiny_toml, *options)
    assert same(stored, weights)
    assert manifest.details["notes"] == [f"left out, as asked: {key}" for key in extra]


def test_a_hub_folder(run: Run, tiny_toml: Path, weights: StateDict) -> None:
    Path("hub").mkdir()
    save_file(weights, "hub/model.safetensors")
    form = ("--config", tiny_toml, "--batch", 1)
    done = run.json("export", "--checkpoint", "hub", *form, status=0)
    manifest = read_manifest(Path(f"{done['artifact']['path']}.manifest.json"))
    assert manifest.weights["source"] == {
        "kind": "checkpoint",
        "file": "model.safetensors",
        "sha256": file_sha256(Path("hub/model.safetensors")),
        "container": "file",
    }


@pytest.mark.parametrize(
    "option", [("--weights", "ema"), ("--ignore-keys", "a*"), ("--qk-scale", "mmpretrain")]
)
def test_options_of_a_file_need_one(run: Run, tiny_toml: Path, option: tuple[str, str]) -> None:
    message = run.fails("UsageError", "export", "--config", tiny_toml, *option, status=2)
    assert message.endswith("is about a checkpoint, and none is given; give one")


def test_a_recipe_chooses_its_weights(run: Run, tiny_toml: Path, weights: StateDict) -> None:
    other = {key: value * 1.5 for key, value in weights.items()}
    saved({"state_dict": {**weights, "aux.weight": torch.ones(3)}, "state_dict_ema": other})
    Path("tiny.toml").write_text(tiny_toml.read_text())
    Path("recipe.toml").write_text(
        "[model]\nconfig = 'tiny.toml'\ncheckpoint = 'model.pth.tar'\n"
        "weights = 'state_dict'\nignore-keys = ['aux.*']\n[export]\nbatch = 1\n"
        "[expected]\nclasses = 10\n"
    )
    run("run", "recipe.toml", status=0)
    (path,) = Path().rglob("weights/*.safetensors")
    assert same(load_file(path), weights)
