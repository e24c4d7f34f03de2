"""Weights files and model descriptions that cannot be exported: one line each, exit 1."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from t2t_deploy.model import ModelConfig, T2TViT, config_for_variant
from t2t_deploy.model import random_state_dict as random_weights

from .command import Run

StateDict = dict[str, torch.Tensor]
Refused = Callable[..., str]


@pytest.fixture
def weights(tiny: ModelConfig) -> StateDict:
    return random_weights(tiny)


@pytest.fixture
def refused(run: Run, tiny_toml: Path) -> Refused:
    """Export a file as the tiny model, or with other options; returns the error's message."""

    def export(content: Path | object, *options: object) -> str:
        path = content if isinstance(content, Path) else Path("model.pth")
        if path is not content:
            torch.save(content, path)
        done = run("export", "--checkpoint", path, *(options or ("--config", tiny_toml)), status=1)
        assert done.out == ""
        last = str(done.err.splitlines()[-1])
        assert last.startswith("error: ")
        assert not Path("artifacts").exists(), "nothing is stored of a refused file"
        return last.removeprefix("error: ")

    return export


def without_data(config: ModelConfig) -> StateDict:
    """All names and shapes of a model, a few kB as a file."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in T2TViT(config).state_dict().items()}
    return {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}


def test_no_such_file(refused: Refused) -> None:
    there_is_none = "there is no file no.pth.tar; give a .pth.tar, .pth or .safetensors"
    assert refused(Path("no.pth.tar")) == there_is_none
    Path("folder.pth").mkdir()
    assert refused(Path("folder.pth")).startswith("folder.pth is not a file; give a .pth.tar")


def _saved(weights: StateDict, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights: _saved(weights, zipped=True)[:-100],
        lambda weights: _saved(weights, zipped=True)[:5000],
        lambda weights: _saved(weights, zipped=False)[:5000],
        lambda weights: bytes(range(256)) * 20,
        lambda weights: b"",
    ],
    ids=["end cut", "half a zip", "half a legacy file", "random bytes", "empty"],
)
def test_truncated_or_no_checkpoint(
    refused: Refused, weights: StateDict, damage: Callable[[StateDict], bytes]
) -> None:
    path = Path("model.pth.tar")
    path.write_bytes(damage(weights))
    told = r"model.pth.tar is truncated or no checkpoint \(.*; copy or download it again"
    assert re.fullmatch(told, refused(path), re.DOTALL)


def test_truncated_safetensors(refused: Refused, weights: StateDict) -> None:
    path = Path("model.safetensors")
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-100])
    told = r"model.safetensors is no readable safetensors file \(.*; copy or download it again"
    assert re.fullmatch(told, refused(path))


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "legacy", "bare pickle"])
def test_a_malicious_pickle(refused: Refused, weights: StateDict, zipped: bool | None) -> None:
    path = Path("model.pth.tar")
    if zipped is None:
        path.write_bytes(pickle.dumps({"args": Malicious()}, protocol=2))
        message = (
            "is a pickle that torch.save did not write, which could run code when loaded and was "
            "not; where you trust it, run these two lines of Python where it was made: "
        )
    else:
        content = {"state_dict": {**weights, "head.weight": Malicious()}}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        message = (
            "holds a Python object (posix.system) as 'head.weight', which could run code when "
            "loaded and was not; expected tensors only: save the model's state_dict()"
        )
    assert refused(path).startswith(f"model.pth.tar {message}")
    assert not Path("executed").exists()
    with path.open("rb") as file:  # the file is as malicious as it claims
        torch.load(file, weights_only=False) if zipped is not None else pickle.load(file)
    assert Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "model.pth holds a list; expected a dictionary of tensors: save"),
        ({"epoch": 3}, "model.pth holds epoch; expected tensors, or a dictionary with state_dict_"),
        ({}, "model.pth holds nothing; expected tensors"),
        ({"state_dict": {}}, "model.pth holds nothing; expected tensors"),
        (
            {"conv1.weight": torch.zeros(4, 3, 7, 7), "fc.weight": torch.zeros(10, 4)},
            "model.pth has no classifier head.weight (its keys: conv1.weight, fc.weight); expected",
        ),
        ({"head.weight": torch.zeros(10, 4, dtype=torch.int64)}, "has head.weight as torch.int64"),
    ],
    ids=["list", "no tensors", "empty", "empty state dict", "another model", "integers"],
)
def test_no_state_dict_of_this_model(refused: Refused, content: object, message: str) -> None:
    assert message in refused(content)


def test_missing_unexpected_and_mis_shaped_keys(refused: Refused, weights: StateDict) -> None:
    keys = [key for key in weights if key.startswith("blocks.0.")]
    assert len(keys) > 3
    for key in keys:
        del weights[key]
    weights["extra.weight"] = torch.zeros(1)
    weights["cls_token"] = torch.zeros(1, 1, 8)
    assert refused(weights) == (
        f"model.pth is no tiny: it lacks {len(keys)} of {len(weights) - 1 + len(keys)} keys "
        f"({', '.join(keys[:3])}, ...), it has 1 unexpected keys (extra.weight), it has 1 "
        "mis-shaped tensors (cls_token (1, 1, 8), expected (1, 1, 16)); give the variant the file "
        "was trained as, or leave the variant out to have it recognised"
    )


def test_the_wrong_variant(refused: Refused) -> None:
    message = refused(without_data(config_for_variant("7")), "--variant", "10")
    assert message.startswith("model.pth is no 10: it lacks ")
    assert "(blocks.7." in message


def test_two_variants_of_the_same_shapes(refused: Refused) -> None:
    assert refused(without_data(config_for_variant("14")), "-q") == (
        "model.pth fits the variants 14 and 14_resnext, whose weights have the same shapes; name "
        "one of them as variant"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t14", "there is no variant 't14'; did you mean 't_14'? The family: 7, 10, 12, 14,"),
        ("14_resnet", "there is no variant '14_resnet'; did you mean '14_resnext'?"),
        ("huge", "there is no variant 'huge'; The family: 7, 10,"),
    ],
)
def test_unknown_variant(
    refused: Refused, run: Run, weights: StateDict, name: str, message: str
) -> None:
    assert refused(weights, "--variant", name).startswith(message)
    assert run.fails("ConfigError", "export", "--variant", name).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--config", "tiny.toml", "--num-classes", 1000),
            "model.pth has 10 classes and 1000 were asked for; a classifier cannot be resized: "
            "leave out the number of classes, or fine-tune first",
        ),
        (
            ("--config", "tiny.toml", "--image-size", 40),
            "image size is 40; expected a multiple of 16, such as 32 or 48",
        ),
        (("-q",), "model.pth fits no released variant; the nearest is "),
        (("-q",), "give the variant, or a config for your own dimensions"),
    ],
)
def test_what_weights_do_not_fit(
    refused: Refused, weights: StateDict, tiny_toml: Path, options: tuple[object, ...], message: str
) -> None:
    Path("tiny.toml").write_text(tiny_toml.read_text())
    assert message in refused(weights, *options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused: Refused, weights: StateDict, value: float) -> None:
    weights["head.bias"][3] = weights["norm.weight"][0] = value
    assert refused(weights) == (
        "model.pth has NaN or infinity in 2 tensors (norm.weight, head.bias); the training run "
        "diverged or the file is damaged: use an earlier checkpoint"
    )


def test_a_position_table_of_no_square(refused: Refused, weights: StateDict) -> None:
    weights["pos_embed"] = torch.zeros(1, 7, 16)
    assert refused(weights) == (
        "model.pth has a pos_embed for 6 tokens, which is no square grid of tiny; give image_size "
        "as height x width of the training's pictures, such as 32x48"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("embed_dim", "embed_dims"), "has the unknown key 'embed_dims'; did you mean 'embed_dim'"),
        (("depth = 2\n", ""), "model.toml lacks depth; add them"),
        (("depth = 2", "depth = "), "model.toml is not valid TOML: Invalid value"),
        (("depth = 2", "depth = 2.5"), "depth is 2.5; expected a whole number of at least 1"),
        (("= 2\n", '= "two"\n'), "'two'; expected a whole number"),
        (('"performer"', '"perform"'), "'perform' is not a valid TokensType"),
        (("num_heads = 2", "num_heads = 3"), "a block of width 16 does not divide into 3 heads"),
        (("token_dim = 16", "token_dim = 15"), "token_dim is 15; the performer has token_dim / 2"),
        (("= 32", "= 33"), "image size is 33; expected a multiple of 16, such as 32 or 48"),
    ],
)
def test_bad_descriptions(run: Run, tiny_toml: Path, change: tuple[str, str], message: str) -> None:
    text = tiny_toml.read_text()
    assert change[0] in text
    Path("model.toml").write_text(text.replace(*change))
    assert message in run.fails("ConfigError", "export", "--config", "model.toml")
    assert not Path("artifacts").exists()


def test_no_description(run: Run) -> None:
    done = run("export", "--config", "no.toml", status=1)
    assert done.err == "error: cannot read no.toml: No such file or directory; give a TOML file\n"
    Path("binary.toml").write_bytes(b"\xff\xfe\x00")
    assert "binary.toml is not valid TOML" in run("export", "--config", "binary.toml", status=1).err
