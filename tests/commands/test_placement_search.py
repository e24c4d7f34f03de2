"""Placements that can be asked for, and the search for the one that moves least."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from t2t_deploy import engine
from t2t_deploy.calibration import (
    ACCURATE,
    BALANCED,
    COMPACT,
    FP8_BALANCED,
    FP8_COMPACT,
    IN_OPERATOR,
    WEIGHTS_BALANCED,
    WEIGHTS_COMPACT,
    Form,
    FormRule,
    Placement,
)
from t2t_deploy.commands import QuantizationMode, quantize_onnx
from t2t_deploy.commands._placement_search import (
    BATCHES,
    KINDS,
    LEAST_SHARE,
    Candidate,
    PlacementSearch,
    _Trials,
    search_placement,
)
from t2t_deploy.commands._quantize_inputs import QuantizationInputs, quantization_inputs
from t2t_deploy.commands._quantize_plan import (
    AUTO,
    QuantizationPlan,
    QuantizationRequest,
    plan_quantization,
)
from t2t_deploy.errors import UsageError
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Workspace

from ..needs import needs_tensorrt_rtx
from ..small import tiny_exports

# one layer of each kind of int8
LAYERS = (
    "tokens.splits.1.weights.norms",
    "tokens.blocks.0.tail.mlp.fc1",
    "tokens.blocks.0.tail.mlp.fc2",
    "blocks.0.attn.proj",
    "blocks.0.mlp.fc1",
    "blocks.0.mlp.fc2",
)
Costs = Mapping[tuple[str, Form], int]
Plan = Callable[..., QuantizationPlan]
Cost = Callable[[dict[str, Form]], int]
Share = Callable[[dict[str, Form]], float]


def forms_of(placement: Placement, kinds: Mapping[str, str]) -> dict[str, Form]:
    """By kind: the form of its layer."""
    return {name: placement.form_of(layer).form for name, layer in kinds.items()}


class Searched:
    """A search over made-up engines: what they move is told by the forms alone."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        cost: Cost,
        *,
        share: Share = lambda forms: 0.9,
        precision: Precision = Precision.INT8,
        start: Placement = BALANCED,
        layers: tuple[str, ...] = LAYERS,
        batch: int | None = None,
    ) -> None:
        self.kinds = {
            kind.name: next(name for name in layers if re.fullmatch(kind.pattern, name))
            for kind in KINDS[precision]
            if any(re.fullmatch(kind.pattern, name) for name in layers)
        }
        self.notes: list[str] = []

        def look(trials: Any, placement: Placement, kind: str, form: str) -> Candidate:
            forms = forms_of(placement, self.kinds)
            batches = BATCHES if batch is None else (batch,)
            totals = {one: cost(forms) * one for one in batches}
            return Candidate(kind, form, len(forms), totals, share(forms))

        monkeypatch.setattr(_Trials, "look", look)
        monkeypatch.setattr(engine, "choose_builder", lambda: None)
        monkeypatch.setattr(engine, "device_capability", lambda: None)
        plan = SimpleNamespace(placement=start, precision=precision, batch=batch)
        graph = SimpleNamespace(layers=[SimpleNamespace(name=name, rows=197) for name in layers])
        inputs: Any = SimpleNamespace(plan=plan, graph=graph)
        workspace: Any = SimpleNamespace(scratch=lambda: contextlib.nullcontext(Path("nowhere")))
        report: Any = SimpleNamespace(note=self.notes.append, progress=lambda *words: None)
        self.start = forms_of(start, self.kinds)
        self.search: PlacementSearch = search_placement(workspace, inputs, report)
        self.found = forms_of(self.search.placement, self.kinds)


def additive(costs: Costs) -> Cost:
    return lambda forms: 1000 + sum(costs.get((kind, form), 50) for kind, form in forms.items())


def test_the_cheapest_form_of_each_kind_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = additive(
        {
            ("norms of keys and queries", Form.CHANNEL): 40,
            ("token mlp fc1", Form.FLOAT): 10,
            ("token mlp fc2", Form.CHANNEL): 20,
            ("projection", Form.RESULT): 30,
            ("projection", Form.CHANNEL): 31,
            ("mlp fc2", Form.RESULT): 45,
        }
    )
    done = Searched(monkeypatch, cost)
    names, forms = zip(*((kind.name, kind.forms) for kind in KINDS[Precision.INT8]), strict=True)
    every = [dict(zip(names, some, strict=True)) for some in itertools.product(*forms)]
    assert len(every) == 2 * 3 * 3 * 3 * 2 * 3
    assert done.found == min(every, key=cost)
    assert cost(done.found) == 1000 + 40 + 10 + 20 + 30 + 50 + 45
    assert done.search.placement.name == AUTO
    assert done.search.placement.otherwise is BALANCED.otherwise


