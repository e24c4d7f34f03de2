"""All that a quantised graph is made of: the typed graph, rounded weights, ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from t2t_deploy._progress import Progress, silent
from t2t_deploy.calibration import (
    TYPED_QDQ_OPSET,
    Decision,
    Equalisation,
    Form,
    Placement,
    QuantizedGraph,
    RoundedWeight,
    code_limit,
    decide,
    equalised_weights,
    half_bound,
    norm_channel_max,
    place_dynamic,
    place_static,
    plan_equalisation,
    replace_weights,
    round_weight,
    storable_scale,
    stored_arrays,
    weight_scales,
)
from t2t_deploy.commands._calibrate import (
    CalibratedRanges,
    CalibrationGraph,
    calibrated,
    calibration_graph,
    note_pictures,
)
from t2t_deploy.commands._export import (
    ExportedGraph,
    GraphForm,
    forms_asked,
    graph_of_weights,
)
from t2t_deploy.commands._quantize_plan import QuantizationMode, QuantizationPlan
from t2t_deploy.errors import CalibrationError
from t2t_deploy.types import HALF_MAX, Precision, Target
from t2t_deploy.workspace import Workspace


@dataclass(frozen=True, slots=True)
class QuantizationInputs:
    """All that a quantised graph is made of, whichever layers it quantises.

    typed: the graph in the base's type, equalised, to be changed. calibration: None where dynamic
    ranges are made without pictures. steps: of the codes of each tensor that layers read. changed:
    initializers as equalisation made them. unsafe: layers that stay float because sums of their
    codes could pass float16, with the reason.
    """

    plan: QuantizationPlan
    typed: ExportedGraph
    form: GraphForm
    graph: CalibrationGraph
    equalisation: Equalisation
    weights: Mapping[str, RoundedWeight]
    calibration: CalibratedRanges | None
    steps: Mapping[str, float] = field(default_factory=dict)
    changed: Mapping[str, np.ndarray] = field(default_factory=dict)
    unsafe: Mapping[str, str] = field(default_factory=dict)

    def half_bounds(self) -> dict[str, float | None]:
        """By layer: the largest magnitude its product can write in 16 bit; see `half_bound`."""
        return {
            found.layer.name: half_bound(
                self.weights[found.layer.name], found.form, self.steps[found.layer.ranged]
            )
            for found in self.decide()
            if found.quantised and found.form.reads_codes and found.form is not Form.VECTOR
        }

    def placed_by(
        self, placement: Placement, progress: Progress | None = None
    ) -> QuantizationInputs:
        """The same in another placement.

        progress: of rounding the weights as they will be used; without it each goes to its nearest
        code, which is enough to look at what a builder makes of it.
        """
        plan = dataclasses.replace(self.plan, placement=placement)
        return _rounded(
            dataclasses.replace(self, plan=plan),
            silent if progress is None else progress,
            nearest=progress is None,
        )

    def decide(self, returned: Mapping[str, str] | None = None) -> tuple[Decision, ...]:
        """What the policy makes of each layer; see `calibration.decide`."""
        return decide(
            self.graph.layers,
            {**self.unsafe, **(returned or {})},
            precision=self.plan.precision.codes,
            placement=self.plan.placement,
        )

    def place(self, decisions: Sequence[Decision]) -> QuantizedGraph:
        """The graph with these layers quantised. Raises CalibrationError."""
        if self.plan.asked.mode is QuantizationMode.DYNAMIC:
            return place_dynamic(self.typed.model, decisions, self.weights, self.plan.codes)
        return place_static(
            self.typed.model,
            decisions,
            self.weights,
            _ranges(self.plan, self.calibration),
            self.plan.precision.codes,
            self.plan.codes,
            merge=self.plan.target is Target.PORTABLE,
        )


def _ranges(plan: QuantizationPlan, calibration: CalibratedRanges | None) -> Mapping[str, float]:
    """By tensor, as its type takes them; none where dynamic ranges are made without pictures."""
    if calibration is None:
        return {}
    found = calibration.calibration
    return found.largest if plan.precision.codes is Precision.FP8 else found.ranges


def quantization_inputs(
    workspace: Workspace,
    plan: QuantizationPlan,
    progress: Progress = silent,
) -> QuantizationInputs:
    """Calibrate, equalise and round, as far as the plan asks for it."""
    graph = calibration_graph(workspace, plan.source, plan.target, progress)
    calibration = _calibration(workspace, plan, graph, progress)
    if calibration is not None:
        equalisation = calibration.calibration.equalisation
    elif plan.asked.equalise:
        guess = norm_channel_max(graph.model)
        alike = plan.target is Target.TENSORRT
        equalisation = plan_equalisation(graph.model, graph.layers, guess, alike=alike)
        progress.note(
            "no pictures were given: channels are equalised by their norms' own weights and "
            "weights are rounded to the nearest; --images DIR does both better"
        )
    else:
        equalisation = Equalisation()
    form = _base_form(plan)
    # the base's graph: that of the calibration where it has its type, batch and opset
    if (plan.typed, form.batch, form.opset) == (Precision.FP32, None, graph.exported.opset):
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        typed = dataclasses.replace(graph.exported, model=model)
    else:
        typed = graph_of_weights(workspace, plan.source, form, progress, merge_bias=False)
    changed = equalised_weights(graph.model, graph.layers, equalisation.applied)
    replace_weights(typed.model, changed)
    dtype = np.dtype(np.float32 if plan.typed is Precision.FP32 else np.float16)
    limit = code_limit(plan.precision.codes)
    steps = {
        name: float(storable_scale(largest / limit, dtype))
        for name, largest in _ranges(plan, calibration).items()
    }
    inputs = QuantizationInputs(
        plan, typed, form, graph, equalisation, {}, calibration, steps, changed
    )
    progress.step("rounding the weights")
    return _rounded(inputs, progress)


def _base_form(plan: QuantizationPlan) -> GraphForm:
    """How the graph that is quantised is exported."""
    from t2t_deploy.export import DEFAULT_OPSET

    opset = plan.source.opset or DEFAULT_OPSET
    if plan.typed is not Precision.FP32:
        opset = max(opset, TYPED_QDQ_OPSET)
    return dataclasses.replace(
        forms_asked(plan.source),
        batch=plan.batch,
        precision=plan.typed,
        target=plan.target,
        opset=opset,
        graph_io=plan.source.graph_io,
    )


def _calibration(
    workspace: Workspace,
    plan: QuantizationPlan,
    graph: CalibrationGraph,
    progress: Progress,
) -> CalibratedRanges | None:
    found, asked = plan.ranges, plan.asked
    if found is not None:
        file = Path(str(asked.ranges))
        if found.key.graph_sha256 != graph.sha256:
            raise CalibrationError(
                f"{file} was taken on another graph ({found.key.graph_sha256[:12]}, "
                f"this one is {graph.sha256[:12]}): ranges fit the weights, the dimensions and the "
                f"target they were taken for; take them again: t2t-deploy calibrate --target "
                f"{plan.target.value} --images DIR"
            )
        if found.key.equalised is not asked.equalise:
            raise CalibrationError(
                f"{file} was taken {'with' if found.key.equalised else 'without'} "
                "equalisation; quantise with the same, or take the ranges again"
            )
        note_pictures(found, progress)
        return CalibratedRanges(file, found, reused=True)
    if plan.images is None:
        return None
    return calibrated(
        workspace,
        plan.source,
        graph,
        plan.images,
        progress,
        method=asked.method,
        equalise=asked.equalise,
    )


def _rounded(
    inputs: QuantizationInputs, progress: Progress, *, nearest: bool = False
) -> QuantizationInputs:
    """With the weight of every layer that is quantised on its grid.

    nearest: to the nearest code each, whatever the images said.
    """
    inputs = dataclasses.replace(inputs, unsafe={})
    known = inputs.calibration is not None and not nearest
    moments = inputs.calibration.calibration.moments if known and inputs.calibration else {}
    stored = stored_arrays(inputs.graph.model)
    decisions = inputs.decide()
    layers = [found.layer for found in decisions if found.quantised]
    values = {
        layer.name: inputs.changed.get(layer.weight, stored[layer.weight]) for layer in layers
    }
    dtypes = {
        tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in inputs.typed.model.graph.initializer
    }
    dtype = next(iter(dtypes[layer.weight] for layer in layers), np.dtype(np.float32))
    codes = inputs.plan.precision.codes
    parts = weight_scales(decisions, values, inputs.steps, codes, dtype)
    weights = {}
    for done, layer in enumerate(layers, start=1):
        weights[layer.name] = round_weight(
            values[layer.name],
            codes,
            moments.get(layer.ranged),
            scale_dtype=dtype,
            parts=parts.get(layer.name),
        )
        progress.progress("rounding the weights", done, len(layers))
    inputs = dataclasses.replace(inputs, weights=weights)
    unsafe = {
        name: f"its product can reach {bound:.3g}, float16 ends at {HALF_MAX:g}"
        for name, bound in inputs.half_bounds().items()
        if bound is not None and bound > HALF_MAX
    }
    for name, why in unsafe.items():
        progress.note(f"{name} stays float: {why}")
    return dataclasses.replace(inputs, unsafe=unsafe)
