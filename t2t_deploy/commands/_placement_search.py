"""Which form of each kind of layer gives the engine that moves least, asked of the builder itself.

Forms interact: what one product writes decides what the next kernel can take in. So they are tried
in engines, one kind of layer after the other, and what counts is the bytes by the builder's own
figures, at a small and at a larger batch. No GPU is needed, and no time is measured.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from t2t_deploy._codec import to_plain
from t2t_deploy._progress import Progress
from t2t_deploy.calibration import Form, FormRule, Placement
from t2t_deploy.commands._quantize_inputs import QuantizationInputs
from t2t_deploy.types import Precision, ShapeProfile
from t2t_deploy.workspace import Workspace

BATCHES = (1, 8)
FIRST_WITH_FP8 = "89"
LEAST_SHARE = 0.65
"""Of the linear layers' multiply-adds, in 8 bits: less is no 8-bit engine. Where the search starts
with less, as in a small model, it keeps none with less than that."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers whose form is tried together."""

    name: str
    pattern: str
    forms: Sequence[Form]


_NORMS = ("norms of keys and queries", r"tokens\.splits\.[01]\.weights\.norms")
_TOKEN_FC1 = ("token mlp fc1", r"tokens\..*\.mlp\.fc1")
_TOKEN_FC2 = ("token mlp fc2", r"tokens\..*\.mlp\.fc2")
_PROJECTION = ("projection", r"blocks\.\d+\.attn\.proj")
_FC1 = ("mlp fc1", r"blocks\.\d+\.mlp\.fc1")
_FC2 = ("mlp fc2", r"blocks\.\d+\.mlp\.fc2")
# In the order of a picture's way.
KINDS: Mapping[Precision, tuple[Kind, ...]] = {
    Precision.INT8: (
        Kind(*_NORMS, (Form.RESULT, Form.CHANNEL)),
        Kind(*_TOKEN_FC1, (Form.RESULT, Form.CHANNEL, Form.FLOAT)),
        Kind(*_TOKEN_FC2, (Form.RESULT, Form.CHANNEL, Form.FLOAT)),
        Kind(*_PROJECTION, (Form.FLOAT, Form.RESULT, Form.CHANNEL)),
        Kind(*_FC1, (Form.RESULT, Form.CHANNEL)),
        Kind(*_FC2, (Form.CHANNEL, Form.RESULT, Form.TENSOR)),
    ),
    Precision.FP8: (
        Kind(*_TOKEN_FC1, (Form.RESULT, Form.TENSOR, Form.FLOAT)),
        Kind(*_TOKEN_FC2, (Form.RESULT, Form.TENSOR, Form.FLOAT)),
        Kind(*_PROJECTION, (Form.FLOAT, Form.TENSOR, Form.RESULT)),
        Kind(*_FC1, (Form.RESULT, Form.TENSOR)),
        Kind(*_FC2, (Form.TENSOR, Form.RESULT)),
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
    def cost(self) -> int:
        """What is made small: batches count alike, each relative to its own size."""
        return math.prod(self.total_bytes.values())


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
            "rules": [{"pattern": r.pattern, "form": r.form.value} for r in self.placement.rules],
            "candidates": [
                {**to_plain(one), "total_bytes": {str(b): n for b, n in one.total_bytes.items()}}
                for one in self.candidates
            ],
        }


def search_placement(
    workspace: Workspace, inputs: QuantizationInputs, progress: Progress, sm: str | None = None
) -> PlacementSearch:
    """Try the forms of each kind of layer, starting from those of the inputs.

    sm: as from ``build-trt --sm``; None is the device here, else portable for int8 and 89 for fp8.
    Raises MissingDependencyError where there is no builder, EngineError.
    """
    from t2t_deploy.engine import choose_builder, device_capability

    module = choose_builder()
    if sm is None and device_capability() is not None:
        sm = "native"
    elif sm is None:
        sm = "portable" if inputs.plan.precision.codes is Precision.INT8 else FIRST_WITH_FP8
    with workspace.scratch() as folder:
        trials = _Trials(inputs, module, sm, folder)
        best_placement = dataclasses.replace(inputs.plan.placement, name="auto")
        best = trials.look(best_placement, "start", "")
        tried = [dataclasses.replace(best, kept=True)]
        least = min(LEAST_SHARE, best.share)
        kinds = [k for k in KINDS[inputs.plan.precision.codes] if trials.forms(best_placement, k)]
        for done, kind in enumerate(kinds):
            for form in kind.forms:
                progress.progress("trying placements", done, len(kinds))
                if trials.forms(best_placement, kind) == {form}:
                    continue
                because = f"{kind.name} as {form.value}: the engine moves least"
                rest = (one for one in best_placement.rules if one.pattern != kind.pattern)
                rules = (FormRule(kind.pattern, form, because), *rest)
                placement = dataclasses.replace(best_placement, rules=rules)
                found = trials.look(placement, kind.name, form.value)
                kept = found.cost < best.cost and found.share >= least
                tried.append(dataclasses.replace(found, kept=kept))
                if kept:
                    best_placement, best = placement, found
        progress.progress("trying placements", len(kinds), len(kinds))
    first = tried[0]
    saved = ", ".join(
        f"{total / 1e6:.1f} MB at batch {batch} ({1 - total / first.total_bytes[batch]:.1%} less "
        f"than {inputs.plan.placement.name})"
        for batch, total in best.total_bytes.items()
    )
    progress.note(
        f"tried {len(tried)} placements for SM {sm}: {best.kernels} kernels; moved and stored "
        f"{saved}"
    )
    return PlacementSearch(best_placement, tuple(tried), sm)


@dataclass(frozen=True, slots=True)
class _Trials:
    inputs: QuantizationInputs
    module: Any
    sm: str
    folder: Path

    def forms(self, placement: Placement, kind: Kind) -> set[Form]:
        """The forms that a placement gives to the layers of a kind."""
        return {
            placement.form_of(layer.name).form
            for layer in self.inputs.graph.layers
            if layer.rows > 1 and re.fullmatch(kind.pattern, layer.name)
        }

    def look(self, placement: Placement, kind: str, form: str) -> Candidate:
        """Build engines of a placement, its weights at their nearest codes."""
        from t2t_deploy.engine import BuildOptions, build_engine, parse_sm

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
            assert figures.total_bytes is not None  # a fixed batch has sizes
            totals[batch] = figures.total_bytes
        macs = sum(decision.layer.macs for decision in decisions)
        coded = sum(
            decision.layer.macs
            for decision in decisions
            if decision.quantised and decision.form.reads_codes
        )
        return Candidate(kind, form, kernels, totals, coded / max(macs, 1))