def test_all_that_were_tried_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = {("projection", Form.RESULT): 30, ("projection", Form.CHANNEL): 20}
    done = Searched(monkeypatch, additive(cheap))
    candidates = done.search.candidates
    told = [(one.kind, one.form, one.kept) for one in candidates]
    # the form that it starts from is not built again
    assert told[0] == ("start", "", True)
    assert [(kind, form) for kind, form, kept in told if kept][1:] == [
        *(("projection", "result"), ("projection", "channel"))
    ]
    assert [(kind, form) for kind, form, _ in told[1:]] == [
        (kind.name, form.value)
        for kind in KINDS[Precision.INT8]
        for form in kind.forms
        if form is not done.start[kind.name]
    ]
    assert sum(one.kept for one in candidates) == 3
    assert candidates[0].total_bytes == {1: 1300, 8: 10_400}
    (note,) = done.notes
    assert note == (
        "tried 11 placements for SM portable: 6 kernels; moved and stored 0.0 MB at batch 1 (2.3% "
        "less than balanced), 0.0 MB at batch 8 (2.3% less than balanced)"
    )
    values = json.loads(json.dumps(done.search.to_dict()))
    assert values["sm"] == "portable" and len(values["candidates"]) == len(candidates)
    (best,) = (one for one in values["candidates"] if one["form"] == "channel" and one["kept"])
    assert best == {
        "kind": "projection",
        "form": "channel",
        "kernels": 6,
        "total_bytes": {"1": 1270, "8": 10160},
        "share": 0.9,
        "kept": True,
    }
    assert values["rules"][0] == {"pattern": r"blocks\.\d+\.attn\.proj", "form": "channel"}
    patterns = [rule["pattern"] for rule in values["rules"]]
    assert len(patterns) == len(set(patterns)) == len(BALANCED.rules)


def test_one_that_is_as_cheap_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Searched(monkeypatch, lambda forms: 1000)
    assert done.found == done.start
    assert [one.kept for one in done.search.candidates].count(True) == 1
    assert done.search.candidates[0].kept and len(done.search.candidates) >= 11
    assert done.search.placement == dataclasses.replace(BALANCED, name=AUTO)


def test_batches_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth at a small batch is worth more than a twentieth at a large one."""
    one = Candidate("a", "b", 1, {1: 900, 8: 80_000}, 1)
    other = Candidate("a", "b", 1, {1: 1000, 8: 76_000}, 1)
    assert one.cost < other.cost
    assert one.cost == Candidate("a", "b", 1, {1: 80_000, 8: 900}, 1).cost


def test_no_engine_of_little_in_8_bits_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float layers that move least of all would end in an fp16 engine."""
    moved = {
        ("token mlp fc1", Form.FLOAT): 1,
        ("token mlp fc2", Form.FLOAT): 1,
        ("token mlp fc1", Form.CHANNEL): 30,
    }

    share: Share = lambda forms: 0.951 - 0.15 * [*forms.values()].count(Form.FLOAT)  # noqa: E731
    # the projection is float from the start: one more may be
    done = Searched(monkeypatch, additive(moved), share=share)
    assert share(done.start) == pytest.approx(0.801)
    assert [one.form for one in done.search.candidates if one.kept] == ["", "channel", "float"]
    assert share(done.found) == pytest.approx(0.651)
    assert (done.found["token mlp fc1"], done.found["token mlp fc2"]) == (Form.FLOAT, Form.RESULT)
    left = [one for one in done.search.candidates if one.share < LEAST_SHARE]
    assert [(one.kind, one.form) for one in left] == [("token mlp fc2", "float")]
    assert not left[0].kept and left[0].cost < min(o.cost for o in done.search.candidates if o.kept)


