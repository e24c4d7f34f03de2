"""Trained models: what 16-bit exports cost in accuracy on handwritten digits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digits import digits_split
from PIL import Image

from t2t_deploy._preparation import USUAL
from t2t_deploy.commands import evaluate_artifacts, export_onnx
from t2t_deploy.commands._evaluate import EvaluatedArtifact
from t2t_deploy.model import config_from_toml, load_checkpoint
from t2t_deploy.pictures import labelled_set_from_folder
from t2t_deploy.types import Precision, Status

from ..trained import FOLDER, KINDS

LEAST_RIGHT = 588  # of 600
MOST_LOST = 1

Evaluate = Callable[..., tuple[EvaluatedArtifact, ...]]


@pytest.fixture
def evaluate(digit_pictures: Path) -> Evaluate:
    """Export a trained model in some precisions and evaluate them on the test part."""

    def run(kind: str, *precisions: Precision) -> tuple[EvaluatedArtifact, ...]:
        config, weights = FOLDER / f"{kind}.toml", FOLDER / f"{kind}.pth.tar"
        model: dict[str, Any] = {"config": config, "checkpoint": weights}
        paths = [export_onnx(**model, precision=precision).path for precision in precisions]
        return evaluate_artifacts(paths, images=digit_pictures / "test", batch=50).results

    return run


def right(share: float) -> int:
    return round(share * 600)


def test_the_split_is_fixed_and_no_picture_is_in_two_parts() -> None:
    split = digits_split()
    parts = (split.train, split.calibration, split.test)
    assert [len(part) for part in parts] == [1097, 100, 600]
    everything = np.concatenate([part.indices for part in parts])
    assert sorted(everything.tolist()) == list(range(1797))
    # not even a copy under another number
    contents = [{pixels.tobytes() for pixels in part.pixels} for part in parts]
    assert len(set.union(*contents)) == sum(map(len, contents)) == 1797
    digest = hashlib.sha256(split.test.indices.astype("<i8").tobytes()).hexdigest()
    assert digest.startswith("ea73c85318616b95")
    assert min(np.bincount(split.test.labels)) >= 45


def test_the_files_are_the_pictures(digit_pictures: Path) -> None:
    part = digits_split().test
    found = labelled_set_from_folder(digit_pictures / "test")
    assert found.folders == tuple("0123456789") and len(found.paths) == 600
    prepared = USUAL.fitted(3, (32, 32))
    wanted = dict(zip(part.indices.tolist(), part.inputs(32), strict=True))
    for batch, paths in zip(found.readable_batches(prepared, 600), [found.paths], strict=True):
        for path, picture in zip(paths, batch.pictures, strict=True):
            np.testing.assert_array_equal(picture, wanted[int(path.stem)])
    with Image.open(found.paths[0]) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (10, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_are_small_and_of_the_released_layout(kind: str) -> None:
    path = FOLDER / f"{kind}.pth.tar"
    assert path.stat().st_size < 2_000_000
    checkpoint = load_checkpoint(path, config=config_from_toml(FOLDER / f"{kind}.toml"))
    assert checkpoint.container == "state_dict_ema"


def check_accuracy(result: Any) -> None:
    assert result.status is Status.PASSED
    assert result.accuracy.images == 600
    assert right(result.reference.top1) >= LEAST_RIGHT
    assert right(result.accuracy.top1) >= right(result.reference.top1) - MOST_LOST
    assert right(result.accuracy.agreement) >= 600 - MOST_LOST


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_exports(kind: str, evaluate: Evaluate) -> None:
    for result in evaluate(kind, Precision.FP32, Precision.FP16):
        check_accuracy(result)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_of_bf16(kind: str, evaluate: Evaluate) -> None:
    """Node by node: no runtime on a CPU multiplies in bf16."""
    (result,) = evaluate(kind, Precision.BF16)
    assert result.reason == "evaluated node by node"
    check_accuracy(result)
