"""A layer's error beside its limits."""

from __future__ import annotations

from t2t_deploy.model import LayerError
from t2t_deploy.types import Precision
from t2t_deploy.verify import ComparedLayer, compared_layer


def compared(rel_l2: float, channel_error: float) -> ComparedLayer:
    """A float32 layer that one rounding moves by 1e-7."""
    error = LayerError("head", 1, rel_l2, 3, channel_error, 1e-7, 1e-7, 0)
    return compared_layer(error, "logits", "cream", Precision.FP32, Precision.FP32)


def test_the_limits_of_a_layer() -> None:
    layer = compared(3e-6, 6e-6)
    # one rounding of the result, and one of a sum of one term
    assert layer.limit == 16 * (1e-7 + 2 * 2.0**-24)
    assert layer.channel_limit == 32 * (1e-7 + 2 * 2.0**-24)
    assert not layer.differs


def test_all_numbers_or_one_channel_may_be_too_far_off() -> None:
    assert compared(4e-6, 6e-6).differs
    layer = compared(2e-6, 8e-6)
    assert layer.differs
    assert layer.words == (
        "tensor logits: relative error 2.0e-06, of channel 3 8.0e-06, at most 7.0e-06 expected"
    )
