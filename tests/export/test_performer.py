"""The performer's forms against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from t2t_deploy.export import _token_block
from t2t_deploy.export._token_block import PlainFeatures, StableFeatures
from t2t_deploy.model import PERFORMER_EPSILON

TOKENS, WIDTH, FEATURES = 49, 16, 8


def exact(k: Tensor, q: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """The paper's attention in float64, epsilon included."""
    k, q, v, w = (t.double() for t in (k, q, v, w))

    def phi(u: Tensor) -> Tensor:
        half_norm = u.square().sum(-1, keepdim=True) / 2
        return torch.exp(u @ w.T - half_norm) / math.sqrt(FEATURES)

    kp, qp = phi(k), phi(q)
    denominator = qp @ kp.sum(1).unsqueeze(-1) + PERFORMER_EPSILON
    return (qp @ (kp.transpose(1, 2) @ v)) / denominator


def drawn(scale: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    k, q, v = (torch.randn(2, TOKENS, WIDTH, generator=stream) for _ in range(3))
    w = torch.randn(FEATURES, WIDTH, generator=stream)
    w *= math.sqrt(FEATURES) / w.norm(dim=1, keepdim=True)
    return k * scale, q * scale, v, w


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


# scale -> largest |a|: 0.3: all near 0; 1: usual; 1.75: denominators come near epsilon.
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.5, 1.75])
@pytest.mark.parametrize("form", [PlainFeatures, StableFeatures])
def test_forms_equal_the_formula(
    form: type[PlainFeatures] | type[StableFeatures], scale: float
) -> None:
    k, q, v, w = drawn(scale)
    found = form(w, TOKENS, torch.float32)(k, q, v)
    assert error(found, exact(k, q, v, w)) < 5e-6


@pytest.mark.parametrize("form", [PlainFeatures, StableFeatures])
def test_epsilon_matters_and_is_kept(
    form: type[PlainFeatures] | type[StableFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this scale dropping epsilon changes the result by more than the forms' rounding."""
    k, q, v, w = drawn(1.75)
    wanted = exact(k, q, v, w)
    monkeypatch.setattr(_token_block, "PERFORMER_EPSILON", 1e-30)
    without = form(w, TOKENS, torch.float32)(k, q, v)
    assert error(without, wanted) > 1e-2


def test_stable_survives_where_plain_overflows_half_precision() -> None:
    """Keys and queries aligned with one feature: plain features leave the range of fp16."""
    k, q, v, w = drawn(0.2)
    k, q = k + 3.4 * w[0] / w[0].norm(), q + 3.4 * w[1] / w[1].norm()
    wanted = exact(k, q, v, w)
    half = [t.half() for t in (k, q, v)]
    plain = PlainFeatures(w, TOKENS, torch.float16)(*half)
    stable = StableFeatures(w, TOKENS, torch.float16)(*half)
    assert not plain.isfinite().all()
    assert stable.isfinite().all()
    assert error(stable, wanted) < 1e-2


def test_one_shift_for_the_whole_picture_would_underflow() -> None:
    """Why the shift is per feature: keys favour one feature, queries another."""
    k, q, v, w = drawn(0.2)
    k, q = k + 9 * w[0] / w[0].norm(), q + 9 * w[1] / w[1].norm()

    class OneShift(StableFeatures):
        def forward(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
            a_k = _token_block.log_features(k, self.w)
            kp = torch.exp(a_k - a_k.amax(dim=(1, 2), keepdim=True))
            a_q = _token_block.log_features(q, self.w)
            qp = torch.exp(a_q - a_q.amax(dim=2, keepdim=True))
            return (qp @ (kp.transpose(1, 2) @ v)) / (qp @ kp.sum(1).unsqueeze(-1))

    half = [t.half() for t in (k, q, v)]
    one_shift = OneShift(w, TOKENS, torch.float16)(*half)
    assert not one_shift.isfinite().all()
    assert StableFeatures(w, TOKENS, torch.float16)(*half).isfinite().all()
