"""What a session is given is checked before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

from t2t_deploy.errors import InputError
from t2t_deploy.runtime import check_feeds, fill_batch
from t2t_deploy.types import TensorSpec

SPECS = (TensorSpec("image", "float32", (None, 3, 4, 4)),)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(value: float) -> None:
    image = np.zeros((2, 3, 4, 4), np.float32)
    image[1, 2, 0, 3] = value
    with pytest.raises(InputError) as raised:
        check_feeds(SPECS, {"image": image})
    assert str(raised.value) == (
        "input 'image' has 1 numbers that are NaN or infinite, the first at (1, 2, 0, 3); expected "
        "finite numbers: check their source"
    )


def test_large_numbers_are_numbers() -> None:
    """Their sum is beyond float32."""
    image = np.full((2, 3, 4, 4), np.finfo(np.float32).max)
    with np.errstate(over="ignore"):
        check_feeds(SPECS, {"image": image})


@pytest.mark.parametrize(("batch", "filled"), [(None, [1, 2]), (1, [1, 2]), (4, [1, 2, 2, 2])])
def test_a_batch_is_filled_with_its_last_picture(batch: int | None, filled: list[int]) -> None:
    assert fill_batch(np.array([1, 2]), batch).tolist() == filled
