"""Equalised graphs compute what they computed, with channels of like size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from t2t_deploy.calibration import (
    Equalisation,
    equalised_weights,
    find_layers,
    norm_channel_max,
    plan_equalisation,
    replace_weights,
    stored_arrays,
)
from t2t_deploy.calibration._equalise import GELU_BETWEEN, SKIP_READS_VALUES, EqualisedPair
from t2t_deploy.types import Precision, Target

from ..export.conftest import KINDS, relative_error
from ..onnx_models import Shape, constants, graph_model
from .graphs import EVERY_KIND, TARGETS, channel_max, logits, pictures, run, tiny

SAME = 2e-6  # float32 sums of scaled numbers
READ_BY_OTHERS = "something other than a linear layer reads it"
NO_PICTURES = "no pictures told the size of its channels"
FC2 = ("tokens.blocks.0.tail.mlp.fc2", "tokens.blocks.1.tail.mlp.fc2")
# kind -> its norms, queries and values that are made alike, in the graph's order, for tensorrt
_TOKENS = ("tokens.blocks.0.tail.norm", "tokens.blocks.1.tail.norm")
_TWO_BLOCKS = ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")
_TWO_ATTENTIONS = tuple(f"blocks.{block}.attn.{part}" for block in (0, 1) for part in "qv")
_DENSE = tuple(f"blocks.{block}.norm{norm}" for block in (0, 1, 3, 4) for norm in (1, 2))
PRODUCERS = {
    **dict.fromkeys(KINDS, (*_TOKENS, *_TWO_BLOCKS, *_TWO_ATTENTIONS)),
    "dense": (
        *_TOKENS,
        *_DENSE,
        "norm",
        *(f"blocks.{block}.attn.{part}" for block in (0, 1, 3, 4) for part in "qv"),
    ),
}
# the last attention of the cpu graph has no keys and values: its norm is what the means are of
FOLDED_BLOCK = {**dict.fromkeys(KINDS, "blocks.1"), "dense": "blocks.4", "se": None}
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)


def plan_of(model: onnx.ModelProto) -> Equalisation:
    return plan_equalisation(model, find_layers(model), channel_max(model, pictures()))


def with_weights(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    replace_weights(copy, values)
    return copy


def weights_of(model: onnx.ModelProto, plan: Equalisation) -> dict[str, np.ndarray]:
    return equalised_weights(model, find_layers(model), plan.applied)


def error_of(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> float:
    """Relative error of the logits with other weights, on pictures the plan has not seen."""
    images = pictures(seed=1)
    return relative_error(logits(with_weights(model, values), images), logits(model, images))


@EVERY_KIND
@EVERY_TARGET
def test_the_logits_stay_what_they_were(kind: str, target: Target) -> None:
    model = tiny(kind, target)
    changed = weights_of(model, plan_of(model))
    assert error_of(model, changed) <= SAME
    # and not because nothing was done
    stored = stored_arrays(model)
    assert all(relative_error(value, stored[name]) > 0.05 for name, value in changed.items())


@EVERY_KIND
@EVERY_TARGET
def test_what_is_made_alike_is_this_and_no_more(kind: str, target: Target) -> None:
    plan = plan_of(tiny(kind, target))
    folded = FOLDED_BLOCK[kind] if target is Target.CPU else None
    gone = {f"{folded}.norm1", f"{folded}.attn.q", f"{folded}.attn.v"}
    assert [p.producer for p in plan.applied] == [p for p in PRODUCERS[kind] if p not in gone]
    blocks = (0, 1, 3, 4) if kind == "dense" else (0, 1)
    wanted = dict.fromkeys((*FC2, *(f"blocks.{b}.mlp.fc2" for b in blocks)), GELU_BETWEEN)
    if kind == "transformer":
        wanted |= {f"tokens.blocks.{block}.proj": SKIP_READS_VALUES for block in (0, 1)}
    if folded:
        wanted[f"{folded}.norm1"] = READ_BY_OTHERS
    assert plan.refused == wanted


def test_a_norm_is_moved_into_every_layer_that_reads_it() -> None:
    plan = plan_of(tiny("performer", Target.TENSORRT))
    readers = {pair.producer: pair.layers for pair in plan.applied}
    assert readers["blocks.0.norm1"] == ("blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v")
    # the query of the last block reads the class row of it
    assert sorted(readers["blocks.1.norm1"]) == [f"blocks.1.attn.{part}" for part in "kqv"]
    assert readers["blocks.0.norm2"] == ("blocks.0.mlp.fc1",)
    assert readers["blocks.0.attn.v"] == ("blocks.0.attn.proj",)
    assert readers["blocks.0.attn.q"] == ("blocks.0.attn.k",)
    assert readers["norm"] == ("head",)


@EVERY_KIND
def test_channels_and_rows_of_the_weights_get_the_same_size(kind: str) -> None:
    """s is the root of the quotient of both: after it they are alike up to one factor."""
    model = tiny(kind, Target.TENSORRT, factor=100)
    before = channel_max(model, pictures())
    plan = plan_of(model)
    changed = weights_of(model, plan)
    after = channel_max(with_weights(model, changed), pictures())
    by_name = {layer.name: layer for layer in find_layers(model)}
    for pair in plan.applied:
        if pair.columns:
            continue  # the next test
        if not pair.producer.endswith(".v"):
            assert np.exp(np.log(pair.scale).mean()) == pytest.approx(1)
        np.testing.assert_allclose(after[pair.tensor], before[pair.tensor] / pair.scale, rtol=1e-4)
        if pair.producer.startswith("blocks.") and pair.producer.endswith("norm1"):
            continue  # its values are scaled once more, after it
        rows = np.max([np.abs(changed[by_name[n].weight]).max(axis=1) for n in pair.layers], axis=0)
        quotient = after[pair.tensor] / rows
        np.testing.assert_allclose(quotient, quotient[0], rtol=1e-3)


@EVERY_KIND
def test_queries_keys_and_values_get_the_same_size(kind: str) -> None:
    """One step then does for the weights of all three; queries keep their channels' proportions."""
    model = tiny(kind, Target.TENSORRT, factor=100)
    plan = plan_of(model)
    changed, stored = weights_of(model, plan), stored_arrays(model)
    pairs = [pair for pair in plan.applied if pair.columns]
    assert len(pairs) == (4 if kind == "dense" else 2)
    for pair in pairs:
        stem = pair.producer.removesuffix(".q")
        assert pair.layers == (f"{stem}.k",)
        assert pair.factor is not None and set(pair.scale) == {pair.factor}
        assert abs(np.log(pair.factor)) > 1e-3  # and not because they were so before
        q, k, v = (np.abs(changed[f"{stem}.{part}.weight"]).max(axis=0) for part in "qkv")
        assert q.max() == pytest.approx(k.max(), rel=1e-12)
        assert v.max() == pytest.approx(k.max(), rel=1e-12)
        assert pair.spread_after == pair.spread_before
        assert pair.spread_after == pytest.approx(q.max() / np.median(q))
        assert len(pair.scale) == stored[f"{stem}.q.weight"].shape[1]
    assert {pair.factor for pair in plan.applied if not pair.columns} == {None}


