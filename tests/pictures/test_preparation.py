"""Preparations: each preset against its arithmetic written out, other rules, files of training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_deploy._preparation import PRESETS, ColorOrder, Interpolation, Preparation, Resize
from t2t_deploy.commands._preparation import ChosenPreparation, choose_preparation
from t2t_deploy.errors import ImageError, UsageError
from t2t_deploy.images import preprocess, resize_and_crop
from t2t_deploy.pictures import preparation_beside, preparation_from_file

Filter = tuple[Callable[[np.ndarray], np.ndarray], float]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' kernel, a = -0.5."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


FILTERS: dict[Interpolation, Filter] = {
    Interpolation.BICUBIC: (_cubic, 2),
    Interpolation.BILINEAR: (lambda x: np.maximum(1 - np.abs(x), 0), 1),
    Interpolation.LANCZOS: (_lanczos, 3),
}


def weights(old: int, new: int, interpolation: Interpolation) -> np.ndarray:
    """(new, old) float64: shares of old samples in each new one, the filter as wide as needed."""
    centres = (np.arange(new) + 0.5) * old / new
    if interpolation is Interpolation.NEAREST:
        return np.asarray(np.eye(old)[np.floor(centres).astype(int)])
    kernel, _ = FILTERS[interpolation]
    found = kernel((np.arange(old) + 0.5 - centres[:, None]) / max(old / new, 1))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def written_out(pixels: np.ndarray, size: tuple[int, int], steps: Preparation) -> np.ndarray:
    """(H, W, C) uint8 -> (C, h, w) float64 by sums over filters, without Pillow."""
    height, width = pixels.shape[:2]
    fraction = steps.crop_fraction or 1
    shorter = math.floor(size[0] / fraction)
    scale = shorter / min(height, width)
    new = (int(height * scale), int(width * scale))
    if steps.resize is Resize.SQUASH:
        new = (math.floor(size[0] / fraction), math.floor(size[1] / fraction))
    # Pillow resizes columns first, and rounds to whole levels in between
    across = np.einsum("nw,hwc->hnc", weights(width, new[1], steps.interpolation), pixels)
    across = np.rint(across.clip(0, 255))
    both = np.einsum("nh,hwc->nwc", weights(height, new[0], steps.interpolation), across)
    top, left = (round((side - wanted) / 2) for side, wanted in zip(new, size, strict=True))
    crop = np.rint(both.clip(0, 255))[top : top + size[0], left : left + size[1]]
    scaled = (crop / 255 - np.array(steps.mean)) / np.array(steps.std)
    return np.moveaxis(scaled, 2, 0)


def picture(height: int = 91, width: int = 143, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (9, 12, channels), dtype=np.uint8)
    planes = [Image.fromarray(plane) for plane in np.moveaxis(coarse, 2, 0)]
    return np.stack([np.asarray(plane.resize((width, height))) for plane in planes], axis=-1)


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize("resize", [Resize.SHORTER, Resize.SQUASH])
@pytest.mark.parametrize("name", PRESETS)
def test_preset_equals_its_arithmetic_within_one_level(
    name: str, resize: Resize, interpolation: Interpolation
) -> None:
    steps = PRESETS[name].changed({"resize": resize, "interpolation": interpolation}, channels=3)
    pixels, level = picture(), 1 / 255 / min(steps.std)
    found = preprocess(Image.fromarray(pixels), 64, steps)
    np.testing.assert_allclose(found, written_out(pixels, (64, 64), steps), atol=1.01 * level)


def test_presets_differ_where_their_training_does() -> None:
    inputs = [preprocess(Image.fromarray(picture()), 64, steps) for steps in PRESETS.values()]
    distances = [np.abs(a - b).max() for i, a in enumerate(inputs) for b in inputs[:i]]
    assert min(distances) > 0.1


@pytest.mark.parametrize(
    ("size", "rule", "expected"),
    [
        ((64, 64), {}, (109, 71)),  # floor(64 / 0.9) and in proportion
        ((64, 64), {"crop_fraction": 1.0}, (98, 64)),
        ((64, 64), {"resize_to": 80}, (123, 80)),
        ((64, 64), {"resize": "squash"}, (64, 64)),
        ((64, 64), {"resize": "squash", "crop_fraction": 0.8}, (80, 80)),
        ((32, 128), {"crop_fraction": None}, (128, 83)),  # covers: the width decides
        ((64, 48), {"crop_fraction": None}, (98, 64)),
        ((64, 64), {"resize": "none", "crop_fraction": 1.0}, (140, 91)),
    ],
)
def test_resized_size(
    size: tuple[int, int], rule: dict[str, Any], expected: tuple[int, int]
) -> None:
    steps = Preparation().changed(rule, channels=3, size=size)
    assert steps.resized_size(140, 91) == expected  # width, height
    assert resize_and_crop(Image.fromarray(picture()), steps).shape == (*size, 3)


def test_resize_none_takes_pictures_of_the_models_size_only() -> None:
    steps = Preparation().changed({"resize": "none"}, channels=3, size=(64, 48))
    exact = picture(64, 48)
    np.testing.assert_array_equal(resize_and_crop(Image.fromarray(exact), steps), exact)
    small = Preparation().changed({"resize_to": 40}, channels=3, size=(64, 64))
    for refusing, size, message in (
        (steps, (65, 48), r"48x65 pixels .*; expected 48x64"),
        (small, (91, 143), "expected at least 64x64"),
    ):
        with pytest.raises(ImageError, match=message):
            resize_and_crop(Image.fromarray(picture(*size)), refusing)


def test_grey_is_one_channel() -> None:
    steps = Preparation().fitted(1, (64, 64))
    assert (steps.mean, steps.std) == ((0.449,), (0.226,))
    grey = Image.fromarray(picture()).convert("L")
    colours = preprocess(Image.fromarray(picture()), 64, steps)
    assert colours.shape == (1, 64, 64)
    np.testing.assert_array_equal(colours, preprocess(grey.convert("RGB"), 64, steps))


def test_arrays_may_have_any_channels() -> None:
    steps = Preparation().fitted(13, (32, 32))
    pixels = picture(channels=13)
    found = preprocess(pixels, 32, steps)
    alone = preprocess(pixels[..., 4:5], 32, Preparation().fitted(1, (32, 32)))
    np.testing.assert_array_equal(found[4:5], alone)
    with pytest.raises(ImageError, match="13 channels"):
        preprocess(Image.fromarray(picture()), 32, steps)
    with pytest.raises(ImageError, match=r"\(height, width, 13\) uint8"):
        preprocess(picture(), 32, steps)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_pixels_of_undoes_normalise(color: str, scale: float) -> None:
    values = {"color": color, "scale": scale, "mean": [123.7, 116.3, 103.5], "std": [58.4, 57, 57]}
    if scale == 255:
        del values["mean"], values["std"]
    steps = Preparation().changed(values, channels=3)
    pixels = picture()
    planes = steps.normalise(pixels)
    np.testing.assert_array_equal(steps.pixels_of(planes), pixels)
    first = pixels[..., 2 if color == "bgr" else 0] / scale
    expected = (first - steps.mean[0]) / steps.std[0]
    np.testing.assert_allclose(planes[0], expected, atol=2e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"crop_fraction": 0.9, "resize_to": 248}, "give one"),
        ({"crop_fraction": 1.5}, "at most 1"),
        ({"mean": [0.5]}, "expected 3, one for each channel"),
        ({"std": [0.2, 0.2, 0]}, "above 0"),
        ({"std": [0.2, 0.2, math.nan]}, "a number for each channel"),
        ({"resize": "longer"}, "shorter or squash or none"),
        ({"interpolation": "cubic"}, "bicubic or bilinear"),
        ({"color": "yuv"}, "rgb or bgr"),
        ({"bits": 11}, "8, 10, 12"),
        ({"exif": 1}, "true or false"),
        ({"scale": 0}, "above 0"),
        ({"resize": "none", "resize_to": 3}, "leave resize_to out"),
    ],
)
def test_values_that_fit_no_picture(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Preparation().changed(values, channels=3)


# -- files ---------------------------------------------------------------------------------------

MMPRETRAIN = """
_base_ = ['../_base_/models/t2t-vit-t-14.py']
data_preprocessor = dict(num_classes=1000, mean=[123.675, 116.28, 103.53],
                         std=[58.395, 57.12, 57.375], to_rgb=True)
