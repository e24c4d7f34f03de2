"""Every variant's 16-bit graph, every node, every kind of picture: finite and near float64.

A graph is evaluated node by node, computed in float32 and rounded to 16 bits after every node, so
that nothing a runtime hides stays hidden. No number may be infinite or NaN anywhere; the logits are
compared with the float64 reference on the original weights.

Weights are seeded: as drawn, and with the performers' keys and queries aligned to two rows of their
w, so that features as the paper writes them pass 3e5. Both go through every variant with a
performer. The t_ variants have none, and exponentiate in softmaxes only: they are taken as drawn.
The gains 3, 5 and 10 go through variant 7 alone: its two performers have the shapes and the code of
every other's. At 5 and 10 the features vanish, so that only epsilon is met; at 3 attention counts
on some pictures.

Largest errors measured: fp16 2.4e-3 and bf16 2.0e-2, both of dense, aligned, in the CPU's form;
of all other variants 2.1e-3 (t_24) and 1.7e-2 (t_19).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from t2t_deploy.export import DeployT2TViT, Strategies, choose_strategies, onnx_from_deploy
from t2t_deploy.export import _deploy as deploy_module
from t2t_deploy.export._layers import constant
from t2t_deploy.export._soft_split import Products
from t2t_deploy.export._strategies import PerformerForm
from t2t_deploy.export._token_block import PlainPerformer, half_norm, pieces, scaled
from t2t_deploy.model import (
    PERFORMER_EPSILON,
    VARIANTS,
    PerformerBlock,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME, TOLERANCES, Precision, Target
from t2t_deploy.verify._nodewise_session import Evaluation, NodeKernels, rounded
from t2t_deploy.verify._typed_graph import typed_graph_from_onnx

from ..float64 import errors, every_picture, in_float64, logits

pytestmark = pytest.mark.slow

BATCH = 5  # of the float64 reference: attention among 3,136 tokens then takes 400 MB
# Tighter than the contract's 5e-3 and 4e-2, with room above what is measured for other processors.
LIMITS = {Precision.FP16: 3e-3, Precision.BF16: 2.5e-2}
PERFORMERS = tuple(
    name for name, v in VARIANTS.items() if v.config.tokens_type is TokensType.PERFORMER
)

Weights = dict[str, Tensor]


# -- weights ---------------------------------------------------------------------------------------


def gained(state: Weights, gain: float) -> Weights:
    """Every performer's kqv, weights and biases, ``gain`` times as large."""
    return {key: t * gain if ".kqv." in key else t for key, t in state.items()}


def aligned(state: Weights) -> Weights:
    """Keys near one row of w, queries near another: plain features reach exp(|w|^2 / 2)."""
    changed = dict(state)
    for name in ("attention1", "attention2"):
        prefix = f"tokens_to_token.{name}"
        w = state[f"{prefix}.w"]
        width = w.shape[1]
        weight, bias = (state[f"{prefix}.kqv.{kind}"].clone() for kind in ("weight", "bias"))
        weight[: 2 * width] *= 0.3
        bias[:width], bias[width : 2 * width] = w[0], w[1]
        changed |= {f"{prefix}.kqv.weight": weight, f"{prefix}.kqv.bias": bias}
    return changed


def without_attention(state: Weights) -> Weights:
    """What the performers attend to replaced by zeros."""
    cut = {f"tokens_to_token.attention{i}.proj.weight" for i in (1, 2)}
    assert cut <= state.keys()
    return {key: torch.zeros_like(t) if key in cut else t for key, t in state.items()}


@dataclass(frozen=True, slots=True)
class Stress:
    """What is done to seeded weights, and on how many pictures attention still changes the logits.

    covers: "all" or "some" pictures; "epsilon" alone, where denominators are nothing else.
    """

    change: Callable[[Weights], Weights]
    covers: str


STRESSES = {
    "as drawn": Stress(lambda state: state, "all"),
    "aligned": Stress(aligned, "all"),
    "gain 3": Stress(lambda state: gained(state, 3), "some"),
    "gain 5": Stress(lambda state: gained(state, 5), "epsilon"),
    "gain 10": Stress(lambda state: gained(state, 10), "epsilon"),
}
STRESSED = (
    *((variant, "as drawn") for variant in VARIANTS),
    *((variant, "aligned") for variant in PERFORMERS),
    *(("7", name) for name in STRESSES if name.startswith("gain")),
)


@functools.lru_cache(maxsize=2)
def weights_of(variant: str, stress: str) -> Weights:
    return STRESSES[stress].change(random_state_dict(VARIANTS[variant].config))


# -- pictures and logits ---------------------------------------------------------------------------


def float64_logits(variant: str, state: Weights) -> np.ndarray:
    reference = in_float64(state, VARIANTS[variant].config)
    return logits(reference, torch.from_numpy(every_picture(224).pictures).double(), batch=BATCH)