def test_what_moves_between_queries_and_keys_leaves_their_product_as_it_is() -> None:
    model = tiny("performer", Target.TENSORRT)
    plan, stored = plan_of(model), stored_arrays(model)
    pairs = [pair for pair in plan.applied if pair.columns]
    changed = equalised_weights(model, find_layers(model), pairs)
    assert sorted(changed) == [f"blocks.{b}.attn.{part}.weight" for b in (0, 1) for part in "kq"]
    for block in (0, 1):
        names = [f"blocks.{block}.attn.{part}.weight" for part in "qk"]
        q, k = (changed[name] for name in names)
        wide = [stored[name].astype(np.float64) for name in names]
        # entry by entry of each column: not just the sum over a head
        np.testing.assert_allclose(q[:, None] * k[None], wide[0][:, None] * wide[1][None])
    wrong = {name: stored[name] for name in changed if name.endswith("k.weight")}
    assert error_of(model, changed) <= SAME
    assert error_of(model, {**changed, **wrong}) > 10 * SAME


@pytest.mark.parametrize(("target", "alike"), [(Target.CPU, False), (Target.TENSORRT, True)])
def test_values_keep_their_size_where_none_is_in_common(target: Target, alike: bool) -> None:
    """With scales by output, or without keys beside them: their geometric mean is one."""
    model = tiny("performer", target, factor=100)
    layers = [
        layer for layer in find_layers(model) if not (alike and layer.name.endswith((".q", ".k")))
    ]
    plan = plan_equalisation(model, layers, channel_max(model, pictures()), alike=alike)
    assert not any(pair.columns for pair in plan.applied)
    values = [pair for pair in plan.applied if pair.producer.endswith(".v")]
    assert len(values) == (2 if target is Target.TENSORRT else 1)
    for pair in values:
        assert np.exp(np.log(pair.scale).mean()) == pytest.approx(1)


@EVERY_KIND
def test_outliers_are_made_like_the_other_channels(kind: str) -> None:
    plan = plan_of(tiny(kind, Target.TENSORRT, factor=100))
    scaled = [pair for pair in plan.applied if "norm" in pair.producer and pair.producer != "norm"]
    assert len(scaled) == (10 if kind == "dense" else 6)
    for pair in scaled:
        assert pair.spread_before > 60, pair.producer
        assert pair.spread_after < 2, pair.producer
    of_channels = [pair for pair in plan.applied if not pair.columns]
    assert all(pair.spread_after < pair.spread_before for pair in of_channels)