bgr_mean = data_preprocessor['mean'][::-1]
test_pipeline = [dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=248, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224), dict(type='PackInputs')]
import os; os.abort()
"""


# deep, long, and short texts whose values are: 4 ** 40 numbers in the last but one
MALFORMED = (
    "x = (",
    "x = 1\0",
    "x = " + "-" * 100_000 + "1",
    "x = " + "(" * 5_000 + ")" * 5_000,
    "x = [" + "1, " * 400_000 + "]",
    "a0 = [1]\n" + "".join(f"a{n + 1} = [a{n}, a{n}, a{n}, a{n}]\n" for n in range(40)),
    "img_norm_cfg = dict(mean=[1], std=[1])\ntest_pipeline = [dict(type='Resize', scale=[])]",
)


def _written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_timm_config(tmp_path: Path) -> None:
    cfg = {
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "crop_pct": 0.95,
        "interpolation": "bilinear", "crop_mode": "squash", "input_size": [3, 224, 224],
    }  # fmt: skip
    path = _written(tmp_path / "config.json", {"architecture": "t2t_vit_7", "pretrained_cfg": cfg})
    found = preparation_from_file(path, 3)
    assert found == Preparation(
        Resize.SQUASH, 0.95, None, Interpolation.BILINEAR, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)
    )
    _written(tmp_path / "model.safetensors", "")
    assert preparation_beside(tmp_path / "model.safetensors", 3) == (found, path.name)
    assert preparation_beside(tmp_path, 3) == (found, path.name)


def test_transformers_config(tmp_path: Path) -> None:
    values = {
        "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 256},
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3,
        "do_rescale": True, "rescale_factor": 1 / 255,
    }  # fmt: skip
    found = preparation_from_file(_written(tmp_path / "p.json", values), 3)
    assert found == Preparation(crop_fraction=None, resize_to=256, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_mmpretrain_config_is_parsed_and_not_run(tmp_path: Path) -> None:
    found = preparation_from_file(_written(tmp_path / "c.py", MMPRETRAIN), 3)
    assert (found.resize_to, found.scale, found.color.value) == (248, 255.0, "rgb")
    ours = preprocess(Image.fromarray(picture(300, 400)), 224)
    theirs = preprocess(Image.fromarray(picture(300, 400)), 224, found)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)  # released statistics, times 255


def test_own_file(tmp_path: Path) -> None:
    path = _written(tmp_path / "p.toml", 'preset = "cifar"\nresize = "squash"\nbits = 12\n')
    found = preparation_from_file(path, 3)
    assert (found.mean, found.resize, found.bits) == (PRESETS["cifar"].mean, Resize.SQUASH, 12)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.toml", "means = [1]", "did you mean 'mean'"),
        ("p.toml", 'preset = "vit"', "expected imagenet, cifar, inception"),
        ("p.toml", "mean = ", "no readable preparation"),
        ("p.json", {"hidden_size": 3}, "says nothing of how pictures are prepared"),
        ("p.json", "{", "no readable preparation"),
        ("p.json", {"mean": [0] * 3, "std": [1] * 3, "crop_mode": "border"}, "'border'"),
        ("p.json", {"image_mean": [0] * 3, "image_std": [1] * 3, "resample": []}, "no readable"),
        *(
            (f"p{index}.py", text, "no readable preparation")
            for index, text in enumerate(MALFORMED)
        ),
        ("absent.toml", None, "cannot read"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: object, words: str) -> None:
    if content is not None:
        _written(tmp_path / name, content)
    with pytest.raises(UsageError, match=words):
        preparation_from_file(tmp_path / name, 3)


def test_unrelated_files_beside_weights_are_left_alone(tmp_path: Path) -> None:
    _written(tmp_path / "config.json", {"hidden_size": 3})
    _written(tmp_path / "train.py", "import torch")
    assert preparation_beside(tmp_path / "m.pth", 3) is None


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_config_beside_weights_or_in_them_is_said(tmp_path: Path, text: str) -> None:
    _written(tmp_path / "t14.py", text)
    if "data_preprocessor" in text or "img_norm_cfg" in text:
        with pytest.raises(UsageError, match="in a form that cannot be read"):
            preparation_beside(tmp_path / "m.pth", 1)
    else:  # any program
        assert preparation_beside(tmp_path / "m.pth", 1) is None
    found = _chosen(trained_with=text, channels=1)
    assert found.source.startswith("default, since the configuration in the checkpoint's meta")
    assert found.preparation.usual


def _chosen(channels: int = 3, **given: Any) -> ChosenPreparation:
    options: dict[str, Any] = {"mean": given.pop("mean", None)}
    known = {"weights": None, "trained_with": None} | given
    return choose_preparation(None, options, **known, channels=channels, size=(224, 224))


def test_mean_and_std_are_of_values_up_to_one_whatever_the_rest_is_of(tmp_path: Path) -> None:
    own = _written(tmp_path / "p.toml", "scale = 1\nmean = [120, 120, 120]\nstd = [60, 60, 60]\n")
    options: dict[str, Any] = {"mean": (0.5, 0.4, 0.3)}
    of_file = choose_preparation(
        own, options, weights=None, trained_with=None, channels=3, size=(224, 224)
    )
    for found in (_chosen(trained_with=MMPRETRAIN, **options), of_file):
        steps = found.preparation
        assert (steps.mean, steps.scale) == ((0.5, 0.4, 0.3), 255)
        assert 0.2 < steps.std[0] < 0.3


def test_what_a_config_leaves_to_its_base_is_the_released_models() -> None:
    norm = "dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"
    (of_mmengine, of_mmcls) = (
        _chosen(trained_with=f"{name} = {norm})") for name in ("data_preprocessor", "img_norm_cfg")
    )
    assert of_mmengine.preparation.color is ColorOrder.BGR  # unless to_rgb
    assert of_mmcls.preparation.color is ColorOrder.RGB
    for found in (of_mmengine, of_mmcls):
        assert (found.preparation.resize, found.preparation.crop_fraction) == (Resize.SHORTER, 0.9)
        assert found.source == "the checkpoint's meta"
    resized = f"data_preprocessor = {norm})\ntest_pipeline = [dict(type='ResizeEdge', scale=256)]"
    assert "where OpenCV resized, without the antialiasing" in _chosen(trained_with=resized).source
    assert "OpenCV" not in _chosen(trained_with=MMPRETRAIN).source  # it names Pillow
