from __future__ import annotations

import numpy as np
import pytest

from t2t_deploy.bench._results import FixedBatchError, make_inputs
from t2t_deploy.errors import InputError
from t2t_deploy.types import TensorSpec


def test_free_batch_is_filled_with_standard_normals() -> None:
    feeds = make_inputs([TensorSpec("image", "float32", (None, 3, 64, 64))], batch=8, seed=0)
    image = feeds["image"]
    assert (image.shape, image.dtype) == ((8, 3, 64, 64), np.float32)
    assert abs(float(image.mean())) < 0.02 and abs(float(image.std()) - 1) < 0.02


def test_same_seed_and_shape_give_the_same_numbers_whatever_the_name_and_dtype() -> None:
    wide = make_inputs([TensorSpec("image", "float32", (None, 5))], batch=2, seed=3)["image"]
    half = make_inputs([TensorSpec("x", "float16", (2, 5))], batch=2, seed=3)["x"]
    other = make_inputs([TensorSpec("image", "float32", (None, 5))], batch=2, seed=4)["image"]
    assert np.array_equal(half, wide.astype(np.float16))
    assert not np.array_equal(wide, other)


def test_bytes_for_an_embedded_preprocess() -> None:
    image = make_inputs([TensorSpec("image", "uint8", (None, 32, 32, 3))], batch=1, seed=0)["image"]
    assert (image.dtype, image.min(), image.max()) == (np.uint8, 0, 255)


def test_another_fixed_batch() -> None:
    with pytest.raises(FixedBatchError, match=r"batch fixed to 4; batch 1 was asked.* batch 4"):
        make_inputs([TensorSpec("image", "float32", (4, 3))], batch=1, seed=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("image", "float32", (None, 3, None, None)), "only the batch may be free"),
        (TensorSpec("scale", "float32", ()), "only the batch may be free"),
        (TensorSpec("ids", "int64", (None, 5)), "neither floating point nor uint8"),
    ],
)
def test_inputs_that_cannot_be_filled(spec: TensorSpec, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_inputs([spec], batch=1, seed=0)