@EVERY_KIND
def test_the_spread_is_that_of_the_tensors_when_run(kind: str) -> None:
    model = tiny(kind, Target.CPU, factor=100)
    plan = plan_of(model)
    before = channel_max(model, pictures())
    after = channel_max(with_weights(model, weights_of(model, plan)), pictures())
    for pair in plan.applied:
        if pair.columns:
            continue  # of weights, not of a tensor: see queries and keys
        for found, wanted in ((before, pair.spread_before), (after, pair.spread_after)):
            channels = found[pair.tensor]
            assert channels.max() / np.median(channels) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("target", [Target.CPU, Target.TENSORRT])
@EVERY_KIND
def test_outliers_shrink_without_a_picture(kind: str, target: Target) -> None:
    model = tiny(kind, target, factor=100)
    layers = find_layers(model)
    plan = plan_equalisation(model, layers, norm_channel_max(model))
    changed = weights_of(model, plan)
    assert error_of(model, changed) <= SAME
    values = [layer.name for layer in layers if layer.name.endswith("attn.v")]
    assert {name: plan.refused[name] for name in values} == dict.fromkeys(values, NO_PICTURES)
    before = channel_max(model, pictures())
    after = channel_max(with_weights(model, changed), pictures())
    scaled = [pair for pair in plan.applied if pair.producer != "norm" and not pair.columns]
    assert len(scaled) >= 5
    for pair in scaled:
        spreads = [float(x[pair.tensor].max() / np.median(x[pair.tensor])) for x in (before, after)]
        assert spreads[0] > 60 and spreads[1] < 4, pair.producer


def test_the_guess_without_pictures_is_three_deviations_and_the_shift() -> None:
    found = norm_channel_max(normed_graph())
    assert list(found) == ["normed"]
    np.testing.assert_allclose(found["normed"], [3.0 + 0.5, 6.0 + 0.25, 30.0, 3.0 + 4.0])


def test_norms_without_stored_scale_and_shift_are_not_guessed() -> None:
    model = normed_graph()
    del model.graph.node[0].input[2]
    assert norm_channel_max(model) == {}


@EVERY_KIND
def test_shifts_that_are_not_divided_change_the_logits(kind: str) -> None:
    """The check above tells a right version from a wrong one."""
    model = tiny(kind, Target.TENSORRT)
    changed, stored = weights_of(model, plan_of(model)), stored_arrays(model)
    shifts = {name: stored[name] for name in changed if name.endswith(".bias")}
    assert shifts and all(np.any(value) for value in shifts.values())
    assert error_of(model, {**changed, **shifts}) > 100 * SAME


def test_each_weight_that_is_left_out_changes_the_logits() -> None:
    model = tiny("transformer", Target.TENSORRT)
    changed, stored = weights_of(model, plan_of(model)), stored_arrays(model)
    assert len(changed) == 7 * 2 + 7 + 6  # norms; what reads them, the last value among it; v, proj
    for name in changed:
        assert error_of(model, {**changed, name: stored[name]}) > 10 * SAME, name


def test_a_plan_is_replayed_exactly() -> None:
    model = tiny("dense", Target.TENSORRT, factor=100)
    plan = plan_of(model)
    stored = {name: value.astype(np.float64) for name, value in stored_arrays(model).items()}
    wanted = dict(stored)
    for pair in plan.applied:
        along = pair.scale[None, :] if pair.columns else pair.scale[:, None]
        for name in pair.layers:
            wanted[f"{name}.weight"] = wanted[f"{name}.weight"] * along
        if pair.producer.endswith((".q", ".v")):
            name = f"{pair.producer}.weight"
            wanted[name] = wanted[name] / pair.scale[None, :]
        else:
            for part in ("weight", "bias"):
                name = f"{pair.producer}.{part}"
                wanted[name] = wanted[name] / pair.scale
    changed = weights_of(model, plan)
    assert changed.keys() == {name for name in stored if np.any(wanted[name] != stored[name])}
    for name, value in changed.items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, wanted[name])


def test_a_plan_made_in_float32_is_replayed_in_the_16_bit_twin() -> None:
    wide, half = (
        tiny("performer", Target.TENSORRT, precision)
        for precision in (Precision.FP32, Precision.FP16)
    )
    changed = weights_of(wide, plan_of(wide))
    moved = stored_arrays(with_weights(half, changed))
    for name, value in changed.items():
        assert moved[name].dtype == np.float16
        np.testing.assert_array_equal(moved[name], value.astype(np.float16))
    images = pictures(seed=1)
    assert relative_error(logits(with_weights(half, changed), images), logits(wide, images)) < 5e-3


