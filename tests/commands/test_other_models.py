"""Models that people trained otherwise than the released ones, the whole way: small, on one engine.

Each is shown pictures as in its training: what `predict` says is held against float64 evaluation of
the same weights on inputs that the test makes by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from natural import write_calibration_crops
from PIL import Image

from t2t_deploy._optional import is_installed
from t2t_deploy.commands import (
    build_engine,
    calibrate_onnx,
    export_onnx,
    load_session,
    package_artifact,
    predict_images,
    quantize_onnx,
    verify_artifacts,
)
from t2t_deploy.model import (
    ModelConfig,
    ModelOutput,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)
from t2t_deploy.serving import PredictedImage
from t2t_deploy.types import Tail
from t2t_deploy.workspace import Artifact

from ..cli.command import manifest_of

SMALL = ModelConfig(
    "small",
    TokensType.PERFORMER,
    64,
    2,
    2,
    mlp_ratio=2.0,
    token_dim=32,
    image_size=32,
    num_classes=4,
)
DIMENSIONS = "embed_dim = 64\ndepth = 2\nnum_heads = 2\nmlp_ratio = 2.0\ntoken_dim = 32\n"
Weights = dict[str, torch.Tensor]


IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def _scaled(image: Image.Image, mean: Any, std: Any) -> np.ndarray:
    """ToTensor and Normalize of values to 255, (channels, height, width) float64."""
    pixels = np.atleast_3d(np.asarray(image, np.float64))
    return np.asarray((pixels - mean) / std).transpose(2, 0, 1)


def _cifar(image: Image.Image) -> np.ndarray:
    """Resize(32) and the statistics of the authors' transfer_learning.py, for square pictures."""
    small = image.resize((32, 32), Image.Resampling.BILINEAR)
    return _scaled(small, *255 * np.array([[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]]))


def _grey(image: Image.Image) -> np.ndarray:
    """Grayscale, Resize(32), Normalize(0.5, 0.25)."""
    small = image.convert("L").resize((32, 32), Image.Resampling.BICUBIC)
    return _scaled(small, 255 * 0.5, 255 * 0.25)


def _wide(image: Image.Image) -> np.ndarray:
    """Both sides to 64 x 96 (height x width), ImageNet's statistics."""
    return _scaled(image.resize((96, 64), Image.Resampling.BICUBIC), *IMAGENET)


def _mmpretrain(image: Image.Image) -> np.ndarray:
    """ResizeEdge(36), CenterCrop(32) and data_preprocessor of values to 255."""
    small = image.resize((36, 36), Image.Resampling.BICUBIC)
    return _scaled(small.crop((2, 2, 34, 34)), *IMAGENET)


def _mmpretrain_names(weights: Weights) -> dict[str, Any]:
    names = {
        "blocks.": "encoder.",
        "mlp.fc1.": "ffn.layers.0.0.",
        "mlp.fc2.": "ffn.layers.1.",
        ".norm1.": ".ln1.",
        ".norm2.": ".ln2.",
    }
    renamed = {}
    for key, value in weights.items():
        new = key
        for old, other in names.items():
            new = new.replace(old, other)
        renamed["head.layers." + key if key.startswith("head.") else "backbone." + new] = value
    pipeline = (
        "test_pipeline = [dict(type='ResizeEdge', scale=36, edge='short', interpolation='bicubic'),"
        " dict(type='CenterCrop', crop_size=32)]\n"
        "data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],"
        " to_rgb=True)\n"
    )
    return {"state_dict": renamed, "meta": {"mmengine_version": "0.10.7", "cfg": pipeline}}


@dataclass(frozen=True)
class Case:
    """A model, its file, the options that say how it was trained, and its inputs written out."""

    config: ModelConfig
    saved: Callable[[Weights], Any]
    options: dict[str, Any]
    prepared: Callable[[Image.Image], np.ndarray]


