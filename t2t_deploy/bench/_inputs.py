"""The inputs of every case of one shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2t_deploy.errors import InputError
from t2t_deploy.types import TensorSpec


class FixedBatchError(InputError):
    """The model's fixed batch is not the batch to measure."""


def make_inputs(specs: Sequence[TensorSpec], *, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Standard-normal arrays (bytes 0..255 for uint8) for a session's inputs.

    A free first dimension becomes ``batch``. The values depend on seed, position and shape alone,
    never on names or dtypes: every runtime gets the same numbers.
    Raises FixedBatchError for another fixed batch, InputError for an unsupported input.
    """
    return {
        spec.name: _random_array(spec, _shape(spec, batch), [seed, index])
        for index, spec in enumerate(specs)
    }


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    first, *rest = spec.shape or (None,)
    if first is not None and first != batch:
        raise FixedBatchError(
            f"input {spec.name!r} has its batch fixed to {first}; batch {batch} was asked: bench "
            f"with batch {first}, or export with batch dynamic"
        )
    sizes = [size for size in rest if size is not None]
    if not spec.shape or len(sizes) < len(rest):
        raise InputError(
            f"input {spec} is not (batch, fixed sizes...); only the batch may be free to be "
            "measured: export with fixed sizes"
        )
    return (batch, *sizes)


def _random_array(spec: TensorSpec, shape: tuple[int, ...], seed: list[int]) -> np.ndarray:
    rng = np.random.default_rng([*seed, *shape])
    dtype = np.dtype(spec.dtype)
    if dtype == np.uint8:
        return rng.integers(0, 256, size=shape, dtype=np.uint8)
    if dtype.kind != "f":
        raise InputError(
            f"input {spec} is neither floating point nor uint8; only these can be filled: export "
            "with a picture as input"
        )
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