def test_planning_leaves_the_graph_as_it_is() -> None:
    model = tiny("se", Target.CPU)
    before = model.SerializeToString()
    weights_of(model, plan_of(model))
    assert model.SerializeToString() == before


# A graph by hand: norm -> two layers, and where asked a third reader of the norm.


def normed_graph(other: str | None = None, *, shared: bool = False) -> onnx.ModelProto:
    arrays = {
        "n.weight": np.array([1, -2, 10, 1], np.float32),
        "n.bias": np.array([0.5, -0.25, 0, 4], np.float32),
        "a.weight": np.random.RandomState(0).standard_normal((4, 3)).astype(np.float32),
        "b.weight": np.random.RandomState(1).standard_normal((4, 3)).astype(np.float32),
    }
    norm = ["x", "n.weight", "n.bias"]
    nodes = [
        helper.make_node("LayerNormalization", norm, ["normed"], name="ln"),
        helper.make_node("MatMul", ["normed", "a.weight"], ["left"], name="/a"),
        helper.make_node("MatMul", ["normed", "b.weight"], ["right"], name="/b"),
        helper.make_node("Add", ["left", "right"], ["sum"], name="/sum"),
    ]
    outputs: dict[str, Shape | None] = {"sum": None}
    if other is not None:
        nodes.append(helper.make_node(other, ["normed"], ["third"], name="/third"))
        outputs["third"] = None
    if shared:
        nodes.append(helper.make_node("LayerNormalization", norm, ["again"], name="ln2"))
        outputs["again"] = None
    model = graph_model(nodes, constants(arrays), {"x": ["batch", 5, 4]}, outputs)
    return onnx.shape_inference.infer_shapes(model)


def largest_rows(model: onnx.ModelProto) -> np.ndarray:
    stored = stored_arrays(model)
    rows = np.hstack([stored["a.weight"], stored["b.weight"]]).astype(np.float64)
    return np.asarray(np.abs(rows).max(axis=1))


def test_scales_of_a_graph_by_hand_are_those_of_the_formula() -> None:
    model = normed_graph()
    layers = find_layers(model)
    (pair,) = plan_equalisation(model, layers, norm_channel_max(model)).applied
    assert (pair.producer, pair.layers, pair.tensor) == ("n", ("a", "b"), "normed")
    scale = np.sqrt(np.array([3.5, 6.25, 30, 7]) / largest_rows(model))
    scale /= np.prod(scale) ** 0.25
    np.testing.assert_allclose(pair.scale, scale, rtol=1e-12)
    assert pair.spread_before == pytest.approx(30 / np.median([3.5, 6.25, 30, 7]))
    x = np.random.RandomState(2).standard_normal((2, 5, 4)).astype(np.float32)
    changed = equalised_weights(model, layers, [pair])
    found, wanted = (run(m, x=x)["sum"] for m in (with_weights(model, changed), model))
    assert relative_error(found, wanted) < SAME


@pytest.mark.parametrize(
    ("model", "measured", "reason"),
    [
        *((normed_graph(other), True, READ_BY_OTHERS) for other in ("Erf", "Identity", "Softmax")),
        (normed_graph(shared=True), True, "another norm shares its weights"),
        (normed_graph(), False, NO_PICTURES),
    ],
)
def test_norms_that_are_left_alone(model: onnx.ModelProto, measured: bool, reason: str) -> None:
    channels = norm_channel_max(model) if measured else {}
    plan = plan_equalisation(model, find_layers(model), channels)
    assert (plan.applied, plan.refused) == ((), {"n": reason})


def test_channels_that_are_always_zero_are_left_alone() -> None:
    model = normed_graph()
    plan = plan_equalisation(
        model, find_layers(model), {"normed": np.array([0, 1, 2, 4], np.float32)}
    )
    (pair,) = plan.applied
    assert np.isfinite(pair.scale).all()
    # no scale of its own: it gets the one that is common to all
    rest = np.sqrt(np.array([1, 2, 4]) / largest_rows(model)[1:])
    np.testing.assert_allclose(pair.scale[1:] / pair.scale[0], rest, rtol=1e-6)


def test_weights_are_replaced_in_the_type_they_have() -> None:
    model = normed_graph()
    replace_weights(model, {"a.weight": np.full((4, 3), 0.1)})
    found = stored_arrays(model)["a.weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.float32(0.1))


def test_pairs_are_moved_in_the_order_given() -> None:
    model = normed_graph()
    layers = find_layers(model)
    pair = EqualisedPair("n", ("a", "b"), "normed", np.array([1.0, 2, 4, 8]), 1, 1)
    changed = equalised_weights(model, layers, [pair, pair])
    stored = stored_arrays(model)
    square = pair.scale**2
    np.testing.assert_array_equal(changed["n.weight"], stored["n.weight"] / square)
    np.testing.assert_array_equal(changed["b.weight"], stored["b.weight"] * square[:, None])