@functools.lru_cache(maxsize=2)
def wanted_logits(variant: str, stress: str) -> np.ndarray:
    return float64_logits(variant, weights_of(variant, stress))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a graph on all pictures: its error on each, and the nodes that are not finite, in order.

    dtypes: of the float tensors. largest: the largest number an Exp computes, before rounding.
    """

    errors: Mapping[str, float]
    non_finite: tuple[str, ...]
    dtypes: frozenset[str]
    largest_exp: float

    def complaints(self, limit: float) -> dict[str, float]:
        # Not `error > limit`: NaN is to be caught.
        return {name: error for name, error in self.errors.items() if not error <= limit}


def outcome(model: onnx.ModelProto, wanted: np.ndarray) -> Outcome:
    graph = typed_graph_from_onnx(model)
    kernels = NodeKernels(graph)
    bad: dict[str, None] = {}
    dtypes, exps, results = set(), [0.0], []
    for picture in every_picture(224).pictures:
        run = Evaluation(graph, kernels, np.float32)
        run.start({INPUT_NAME: picture[None]})
        for step in graph.steps:
            computed = run.compute(step)
            kept = rounded(step, computed)
            if step.op == "Exp":
                exps.append(float(computed[0].max()))
            for form, values in zip(step.formats, kept, strict=True):
                if form is not None:
                    dtypes.add(form.name)
                    if not np.isfinite(values).all():
                        bad[step.name] = None
            run.keep(step, kept)
        results.append(run.results()[OUTPUT_NAME])
    found = errors(np.concatenate(results), wanted)
    return Outcome(
        dict(zip(every_picture(224).names, found.tolist(), strict=True)),
        tuple(bad),
        frozenset(dtypes),
        max(exps),
    )


def outcome_of(
    variant: str,
    stress: str,
    strategies: Strategies,
    precision: Precision,
    form: type[DeployT2TViT] = DeployT2TViT,
) -> Outcome:
    config = VARIANTS[variant].config
    reference = reference_from_state_dict(weights_of(variant, stress), config)
    # A trace runs the model in 16 bits, which torch does slowly on a CPU: one picture, not two.
    model = onnx_from_deploy(form(reference, strategies, precision), batch=1)
    return outcome(model, wanted_logits(variant, stress))


def targets_of(variant: str, stress: str) -> tuple[Target, ...]:
    """Those whose 16-bit graphs differ, each once at least: 16 bits on a CPU are the rarer case.

    A performer has no queries to group for TensorRT.
    """
    if variant not in PERFORMERS:
        return Target.PORTABLE, Target.TENSORRT, Target.CPU
    if stress == "as drawn":
        return (Target.PORTABLE,)
    return Target.PORTABLE, Target.CPU


# -- what is deployed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "stress", "target"),
    [(*case, target) for case in STRESSED for target in targets_of(*case)],
)
def test_16_bits_are_finite_and_near_float64(variant: str, stress: str, target: Target) -> None:
    for precision, limit in LIMITS.items():
        found = outcome_of(variant, stress, choose_strategies(target), precision)
        assert len(found.dtypes) == 2 and "float32" in found.dtypes
        assert found.non_finite == ()
        assert found.complaints(limit) == {}


@pytest.mark.parametrize(
    ("variant", "stress"), [case for case in STRESSED if case[0] in PERFORMERS]
)
def test_what_each_stress_covers(variant: str, stress: str) -> None:
    """Without attention the logits change, by more than any tolerance; or epsilon alone is met."""
    wanted = wanted_logits(variant, stress)
    cut = float64_logits(variant, without_attention(weights_of(variant, stress)))
    changed = errors(cut, wanted)
    least, most = float(changed.min()), float(changed.max())
    if most < 1e-3:
        covers = "epsilon"
    else:
        assert most > 0.1
        covers = "all" if least > 0.1 else "some"
    assert covers == STRESSES[stress].covers


def test_all_pictures_are_there() -> None:
    assert every_picture(224).names == (
        *("noise 0", "noise 1", "china", "flower", "astronaut", "chelsea", "coffee", "rocket"),
        *("black", "white", "grey", "cream", "half-and-half", "gradient", "checkerboard"),
    )


# -- what is not -----------------------------------------------------------------------------------


class PlainInHalf(PlainPerformer):
    """The paper's formula with features of 16 bits."""

    def __init__(self, block: PerformerBlock, dtype: torch.dtype) -> None:
        super().__init__(block, dtype)
        self.w = constant(block.w, dtype)
        self.num_features = block.num_features

    def forward(self, products: Products) -> Tensor:
        (kqv,) = products.values
        k, q, v = pieces(scaled(kqv, products.rstd) + self.bias, self.token_dim)
        root = math.sqrt(self.num_features)
        kp, qp = (torch.exp(u @ self.w.T - half_norm(u)) / root for u in (k, q))
        denominator = qp @ kp.sum(dim=1, keepdim=True).transpose(1, 2)
        attention = (qp @ (kp.transpose(1, 2) @ v)) / (denominator + PERFORMER_EPSILON)
        result: Tensor = self.tail(v + self.proj(attention))
        return result


class PictureInHalf(DeployT2TViT):
    """The picture rounded before its first LayerNorm."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return super().forward(x.to(self.position.dtype).float())


PLAIN = dataclasses.replace(choose_strategies(Target.PORTABLE), performer=PerformerForm.PLAIN)
FP16_TOLERANCE = TOLERANCES[Precision.FP16].rel_l2


def test_plain_features_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy_module, "PlainPerformer", PlainInHalf)
    found = outcome_of("7", "aligned", PLAIN, Precision.FP16)
    assert found.largest_exp > 3e5 * math.sqrt(32)
    assert found.non_finite[0].endswith("/Exp")
    assert found.complaints(FP16_TOLERANCE).keys() == set(every_picture(224).names)


@pytest.mark.parametrize("precision", LIMITS)
def test_a_picture_in_16_bits_loses_flat_regions(precision: Precision) -> None:
    """Before the first LayerNorm: cream's channels differ in bits that are gone then."""
    strategies = choose_strategies(Target.PORTABLE)
    found = outcome_of("7", "as drawn", strategies, precision, form=PictureInHalf)
    assert found.non_finite == ()
    broken = found.complaints(TOLERANCES[precision].rel_l2)
    assert "cream" in broken and "noise 0" not in broken
