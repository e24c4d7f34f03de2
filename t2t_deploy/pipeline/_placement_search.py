"""Which form of each kind of layer gives the engine that moves least, asked of the builder itself.

Forms interact: what one product writes decides what the next kernel can take in. So they are tried
in engines, one kind of layer after the other, and what counts is the bytes that the builder's own
figures tell, at a small and at a larger batch. No GPU is needed, and no time is measured.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from t2t_deploy.calibration import Form, FormRule, Placement
from t2t_deploy.pipeline._progress import Report
from t2t_deploy.pipeline._quantize_inputs import QuantizationInputs
from t2t_deploy.types import Precision, ShapeProfile
from t2t_deploy.workspace import Workspace

BATCHES = (1, 8)
LEAST_SHARE = 0.65
"""Of the linear layers' multiply-adds, in 8 bits: less is no 8-bit engine."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers whose form is tried together."""

    name: str
    pattern: str
    forms: Sequence[Form]


# In the order of a picture's way.
KINDS: Mapping[Precision, tuple[Kind, ...]] = {
    Precision.INT8: (
        Kind(
            "norms of keys and queries",
            r"tokens\.splits\.[01]\.weights\.norms",
            (Form.RESULT, Form.CHANNEL),
        ),
        Kind("token mlp fc1", r"tokens\..*\.mlp\.fc1", (Form.RESULT, Form.CHANNEL, Form.FLOAT)),
        Kind(
            "token mlp fc2",
            r"tokens\..*\.mlp\.fc2",
            (Form.RESULT, Form.CHANNEL, Form.FLOAT),
        ),
        Kind("projection", r"blocks\.\d+\.attn\.proj", (Form.FLOAT, Form.RESULT, Form.CHANNEL)),
        Kind("mlp fc1", r"blocks\.\d+\.mlp\.fc1", (Form.RESULT, Form.CHANNEL)),
        Kind("mlp fc2", r"blocks\.\d+\.mlp\.fc2", (Form.CHANNEL, Form.RESULT, Form.TENSOR)),
    ),
    Precision.FP8: (
        Kind("token mlp fc1", r"tokens\..*\.mlp\.fc1", (Form.RESULT, Form.TENSOR, Form.FLOAT)),
        Kind("token mlp fc2", r"tokens\..*\.mlp\.fc2", (Form.RESULT, Form.TENSOR, Form.FLOAT)),
        Kind("projection", r"blocks\.\d+\.attn\.proj", (Form.FLOAT, Form.TENSOR, Form.RESULT)),
        Kind("mlp fc1", r"blocks\.\d+\.mlp\.fc1", (Form.RESULT, Form.TENSOR)),
        Kind("mlp fc2", r"blocks\.\d+\.mlp\.fc2", (Form.TENSOR, Form.RESULT)),
    ),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that was built to be looked at.

    total_bytes: by batch, what it moves at that batch and its weights.
    """

    kind: str
    form: str
    kernels: int
    total_bytes: Mapping[int, int]
    share: float
    kept: bool = False

    @property
    def cost(self) -> float:
        """What is made small: batches count alike, each relative to its own size."""
        product = 1.0
        for total in self.total_bytes.values():
            product *= total
        return product

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        values = dataclasses.asdict(self)
        return {**values, "total_bytes": {str(b): n for b, n in self.total_bytes.items()}}


@dataclass(frozen=True, slots=True)
class PlacementSearch:
    """The placement that moves least, and all that were tried."""

    placement: Placement
    candidates: tuple[Candidate, ...]
    sm: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sm": self.sm,
            "rules": [
                {"pattern": rule.pattern, "form": rule.form.value} for rule in self.placement.rules
            ],
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


def search_placement(
    workspace: Workspace, inputs: QuantizationInputs, report: Report
) -> PlacementSearch:
    """Try the forms of each kind of layer, starting from those of the inputs.

    Raises MissingDependencyError where there is no builder, EngineError.
    """
    from t2t_deploy.runtime import choose_builder, device_capability

    module = choose_builder()
    sm = "portable" if device_capability() is None else "native"
    with workspace.scratch() as folder:
        trials = _Trials(inputs, module, sm, folder)
        best_placement = dataclasses.replace(inputs.plan.placement, name="auto")
        best = trials.look(best_placement, "start", "")
        tried = [dataclasses.replace(best, kept=True)]
        kinds = [kind for kind in KINDS[inputs.plan.precision.codes] if trials.has(kind)]
        for done, kind in enumerate(kinds):
            for form in kind.forms:
                report.progress("trying placements", done, len(kinds))
                placement = _with(best_placement, kind, form)
                if placement is None:
                    continue
                found = trials.look(placement, kind.name, form.value)
                kept = found.cost < best.cost and found.share >= LEAST_SHARE
                tried.append(dataclasses.replace(found, kept=kept))
                if kept:
                    best_placement, best = placement, found
        report.progress("trying placements", len(kinds), len(kinds))
    first = tried[0]
    saved = ", ".join(
        f"{1 - best.total_bytes[batch] / first.total_bytes[batch]:.1%} at batch {batch}"
        for batch in BATCHES
    )
    report.note(
        f"tried {len(tried)} placements for SM {sm}: {best.kernels} kernels, "
        f"{best.total_bytes[1] / 1e6:.1f} MB moved and stored at batch 1; less than balanced by "
        f"{saved}"
    )
    return PlacementSearch(best_placement, tuple(tried), sm)


def _with(placement: Placement, kind: Kind, form: Form) -> Placement | None:
    """The placement with one kind in another form; None where it has that form already."""
    before = [rule for rule in placement.rules if rule.pattern == kind.pattern]
    if before and before[0].form is form:
        return None
    rule = FormRule(kind.pattern, form, f"{kind.name} as {form.value}: the engine moves least")
    rest = tuple(one for one in placement.rules if one.pattern != kind.pattern)
    return dataclasses.replace(placement, rules=(rule, *rest))


@dataclass(frozen=True, slots=True)
class _Trials:
    inputs: QuantizationInputs
    module: Any
    sm: str
    folder: Path

    def has(self, kind: Kind) -> bool:
        return any(re.fullmatch(kind.pattern, layer.name) for layer in self.inputs.graph.layers)

    def look(self, placement: Placement, kind: str, form: str) -> Candidate:
        """Build engines of a placement, its weights at their nearest codes."""
        from t2t_deploy.runtime import BuildOptions, build_engine, parse_sm

        inputs = self.inputs.placed_by(placement)
        decisions = inputs.decide()
        path = self.folder / "trial.onnx"
        onnx.save(inputs.place(decisions).model, path)
        kernels, totals = 0, {}
        for batch in BATCHES if self.inputs.plan.batch is None else (self.inputs.plan.batch,):
            profile = (ShapeProfile(batch, batch, batch),)
            options = BuildOptions(profiles=profile, sm=parse_sm(self.sm))
            figures = build_engine(path, options, module=self.module).figures
            kernels = kernels or figures.kernels
            assert figures.total_bytes is not None  # a fixed batch tells sizes
            totals[batch] = figures.total_bytes
        macs = sum(decision.layer.macs for decision in decisions)
        coded = sum(
            decision.layer.macs
            for decision in decisions
            if decision.quantised and decision.form is not Form.WEIGHTS
        )
        return Candidate(kind, form, kernels, totals, coded / max(macs, 1))