def test_where_little_is_in_8_bits_it_may_not_become_less(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = {("token mlp fc1", Form.FLOAT): 1, ("mlp fc1", Form.CHANNEL): 30}
    share: Share = lambda forms: 0.5 - 0.1 * (forms["token mlp fc1"] is Form.FLOAT)  # noqa: E731
    done = Searched(monkeypatch, additive(cheap), share=share)
    assert done.found["token mlp fc1"] is not Form.FLOAT
    assert done.found["mlp fc1"] is Form.CHANNEL


def test_a_kind_is_tried_with_what_was_kept_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(forms: dict[str, Form]) -> int:
        first = forms["token mlp fc1"] is Form.CHANNEL
        second = forms["mlp fc1"] is Form.CHANNEL
        return 1000 - 100 * first - (200 if first else -50) * second

    done = Searched(monkeypatch, cost)
    assert cost(done.found) == 700
    alone = Searched(monkeypatch, lambda forms: cost({**forms, "token mlp fc1": Form.RESULT}))
    assert alone.found["mlp fc1"] is Form.RESULT


def test_kinds_that_a_model_lacks_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Searched(monkeypatch, lambda forms: 1, layers=LAYERS[3:5])
    assert {one.kind for one in done.search.candidates} == {"start", "projection", "mlp fc1"}
    tried = {(one.kind, one.form) for one in done.search.candidates}
    assert {("projection", "result"), ("projection", "channel"), ("mlp fc1", "channel")} < tried


def test_fp8_has_kinds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = {("mlp fc1", Form.RESULT): 1, ("projection", Form.TENSOR): 2}
    done = Searched(monkeypatch, additive(cheap), precision=Precision.FP8, start=FP8_BALANCED)
    assert done.found == {
        "token mlp fc1": Form.TENSOR,
        "token mlp fc2": Form.TENSOR,
        "projection": Form.TENSOR,
        "mlp fc1": Form.RESULT,
        "mlp fc2": Form.TENSOR,
    }
    forms = {form for kind in KINDS[Precision.FP8] for form in kind.forms}
    assert forms == {Form.RESULT, Form.TENSOR, Form.FLOAT}


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_of_a_fixed_batch_that_one_counts(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    cheap = {("projection", Form.CHANNEL): 20}
    done = Searched(monkeypatch, additive(cheap), batch=batch)
    assert done.found["projection"] is Form.CHANNEL
    assert {tuple(one.total_bytes) for one in done.search.candidates} == {(batch,)}
    (note,) = done.notes
    assert note.endswith(f"stored 0.0 MB at batch {batch} (2.3% less than balanced)")


def test_every_kind_is_a_kind_of_layers_that_the_policy_quantises() -> None:
    for kinds in KINDS.values():
        assert len({kind.name for kind in kinds}) == len({kind.pattern for kind in kinds})
        for kind in kinds:
            matching = [name for name in LAYERS if re.fullmatch(kind.pattern, name)]
            assert len(matching) == 1 and len(kind.forms) == len(set(kind.forms)) >= 2
    for name in LAYERS:
        assert sum(bool(re.fullmatch(k.pattern, name)) for k in KINDS[Precision.INT8]) == 1


# Of a real model: what is built to be looked at.


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | None], Workspace]:
    """The export of a batch, made once."""
    return functools.cache(
        lambda batch: tiny_exports(tmp_path_factory.mktemp("export"), {"batch": batch or "dynamic"})
    )


@pytest.fixture(scope="module")
def exported(export: Callable[[int | None], Workspace]) -> Workspace:
    return export(None)


def request_of(pictures: Path, **changes: Any) -> dict[str, Any]:
    request = {"target": Target.TENSORRT, "images": pictures / "calibration", "count": 8}
    return {**request, **changes}


def inputs_of(workspace: Workspace, pictures: Path) -> QuantizationInputs:
    return quantization_inputs(workspace, plan_of(workspace, pictures))


def plan_of(workspace: Workspace, pictures: Path, **changes: Any) -> QuantizationPlan:
    return plan_quantization(
        workspace, None, QuantizationRequest(**request_of(pictures, **changes))
    )


@pytest.fixture
def plan(exported: Workspace, digit_pictures: Path) -> Plan:
    """Plan the quantisation of the export of any batch."""
    return functools.partial(plan_of, exported, digit_pictures)