CASES = {
    "cifar": Case(
        SMALL,
        lambda w: {"net": {f"module.{k}": v for k, v in w.items()}, "acc": 98.3, "epoch": 59},
        {"preparation": "cifar"},
        _cifar,
    ),
    "mmpretrain": Case(
        dataclasses.replace(SMALL, tokens_type=TokensType.TRANSFORMER),
        _mmpretrain_names,
        {"qk_scale": "released"},
        _mmpretrain,
    ),
    "grey": Case(
        SMALL.with_(in_chans=1),
        lambda w: w,
        {"crop_fraction": 1.0, "mean": [0.5], "std": [0.25]},
        _grey,
    ),
    "wide": Case(
        SMALL.with_(image_size=(64, 96)),
        lambda w: w,
        {"image_size": "64x96", "resize": "squash"},
        _wide,
    ),
    "several labels": Case(
        SMALL.with_(num_classes=3),
        lambda w: {"model_state_dict": w, "optimizer_state_dict": {}},
        {"tail": Tail.SIGMOID, "preparation": "cifar"},
        _cifar,
    ),
    "one output": Case(SMALL.with_(num_classes=1), lambda w: w, {"preparation": "cifar"}, _cifar),
    "headless": Case(
        SMALL.headless(ModelOutput.EMBEDDING),
        lambda w: {"state_dict": w},
        {"tail": Tail.EMBEDDING, "preparation": "cifar"},
        _cifar,
    ),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calibration_crops(tmp_path_factory.mktemp("photographs"), 12)


def _expected(case: Case, weights: Weights, paths: list[Path]) -> np.ndarray:
    model = reference_from_state_dict({k: v.double() for k, v in weights.items()}, case.config)
    inputs = np.stack([case.prepared(Image.open(path)) for path in paths])
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(inputs)).numpy())


@pytest.fixture(params=CASES)
def trained(request: pytest.FixtureRequest) -> tuple[Case, Weights, Artifact]:
    case = CASES[request.param]
    weights = random_state_dict(case.config, seed=4)
    torch.save(case.saved(weights), "trained.pth")
    # dimensions alone: sizes, channels and head are read from the file
    dims = f'tokens_type = "{case.config.tokens_type.value}"\n{DIMENSIONS}'
    Path("small.toml").write_text(dims)
    made = export_onnx(checkpoint="trained.pth", config="small.toml", batch=1, **case.options)
    return case, weights, made


def test_the_whole_way(trained: tuple[Case, Weights, Artifact], photographs: Path) -> None:
    case, weights, made = trained
    paths = sorted(photographs.iterdir())[-2:]
    expected = _expected(case, weights, paths)
    manifest = made.require_manifest()
    assert manifest_of(made.path)["manifest_version"] == 2 or case.prepared is _mmpretrain
    if classes := case.config.num_classes:
        predicted: list[PredictedImage] = []
        predict_images(made.path, paths, receive=predicted.append, top=classes)
        shares = np.exp(expected - expected.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        if classes < 4:  # each output by itself
            shares = 1 / (1 + np.exp(-expected))
        for picture, own in zip(predicted, shares, strict=True):
            found = {ranked.index: ranked.probability for ranked in picture.top}
            np.testing.assert_allclose([found[i] for i in range(classes)], own, atol=2e-6)
    else:
        with load_session(made.path) as session:
            inputs = [case.prepared(Image.open(path)).astype(np.float32)[None] for path in paths]
            found_rows = [session.run({"image": one})["embedding"][0] for one in inputs]
        np.testing.assert_allclose(found_rows, expected, atol=2e-5)
    # ranges of a transformer of random weights are wide: what a picture has is taken there
    static = case.config.tokens_type is TokensType.PERFORMER
    how: dict[str, Any] = {"images": photographs} if static else {"mode": "dynamic"}
    small = quantize_onnx(made.path, **how, speed=False)
    assert small.require_manifest().preparation == manifest.preparation
    results = verify_artifacts([made.path, small.path], images=photographs)
    assert [one.verification.status.value for one in results] == ["passed", "passed"]
    package = package_artifact(small.path, triton="models")
    steps = (package.folders[1] / "config.pbtxt").read_text()
    assert f'\\"mean\\": [{manifest.preparation.mean[0]}' in steps
    if is_installed("tensorrt_rtx"):
        engine = build_engine(made.path, precision="fp16", sm="86")
        assert engine.require_manifest().preparation == manifest.preparation


def test_ranges_belong_to_one_preparation(photographs: Path) -> None:
    torch.save(random_state_dict(SMALL), "trained.pth")
    Path("small.toml").write_text(f'tokens_type = "performer"\n{DIMENSIONS}')
    ranges = []
    for name in ("cifar", "imagenet", "cifar"):
        made = export_onnx(checkpoint="trained.pth", config="small.toml", preparation=name)
        ranges.append(calibrate_onnx(made.path, images=photographs))
    first, other, again = ranges
    assert (first.reused, other.reused, again.reused) == (False, False, True)
    assert again.path == first.path != other.path
    assert first.calibration.key.graph_sha256 == other.calibration.key.graph_sha256
    assert first.calibration.largest != other.calibration.largest
