"""What `compare_strategies` finds of each combination of strategies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2t_deploy.bench import (
    Latency,
    Speedup,
)
from t2t_deploy.export import PerformerForm, SoftSplitForm, Strategies
from t2t_deploy.runtime import DEFAULT_BACKEND
from t2t_deploy.types import Precision, Target

if TYPE_CHECKING:
    pass
    pass

RUNTIME = DEFAULT_BACKEND
"""Of the errors and the latencies."""
ENGINE_SM = "86"
"""Compute capability of the engines."""


@dataclass(frozen=True, slots=True)
class EngineSummary:
    """Figures of an engine at the compared batch, in bytes and counts; see `EngineFigures`."""

    kernels: int
    moved_bytes: int | None
    activation_bytes: int
    fused_attention: int


@dataclass(frozen=True, slots=True)
class ComparedStrategies:
    """One combination, and what its graph costs and loses.

    name: the combination in few words. default: whether it is the target's own. rel_l2,
    rel_l2_flat: largest relative L2 error of one picture's logits against the reference in float64,
    over the standard and the flat pictures. latency_ms, speedup_vs_eager: in ONNX Runtime on the
    CPU; openvino_latency_ms, openvino_speedup_vs_eager: in OpenVINO. engine: of TensorRT-RTX. What
    was not run or failed is None, and ``reason`` says why; a reason may also say how a figure was
    come by.
    """

    name: str
    strategies: Strategies
    default: bool = False
    nodes: int | None = None
    size_bytes: int | None = None
    rel_l2: float | None = None
    rel_l2_flat: float | None = None
    latency_ms: Latency | None = None
    speedup_vs_eager: Speedup | None = None
    openvino_latency_ms: Latency | None = None
    openvino_speedup_vs_eager: Speedup | None = None
    engine: EngineSummary | None = None
    reason: str | None = None

    @property
    def exported(self) -> bool:
        """Whether the combination became a file."""
        return self.size_bytes is not None

    @property
    def hazards(self) -> tuple[str, ...]:
        """Known ways in which the combination loses numbers, one line each."""
        return self.strategies.hazards()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: a row of ``export --compare``."""
        values = dataclasses.asdict(self)
        del values["strategies"]
        return {**self.strategies.to_dict(), **values, "hazards": list(self.hazards)}

    def because(self, reason: str) -> ComparedStrategies:
        """The same with one more reason."""
        joined = reason if self.reason is None else f"{self.reason}; {reason}"
        return dataclasses.replace(self, reason=joined)


@dataclass(frozen=True, slots=True)
class StrategyComparison:
    """All combinations of one model, precision and target.

    batch: what latencies and engines are of: the graph's fixed batch, 1 where it is free.
    token_attention: the form of the token blocks, which tells whether ``performer`` or
    ``query_groups`` makes a difference. engine_sm: the compute capability of the engines.
    """

    variant: str
    precision: Precision
    target: Target
    batch: int
    token_attention: str
    rows: tuple[ComparedStrategies, ...]
    engine_sm: str = ENGINE_SM

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of ``export --compare``."""
        return {
            "variant": self.variant,
            "precision": self.precision.value,
            "target": self.target.value,
            "batch": self.batch,
            "token_attention": self.token_attention,
            "engine_sm": self.engine_sm,
            "rows": [row.to_dict() for row in self.rows],
        }


_U, _F, _C = SoftSplitForm.UNFOLD, SoftSplitForm.FOLDED, SoftSplitForm.CENTRED
_SOFT_SPLITS = (
    *((form,) * 3 for form in (_U, SoftSplitForm.CONV, _F, _C)),
    (SoftSplitForm.SHIFTED, _U, _U),
    (_C, _U, _U),
    (_C, _F, _F),
    (_U, _F, _F),
)


def strategies_to_compare(default: Strategies, *, performer: bool) -> tuple[Strategies, ...]:
    """The combinations worth seeing beside a target's default, which is one of them.

    performer: the token blocks are performers, whose other forms are compared on the default's soft
    splits; else it is the number of query groups that is.
    """
    splits = dict.fromkeys((*_SOFT_SPLITS, default.soft_split))
    found = [dataclasses.replace(default, soft_split=split) for split in splits]
    if performer:
        found += [dataclasses.replace(default, performer=form) for form in PerformerForm]
    else:
        found += [dataclasses.replace(default, query_groups=groups) for groups in (1, 2)]
    return tuple(dict.fromkeys(found))


def strategy_name(strategies: Strategies, *, performer: bool) -> str:
    """A combination in few words, of them only what makes a difference to the token blocks."""
    groups = strategies.query_groups
    blocks = f"{groups} query group{'s' if groups > 1 else ''}"
    return f"{split_name(strategies)}, {strategies.performer.value if performer else blocks}"


def split_name(strategies: Strategies) -> str:
    """The soft splits as ``--soft-split`` takes them; one form for all three stands once."""
    forms = [form.value for form in strategies.soft_split]
    return forms[0] if len(set(forms)) == 1 else ",".join(forms)