class Builder:
    """Stands in for the engine builder: what an engine moves is told by the graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: Callable[[onnx.ModelProto], int]):
        self.orders: list[tuple[int, tuple[str, ...]]] = []

        def build_engine(path: Path, options: Any, *, module: Any) -> Any:
            model = onnx.load(path)
            (profile,) = options.profiles
            assert profile.min == profile.opt == profile.max and module == "module"
            self.orders.append((profile.opt, tuple(options.sm)))
            figures = SimpleNamespace(
                kernels=len(model.graph.node) + profile.opt,
                total_bytes=cost(model) * profile.opt,
            )
            return SimpleNamespace(figures=figures)

        monkeypatch.setattr(engine, "build_engine", build_engine)
        monkeypatch.setattr(engine, "choose_builder", lambda: "module")
        monkeypatch.setattr(engine, "device_capability", lambda: None)


def test_candidates_are_engines_of_each_batch(
    exported: Workspace, digit_pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builder = Builder(monkeypatch, lambda model: len(model.graph.node))
    inputs = inputs_of(exported, digit_pictures)
    trials = _Trials(inputs, "module", "portable", tmp_path)
    found = trials.look(BALANCED, "start", "")
    assert builder.orders == [(1, ("portable",)), (8, ("portable",))]
    nodes = len(onnx.load(tmp_path / "trial.onnx").graph.node)
    assert found.total_bytes == {1: nodes, 8: 8 * nodes}
    assert found.kernels == nodes + 1  # at the first batch
    decisions = inputs.decide()
    macs = sum(one.layer.macs for one in decisions)
    coded = sum(one.layer.macs for one in decisions if one.quantised)
    assert found.share == pytest.approx(coded / macs) and 0.65 < found.share < 1
    # weights alone are no product of codes
    compact = trials.look(COMPACT, "", "")
    rows = [o for o in inputs.placed_by(COMPACT).decide() if o.form is Form.WEIGHTS]
    assert len(rows) == 3  # of the last block's class row, and the head
    every = sum(o.layer.macs for o in inputs.placed_by(COMPACT).decide() if o.quantised)
    assert compact.share == pytest.approx((every - sum(o.layer.macs for o in rows)) / macs)


def test_a_fixed_batch_is_built_for_alone(
    export: Callable[[int | None], Workspace],
    digit_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    builder = Builder(monkeypatch, lambda model: len(model.graph.node))
    inputs = inputs_of(export(3), digit_pictures)
    assert inputs.plan.batch == 3
    found = _Trials(inputs, "module", "89", tmp_path).look(BALANCED, "start", "")
    assert builder.orders == [(3, ("89",))] and list(found.total_bytes) == [3]


@pytest.mark.parametrize("batch", [None, 3])
def test_what_was_found_is_what_is_made(
    export: Callable[[int | None], Workspace],
    batch: int | None,
    digit_pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def cost(model: onnx.ModelProto) -> int:
        """Ratios by channel are cheap, codes are not."""
        ratios = sum(tensor.name.endswith("/ratio") for tensor in model.graph.initializer)
        return 10_000 - 100 * int(ratios) + len(model.graph.node)

    Builder(monkeypatch, cost)
    request = request_of(digit_pictures, placement=AUTO, output=tmp_path / "auto.onnx")
    made = quantize_onnx(**request, speed=False, workspace=export(batch))
    details = made.require_manifest().details
    assert details["quantization"]["placement"] == AUTO
    search = details["placement_search"]
    assert search["sm"] == "portable"
    kept = [one for one in search["candidates"] if one["kept"]]
    assert kept[0]["kind"] == "start" and len(kept) > 3
    costs = [one["total_bytes"][str(batch or 1)] for one in kept]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)
    assert all(one["share"] >= LEAST_SHARE for one in kept)
    forms = {one["name"]: one["form"] for one in details["quantization"]["layers"]}
    placement = Placement(
        "", Form.TENSOR, tuple(FormRule(r["pattern"], Form(r["form"]), "") for r in search["rules"])
    )
    for name, form in forms.items():
        if form is not None:
            assert placement.form_of(name).form.value == form, name
    assert forms["blocks.0.mlp.fc2"] == forms["blocks.0.attn.proj"] == "channel"
    # weights are rounded as they are used, once the search is over
    model = onnx.load(made.path)
    assert cost(model) * (batch or 1) == costs[-1]


@pytest.mark.slow
@needs_tensorrt_rtx
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_a_search_with_the_builder(
    exported: Workspace, digit_pictures: Path, precision: Precision, tmp_path: Path
) -> None:
    """The engine of what was found moves no more than that of the default, and is one of 8 bits."""
    request = request_of(digit_pictures, placement=AUTO, output=tmp_path / "auto.onnx")
    made = quantize_onnx(**request, type=precision, speed=False, workspace=exported)
    search = made.require_manifest().details["placement_search"]
    first, *others = search["candidates"]
    kept = [one for one in search["candidates"] if one["kept"]]
    assert len(others) >= 8

    def cost(one: dict[str, Any]) -> int:
        return int(one["total_bytes"]["1"] * one["total_bytes"]["8"])

    assert [cost(one) for one in kept] == sorted((cost(one) for one in kept), reverse=True)
    assert cost(kept[-1]) <= cost(first)
    assert cost(kept[-1]) == min(
        cost(one)
        for one in search["candidates"]
        if one["share"] >= min(LEAST_SHARE, first["share"])
    )


# What can be asked for.


@pytest.mark.parametrize(
    ("asked", "precision", "wanted"),
    [
        (None, Precision.INT8, BALANCED),
        ("balanced", Precision.INT8, BALANCED),
        ("compact", Precision.INT8, COMPACT),
        ("accurate", Precision.INT8, ACCURATE),
        (AUTO, Precision.INT8, BALANCED),  # where the search begins
        (None, Precision.FP8, FP8_BALANCED),
        ("compact", Precision.FP8, FP8_COMPACT),
        (AUTO, Precision.FP8, FP8_BALANCED),
        (None, Precision.INT8_WEIGHTS, WEIGHTS_BALANCED),
        (None, Precision.FP8_WEIGHTS, WEIGHTS_BALANCED),
        ("compact", Precision.INT8_WEIGHTS, WEIGHTS_COMPACT),
        ("compact", Precision.FP8_WEIGHTS, WEIGHTS_COMPACT),
    ],
)
def test_placements_by_name(
    plan: Plan, asked: str | None, precision: Precision, wanted: Placement
) -> None:
    assert plan(placement=asked, precision=precision).placement is wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"target": Target.CPU},
        {"target": Target.PORTABLE},
        {"base": Precision.FP32},
        {"mode": QuantizationMode.DYNAMIC, "target": Target.CPU, "images": None},
    ],
)
def test_scales_of_other_runtimes_stand_in_operators(plan: Plan, changes: dict[str, Any]) -> None:
    assert plan(**changes).placement is IN_OPERATOR
    told = "placement compact is for engines; expected target tensorrt and base fp16"
    with pytest.raises(UsageError, match=told):
        plan(placement="compact", **changes)


@pytest.mark.parametrize("target", [Target.CUDA, Target.NCNN])
@pytest.mark.parametrize("type", [Precision.INT8, Precision.FP8, Precision.INT8_WEIGHTS])
def test_there_is_nothing_8_bit_for_them(plan: Plan, type: Precision, target: Target) -> None:
    told = rf"no 8-bit graphs for target {target.value}; expected .*tensorrt"
    with pytest.raises(UsageError, match=told):
        plan(precision=type, target=target)


@pytest.mark.parametrize("mode", QuantizationMode)
@pytest.mark.parametrize("target", [Target.CPU, Target.TENSORRT])
def test_queries_and_keys_are_alike_for_engines_alone(
    exported: Workspace,
    digit_pictures: Path,
    target: Target,
    mode: QuantizationMode,
    tmp_path: Path,
) -> None:
    changes: dict[str, Any] = {"target": target, "mode": mode}
    if mode is QuantizationMode.DYNAMIC:
        changes["images"] = None
        if target is Target.TENSORRT:
            changes |= {"type": Precision.INT8_WEIGHTS, "mode": QuantizationMode.STATIC}
    request = request_of(digit_pictures, **changes, output=tmp_path / "q.onnx")
    made = quantize_onnx(**request, speed=False, workspace=exported)
    equalised = made.require_manifest().details["quantization"]["equalised"]
    factors = [pair["factor"] for pair in equalised if pair["factor"] is not None]
    assert equalised and bool(factors) is (target is Target.TENSORRT)


@pytest.mark.parametrize(
    ("asked", "precision", "names"),
    [
        *[
            (asked, precision, "balanced, compact")
            for asked in (AUTO, "accurate")
            for precision in (Precision.INT8_WEIGHTS, Precision.FP8_WEIGHTS)
        ],
        ("accurate", Precision.FP8, "auto, balanced, compact"),
    ],
)
def test_a_placement_that_a_type_lacks_is_refused(
    plan: Plan, asked: str, precision: Precision, names: str
) -> None:
    told = f"^{precision.value} has no placement '{asked}'; expected one of {names}$"
    with pytest.raises(UsageError, match=told):
        plan(placement=asked, precision=precision)
