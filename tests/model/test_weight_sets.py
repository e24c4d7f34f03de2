"""Weights in the files of training programs: found by fit, chosen by name, read right."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from t2t_deploy.model import (
    ModelConfig,
    ModelOutput,
    T2TViT,
    TokensType,
    random_state_dict,
    reference_from_state_dict,
)

from .tiny import CONFIG, StateDict, load, refusal, same


@pytest.fixture(scope="module")
def others() -> StateDict:
    return random_state_dict(CONFIG, seed=1)


def prefixed(prefix: str, weights: StateDict) -> StateDict:
    return {prefix + key: value for key, value in weights.items()}


# -- wrappers ------------------------------------------------------------------------------------

PREFIXES = (
    "", "module.", "_orig_mod.", "model.", "net.", "backbone.", "vit.", "student.", "a.b.c.d.",
    "module._orig_mod.model.", "_forward_module.module.",
)  # fmt: skip
CONTAINERS = (
    "model", "model_state_dict", "state_dict", "module", "ema", "model_ema", "net", "params",
    "state_dict_ema", "anything",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "prefix"),
    [*(("state_dict", one) for one in PREFIXES), *((name, "module.") for name in CONTAINERS)],
)
def test_any_prefix_and_container_is_found(name: str, prefix: str, weights: StateDict) -> None:
    optimiser = {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-3}]}
    content = {"epoch": 3, "optimizer": optimiser, name: prefixed(prefix, weights)}
    for wrapped, container in ((content, name), ({"inner": content}, f"inner.{name}")):
        found = load(wrapped)
        assert same(found.state_dict, weights)
        assert (found.container, found.notes) == (container, ())


def with_attributes(weights: StateDict) -> dict[str, object]:
    marked = {key: torch.nn.Parameter(value) for key, value in weights.items()}
    for value in marked.values():
        value.__dict__["is_base"] = True
    return {**marked}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in w.items()},
        lambda weights: {**weights, "best": np.float64(1.5), "args": Options()},
        with_attributes,
    ],
    ids=["parts of the model", "objects among the weights", "parameters with attributes"],
)
def test_what_is_around_weights_is_seen_through(
    wrap: Callable[[StateDict], object], weights: StateDict
) -> None:
    assert same(load(wrap(weights)).state_dict, weights)


def test_safetensors_with_a_prefix_in_a_hub_folder(weights: StateDict) -> None:
    Path("hub").mkdir()
    save_file(prefixed("vit.", weights), "hub/model.safetensors")
    names = ["cat", "dog", "cow", "hen"]
    Path("hub/config.json").write_text(json.dumps({"label_names": names}))
    found = load(Path("hub"))
    assert same(found.state_dict, weights)
    assert found.class_names == tuple(names)


class Options:
    """A class that a reader does not have."""

    def __init__(self) -> None:
        self.folder = Path("/data")


BESIDE: dict[str, Callable[[], object]] = {
    "numpy scalar": lambda: np.float64(81.2),
    "numpy array": lambda: np.array(["a", "b"]),
    "path": lambda: Path("/data"),
    "date": lambda: datetime.datetime(2024, 1, 1),
    "namespace": lambda: argparse.Namespace(ids={1, 2}, dtype=torch.float16),
    "device": lambda: torch.device("cpu"),
    "own class": Options,
    "default dictionary": lambda: collections.defaultdict(list, {"a": [1]}),
    "shapes": lambda: [collections.OrderedDict(a=torch.Size([2, 3]))],
    "complex number": lambda: 1j,
    "bytes": lambda: bytearray(b"abc"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_the_weights_is_skipped(
    kind: str, zipped: bool, weights: StateDict
) -> None:
    content = {"args": BESIDE[kind](), "state_dict": weights}
    torch.save(content, "model.pth", _use_new_zipfile_serialization=zipped)
    assert same(load(Path("model.pth")).state_dict, weights)


def test_skipped_objects_are_noted(weights: StateDict) -> None:
    (note,) = load({"state_dict": weights, "data": Options()}).notes
    path = f"{type(Path()).__module__}.{type(Path()).__name__}"
    assert note == f"left unread beside the weights: {__name__}.Options, {path}"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_module_gives_its_weights(zipped: bool, weights: StateDict) -> None:
    model = reference_from_state_dict(weights, CONFIG)
    torch.save({"model": model}, "model.pth", _use_new_zipfile_serialization=zipped)
    found = load(Path("model.pth"))
    assert same(found.state_dict, weights)
    assert found.notes == (
        f"the weights of a whole {T2TViT.__module__}.T2TViT were read; its code was not run",
    )


# -- several sets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("average", "plain"),
    [
        ("state_dict_ema", "state_dict"),
        ("model_ema", "model"),
        ("ema", "params"),
        ("teacher", "student"),
        ("averaged", "net"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_average_is_taken_and_said(
    average: str, plain: str, first: bool, weights: StateDict, others: StateDict
) -> None:
    content = {average: weights, plain: others}
    found = load(content if first else dict(reversed(content.items())))
    assert same(found.state_dict, weights)
    assert found.container == average
    assert found.notes[0] == (
        f"of the weights in the file {average} were taken, the average; weights chooses another: "
        f"{plain}"
    )
    assert found.notes[1].startswith(f"warning: {plain} and {average} differ by 1")


@pytest.mark.parametrize(("share", "warned"), [(0.09, False), (0.11, True)])
def test_sets_that_differ_by_more_than_a_tenth(
    share: float, warned: bool, weights: StateDict
) -> None:
    plain = {key: value * (1 + share) for key, value in weights.items()}
    notes = load({"state_dict": plain, "state_dict_ema": weights}).notes
    assert len(notes) == 1 + warned
    assert ("differ by 11% of the norm" in notes[-1]) is warned


def test_sets_are_chosen_by_name(weights: StateDict, others: StateDict) -> None:
    content = {"state_dict_ema": weights, "state_dict": prefixed("module.", others)}
    found = load(content, weights="state_dict")
    assert same(found.state_dict, others)
    assert found.container == "state_dict"
    assert refusal(content, weights="best") == (
        "model.pth has no weights 'best'; it has state_dict_ema and state_dict: give one"
    )


def test_prefixes_of_one_dictionary_are_sets(weights: StateDict, others: StateDict) -> None:
    both = {**prefixed("student.", others), **prefixed("teacher.", weights)}
    found = load({"state_dict": both})
    assert same(found.state_dict, weights)
    assert found.container == "state_dict.teacher"
    assert not any("left out" in note for note in found.notes)
    assert same(load(both, weights="student").state_dict, others)


def test_an_optimiser_is_no_average(weights: StateDict) -> None:
    moments = {key: torch.zeros_like(value) for key, value in weights.items()}
    assert load({"exp_avg": moments, "model": weights}).container == "model"


def test_a_set_within_another_dictionary(weights: StateDict, others: StateDict) -> None:
    content = {**others, **prefixed("model_ema.", weights)}
    found = load(content)
    assert same(found.state_dict, weights) and found.container == "model_ema"
    assert same(load(content, weights="plain").state_dict, others)


def test_an_average_that_does_not_fit_is_not_taken(weights: StateDict) -> None:
    part = {key: value for key, value in weights.items() if key != "pos_embed"}
    found = load({"model_ema": part, "model": weights})
    assert found.container == "model"
    assert "lacks 1 of" in refusal({"model_ema": part, "model": weights}, weights="model_ema")


# -- what is no weight of the model --------------------------------------------------------------


def test_what_is_outside_of_the_prefix_is_left_out_and_named(weights: StateDict) -> None:
    counters = {"criterion.weight": torch.ones(10), "acc.tp": torch.zeros(3, dtype=torch.int64)}
    found = load({"state_dict": {**prefixed("model.", weights), **counters}})
    assert same(found.state_dict, weights)
    assert found.notes == (
        "left out, beside the model in state_dict: 2 tensors (criterion.weight, acc.tp)",
    )


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("num_updates", torch.tensor(7)),
        ("scale", torch.tensor(0.5)),
        ("seen", torch.zeros(3, dtype=torch.bool)),
        ("confusion", torch.zeros(4, 4, dtype=torch.int64)),
        ("blocks.0.attn.qkv._weight_quantizer._amax", torch.ones(48, 1)),
    ],
)
def test_counters_and_scalars_are_left_out_and_named(
    key: str, tensor: torch.Tensor, weights: StateDict
) -> None:
    found = load({**weights, key: tensor})
    assert same(found.state_dict, weights)
    assert found.notes == (f"left out, as no weights: {key}",)


def test_masks_of_pruning_are_applied(weights: StateDict) -> None:
    key = "blocks.0.mlp.fc1.weight"
    mask = (torch.arange(weights[key].numel()) % 2).reshape(weights[key].shape).float()
    pruned = {k: v for k, v in weights.items() if k != key}
    for file in (torch.save, save_file):
        file({**pruned, f"{key}_orig": weights[key], f"{key}_mask": mask}, "model.pth")
        found = load(Path("model.pth"))
        assert torch.equal(found.state_dict[key], weights[key] * mask)
        assert found.notes == (f"masks of pruning were applied: {key}",)


def test_an_unknown_tensor_is_refused_unless_ignored(weights: StateDict) -> None:
    content = {**weights, "criterion.weight": torch.ones(10)}
    assert refusal(content) == (
        "model.pth has 1 unexpected key (criterion.weight) beside the weights of tiny; where its "
        "answers do not depend on it, ignore_keys 'criterion.*' leaves it out"
    )
    found = load(content, ignore_keys=["criterion.*"])
    assert same(found.state_dict, weights)
    assert found.notes == ("left out, as asked: criterion.weight",)
    assert "has no name that fits ignore_keys 'aux*'" in refusal(content, ignore_keys=["aux*"])


def test_an_auxiliary_head_is_named(weights: StateDict) -> None:
    content = {**weights, "aux_head.weight": torch.zeros(4, 16), "aux_head.bias": torch.zeros(4)}
    assert refusal(content) == (
        "model.pth has an auxiliary head (aux_head.weight, aux_head.bias) beside the weights of "
        "tiny; where its answers do not depend on it, ignore_keys 'aux_head.*' leaves it out"
    )
    assert same(load(content, ignore_keys=["aux_head.*"]).state_dict, weights)
    whole = {"state_dict": prefixed("model.", content)}
    for pattern in ("aux_head.*", "model.aux_head.*"):
        assert same(load(whole, ignore_keys=[pattern]).state_dict, weights)


def test_an_auxiliary_head_does_not_hide_the_variant() -> None:
    """Of a released variant, without a file of dimensions."""
    shapes = random_state_dict(ModelConfig("7", TokensType.PERFORMER, 256, 7, 4, 2.0))
    content = {**shapes, "aux_head.weight": torch.zeros(4, 256)}
    message = refusal(content, config=None)
    assert "has an auxiliary head (aux_head.weight) beside the weights of 7" in message


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "distilled": ({"dist_token": torch.zeros(1, 1, 16)}, "is a distilled model (dist_token)"),
    "LoRA": ({"blocks.0.attn.qkv.lora_A.default.weight": torch.zeros(8, 16)}, "adapters (LoRA)"),
    "peft": ({"blocks.0.attn.qkv.base_layer.weight": torch.zeros(48, 16)}, "adapters (LoRA)"),
    "weight norm": (
        {"head.weight_g": torch.ones(4, 1), "head.weight_v": torch.ones(4, 16)},
        "factorised weights (head.weight_g, head.weight_v)",
    ),
    "parametrised": (
        {"head.parametrizations.weight.original0": torch.ones(4, 1)},
        "factorised weights (head.parametrizations.weight.original0)",
    ),
    "packed": ({"head.qweight": torch.ones(4, 4, dtype=torch.int32)}, "quantised weights"),
    "int8": (
        {"head.weight": torch.ones(4, 16, dtype=torch.int8)},
        "has head.weight as torch.int8; expected floating point of 16 bits or more: quantised",
    ),
    "float8": (
        {"head.weight": torch.ones(4, 16).to(torch.float8_e4m3fn)},
        "has head.weight as torch.float8_e4m3fn; expected floating point of 16 bits or more: quant",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_another_form_are_named(form: str, weights: StateDict) -> None:
    changes, message = FORMS[form]
    assert message in refusal({**weights, **changes})


# -- heads ---------------------------------------------------------------------------------------


def headless(weights: StateDict) -> StateDict:
    return {key: value for key, value in weights.items() if not key.startswith("head.")}


def test_a_head_without_bias_gets_zeros(weights: StateDict) -> None:
    found = load({key: value for key, value in weights.items() if key != "head.bias"})
    assert same(found.state_dict, {**weights, "head.bias": torch.zeros(4)})
    assert found.notes == ("the head has no bias: zeros were taken",)


@pytest.mark.parametrize("name", ["head.1", "head.fc", "head.layers.0"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_of_one_layer_is_renamed(name: str, bias: bool, weights: StateDict) -> None:
    head = {f"{name}.weight": weights["head.weight"]}
    if bias:
        head[f"{name}.bias"] = weights["head.bias"]
    found = load({**headless(weights), **head})
    bias_read = weights["head.bias"] if bias else torch.zeros(4)
    assert same(found.state_dict, {**weights, "head.bias": bias_read})
    assert found.notes[0] == f"the head is the linear layer {name}"


def test_heads_of_several_layers_are_refused(weights: StateDict) -> None:
    two = {"head.0.weight": torch.zeros(8, 16), "head.2.weight": torch.zeros(4, 8)}
    message = "has a head of 2 layers (head.0.weight, head.2.weight); expected one"
    assert message in refusal({**headless(weights), **two})
    norm = {name: torch.ones(16) for name in ("head.0.weight", "head.0.bias", "head.0.running_var")}
    last = {"head.1.weight": weights["head.weight"]}
    message = "has more than a LayerNorm before its classifier (head.0.weight, head.0.bias, "
    assert message in refusal({**headless(weights), **norm, **last})


def test_a_norm_before_the_classifier(weights: StateDict) -> None:
    norm = {"head.0.weight": torch.rand(16), "head.0.bias": torch.rand(16)}
    last = {"head.1.weight": weights["head.weight"], "head.1.bias": weights["head.bias"]}
    found = load({**headless(weights), **norm, **last})
    assert found.config.head_norm and "LayerNorm with epsilon 1e-5" in found.notes[0]
    backbone, plain, model = (
        reference_from_state_dict(state, config).double()
        for state, config in (
            (headless(weights), CONFIG.headless(ModelOutput.EMBEDDING)),
            (dict(weights), CONFIG),
            (found.state_dict, found.config),
        )
    )
    assert plain.head is not None
    picture = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    scale, shift = norm["head.0.weight"].double(), norm["head.0.bias"].double()
    normed = functional.layer_norm(backbone(picture), (16,), scale, shift)
    torch.testing.assert_close(model(picture), plain.head(normed))


def test_a_backbone_alone(weights: StateDict) -> None:
    found = load(headless(weights))
    assert (found.config.num_classes, found.config.output) == (0, ModelOutput.EMBEDDING)
    assert same(found.state_dict, headless(weights))
    beside = {**prefixed("backbone.", headless(weights)), "classifier.weight": torch.ones(4, 16)}
    note = "no classifier (head.weight) in file; classifier.weight may be one under another name: "
    assert load(beside).notes[0].startswith(note)
    ignoring = load(beside, ignore_keys=["classifier.*"])
    assert ignoring.notes[0] == "left out, as asked: classifier.weight"
    assert not any("another name" in one for one in ignoring.notes)


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_channels_are_read_off_the_first_windows(channels: int) -> None:
    own = random_state_dict(CONFIG.with_(in_chans=channels))
    found = load(own)
    assert found.config.in_chans == channels
    assert f"the model takes pictures of {channels} channel" in found.notes[0]


@pytest.mark.parametrize(
    ("trained", "asked", "expected"),
    [
        ((64, 128), (64, 128), (64, 128)),
        ((64, 128), None, "no square grid of tiny; give image_size as height x width of the "
         "training's pictures, such as 64x128"),
        ((64, 128), 64, "no square grid"),
        ((64, 64), None, 64),
        ((32, 128), None, 64),  # as many positions as of a square, which is said
        ((32, 128), (32, 128), (32, 128)),
        ((64, 64), (64, 128), (64, 128)),  # resized
    ],
)  # fmt: skip
def test_rows_and_columns(
    trained: tuple[int, int], asked: int | tuple[int, int] | None, expected: Any
) -> None:
    weights = random_state_dict(CONFIG.with_(image_size=trained))
    if isinstance(expected, str):
        assert expected in refusal(weights, image_size=asked)
        return
    found = load(weights, image_size=asked)
    assert found.config.image_size == expected
    assumed = [note for note in found.notes if "positions are taken as 4x4" in note]
    resized = [note for note in found.notes if "resized bicubically from 64 to 64x128 px" in note]
    assert len(assumed) == (asked is None or trained == (64, 64))
    assert len(resized) == (expected == (64, 128) and trained == (64, 64))
    if not resized:
        assert same(found.state_dict, weights)


# -- classes -------------------------------------------------------------------------------------

NAMES = ["cat", "dog", "cow", "hen"]


@pytest.mark.parametrize(
    "beside",
    [
        {"meta": {"CLASSES": NAMES}},
        {"meta": {"dataset_meta": {"classes": tuple(NAMES)}}},
        {"classes": NAMES},
        {"class_to_idx": {name: index for index, name in reversed(list(enumerate(NAMES)))}},
        {"hyper_parameters": {"class_names": NAMES}},
        {"id2label": dict(enumerate(NAMES))},
    ],
    ids=str,
)
def test_names_of_classes_are_read(beside: dict[str, Any], weights: StateDict) -> None:
    assert load({"state_dict": weights, **beside}).class_names == tuple(NAMES)


@pytest.mark.parametrize(
    "names", [NAMES[:3], [1, 2, 3, 4], "catd", {"a": 0, "b": 0, "c": 1, "d": 2}]
)
def test_names_that_do_not_fit_are_not_taken(names: Any, weights: StateDict) -> None:
    assert load({"state_dict": weights, "classes": names}).class_names is None
