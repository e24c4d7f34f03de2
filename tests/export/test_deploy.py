from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from t2t_deploy.errors import UsageError
from t2t_deploy.export import DeployT2TViT, PerformerForm, Strategies, choose_strategies
from t2t_deploy.export._layers import ClassQueryAttention
from t2t_deploy.export._token_block import TokenTransformer
from t2t_deploy.model import VARIANTS, T2TViT
from t2t_deploy.types import TOLERANCES, Precision, Target

from .conftest import KINDS, reference_of, relative_error

FORMS = [
    "unfold",
    "conv",
    "conv,folded,conv",
    "centred,unfold,unfold",
    "centred,centred,folded",
    "shifted",
]


@pytest.mark.parametrize("soft_split", FORMS)
@pytest.mark.parametrize("performer", [form.value for form in PerformerForm])
def test_equal_to_the_reference(reference: T2TViT, soft_split: str, performer: str) -> None:
    strategies = choose_strategies(Target.PORTABLE, soft_split, performer)
    deploy = DeployT2TViT(reference, strategies, Precision.FP32)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        error = relative_error(deploy(pictures).numpy(), reference(pictures).numpy())
    assert error < 2e-6


@pytest.mark.parametrize("target", [Target.TENSORRT, Target.CPU])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_typed_forms_stay_within_tolerance(
    reference: T2TViT, precision: Precision, target: Target
) -> None:
    deploy = DeployT2TViT(reference, choose_strategies(target), precision)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        logits = deploy(pictures)
        error = relative_error(logits.numpy(), reference(pictures).numpy())
    assert logits.dtype == torch.float32
    assert error < TOLERANCES[precision].rel_l2


@pytest.mark.parametrize("soft_split", ["unfold", "conv", "shifted"])
def test_what_16_bits_cannot_tell_of_a_picture_is_seen(reference: T2TViT, soft_split: str) -> None:
    """The first norm works in float32: here its windows are flat in float16."""
    deploy = DeployT2TViT(reference, choose_strategies(Target.TENSORRT, soft_split), Precision.FP16)
    pictures = 3 + 1.9e-3 * (torch.rand(3, 3, 32, 32) - 0.5)
    assert (pictures.half() == 3).all()
    with torch.inference_mode():
        found, wanted = deploy(pictures).numpy(), reference(pictures).numpy()
        blind = deploy(pictures.half().float()).numpy()
    assert relative_error(found, wanted) < TOLERANCES[Precision.FP16].rel_l2
    assert relative_error(blind, wanted) > TOLERANCES[Precision.FP16].rel_l2


def test_what_was_rewritten_is_counted(kind: str, reference: T2TViT) -> None:
    strategies = choose_strategies(Target.TENSORRT, "centred,conv,unfold", "stable")
    report = DeployT2TViT(reference, strategies, Precision.FP32).report
    config = KINDS[kind]
    wanted = {
        "centred_soft_split": 1,
        "conv_soft_split": 1,
        "unfold_soft_split": 1,
        "folded_layer_norm": 1,
        "folded_class_token": 1,
        "folded_attention_scale": config.depth,
        "class_row_only": 1,
        "class_query_only": 1,
        "stable_performer": 2,
    }
    if kind == "transformer":
        del wanted["stable_performer"]
        wanted["folded_attention_scale"] += 2
        wanted["query_groups"] = 2
    if kind == "se":
        del wanted["class_query_only"]
    assert report.applied == wanted
    assert list(report.refused) == (["class_query_only"] if kind == "se" else [])


@pytest.mark.parametrize(
    ("soft_split", "folded"), [("centred,folded,unfold", 2), ("conv,unfold,folded", None)]
)
def test_folded_norms_are_counted(soft_split: str, folded: int | None) -> None:
    """There is no norm before the third split."""
    strategies = choose_strategies(Target.PORTABLE, soft_split)
    report = DeployT2TViT(reference_of(KINDS["performer"]), strategies, Precision.FP32).report
    assert report.applied.get("folded_layer_norm") == folded


@pytest.mark.parametrize(
    ("groups", "applied", "refused"), [(1, None, None), (2, 2, None), (32, 1, 16), (3, None, 16)]
)
def test_queries_are_grouped_where_their_number_divides(
    groups: int, applied: int | None, refused: int | None
) -> None:
    """64 tokens, then 16."""
    reference = reference_of(KINDS["transformer"])
    strategies = dataclasses.replace(choose_strategies(Target.PORTABLE), query_groups=groups)
    deploy = DeployT2TViT(reference, strategies, Precision.FP32)
    assert deploy.report.applied.get("query_groups") == applied
    told = f"{refused} tokens do not divide into {groups} groups of queries"
    assert deploy.report.refused.get("query_groups") == (None if refused is None else told)
    for block, count in zip(deploy.tokens.blocks, (64, 16), strict=True):
        assert isinstance(block, TokenTransformer)
        assert block.groups == (groups if count % groups == 0 else 1)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        error = relative_error(deploy(pictures).numpy(), reference(pictures).numpy())
    assert error < 2e-6


def test_the_cpu_forms_are_counted(kind: str, reference: T2TViT) -> None:
    deploy = DeployT2TViT(reference, choose_strategies(Target.CPU), Precision.FP32)
    applied, refused = deploy.report.applied, deploy.report.refused
    assert (applied["shifted_soft_split"], applied["unfold_soft_split"]) == (1, 2)
    assert applied.get("softmax_performer", 0) == (0 if kind == "transformer" else 2)
    # the folded class keys leave nothing to fuse in the last block
    blocks = KINDS[kind].depth
    assert applied["fused_attention"] == (blocks if kind == "se" else blocks - 1)
    assert applied.get("folded_class_keys", 0) == (0 if kind == "se" else 1)
    assert list(refused) == (["class_query_only", "folded_class_keys"] if kind == "se" else [])
    pictures = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        error = relative_error(deploy(pictures).numpy(), reference(pictures).numpy())
    assert error < 2e-6


def test_what_is_refused_is_told_with_the_reason() -> None:
    gated = DeployT2TViT(
        reference_of(KINDS["se"]), choose_strategies(Target.CPU), Precision.FP16
    ).report
    averaged = "the squeeze-excite gate averages all rows"
    assert gated.refused == {
        "fused_attention": "ONNX Runtime's CPU kernel takes float32 only",
        "class_query_only": averaged,
        "folded_class_keys": averaged,
    }
    assert "fused_attention" not in gated.applied


@pytest.mark.parametrize("target", [Target.TENSORRT, Target.CPU])
def test_the_last_attention_has_one_query(kind: str, reference: T2TViT, target: Target) -> None:
    """A gate averages all rows, and needs them."""
    last: Any = DeployT2TViT(reference, choose_strategies(target), Precision.FP32).blocks[-1]
    (dim,) = last.norm1.normalized_shape
    assert last.attn(torch.randn(2, 5, dim)).shape == (2, 5 if kind == "se" else 1, dim)


@pytest.mark.parametrize("mistake", [None, "keys", "values"])
def test_class_keys_and_values_are_those_of_their_head(mistake: str | None) -> None:
    """On rows that differ, unlike the tokens of seeded weights; the wrong version swaps heads."""
    reference = reference_of(KINDS["performer"])
    last: Any = reference.blocks[-1]
    attention = ClassQueryAttention(last.attn, torch.float32)
    x = torch.randn(2, 5, reference.config.embed_dim)
    with torch.inference_mode():
        if mistake is not None:
            weight = getattr(attention, mistake[0])
            weight.copy_(weight.flip(0))
        error = relative_error(attention(x).numpy(), last.attn(x)[:, :1].numpy())
    assert error < 2e-6 if mistake is None else error > 1e-3


def test_the_deploy_form_owns_its_weights(reference: T2TViT) -> None:
    """What is changed in it must not reach the model that it is compared with."""
    owned = {t.untyped_storage().data_ptr() for t in reference.state_dict().values()}
    deploy = DeployT2TViT(reference, choose_strategies(Target.CPU), Precision.FP32)
    shared = [
        name
        for name, tensor in deploy.state_dict().items()
        if tensor.untyped_storage().data_ptr() in owned
    ]
    assert shared == []


def first_layers(deploy: DeployT2TViT) -> tuple[Any, Any]:
    """Attention of the first backbone block, and the first token block."""
    return deploy.blocks[0].attn, deploy.tokens.blocks[0]


@pytest.mark.parametrize(
    ("mistake", "least"),
    [
        ("scale", 1e-3),
        ("class token", 1e-3),
        ("key and query", 1e-3),
        ("ghost copy", 1e-3),
        ("transposed projection", 1e-3),
    ],
)
def test_a_wrong_version_is_far_outside_the_tolerance(mistake: str, least: float) -> None:
    """Each fold done wrongly once, by hand, on the deployed weights."""
    config = KINDS["ghost" if mistake == "ghost copy" else "performer"]
    reference = reference_of(config)
    deploy = DeployT2TViT(reference, choose_strategies(Target.PORTABLE), Precision.FP32)
    attention, block = first_layers(deploy)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = reference(pictures).numpy()  # first: float32 weights are shared, not copied
    with torch.no_grad():
        if mistake == "scale":
            attention.q.weight *= 16**0.5
        elif mistake == "class token":
            deploy.position[:, :1] -= reference.cls_token
        elif mistake == "key and query":
            block.kq_bias.copy_(block.kq_bias.roll(len(block.kq_bias) // 2))
        elif mistake == "ghost copy":
            half = attention.v.weight.shape[1] // 2
            attention.v.weight[:, half:] = attention.v.weight[:, :half]
        else:
            block.proj_weight.copy_(block.proj_weight.T.clone())
    with torch.inference_mode():
        error = relative_error(deploy(pictures).numpy(), wanted)
    assert error > least


@pytest.mark.parametrize(
    ("soft_split", "named"),
    [("conv", "conv"), ("folded,unfold,unfold", "folded"), ("centred,folded,folded", "folded")],
)
def test_convolutions_are_refused_in_bf16(soft_split: str, named: str) -> None:
    strategies = choose_strategies(Target.PORTABLE, soft_split)
    strategies.check_precision(Precision.FP16)
    with pytest.raises(UsageError, match=f"soft split '{named}' is a convolution, .* opset 22"):
        strategies.check_precision(Precision.BF16)
    choose_strategies(Target.PORTABLE, "conv,unfold,unfold").check_precision(Precision.BF16)


def test_quantised_precisions_are_refused() -> None:
    message = "precision int8 is made by quantising, not by export; export one of fp32, fp16, bf16"
    with pytest.raises(UsageError, match=re.escape(message)):
        DeployT2TViT(
            reference_of(KINDS["performer"]), choose_strategies(Target.CPU), Precision.INT8
        )


@pytest.mark.parametrize(
    ("soft_split", "performer", "message"),
    [
        (
            "folding",
            None,
            "'folding' is no soft-split form; expected one of: auto, unfold, conv, folded, "
            "centred, normalised, shifted",
        ),
        ("conv,conv", None, "2 soft-split forms given: conv,conv; expected one or three"),
        (
            None,
            "fast",
            "'fast' is no performer form; expected one of: auto, plain, stable, softmax",
        ),
    ],
)
def test_unknown_forms_are_refused(
    soft_split: str | None, performer: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        choose_strategies(Target.PORTABLE, soft_split, performer)


def test_unsafe_forms_say_so_and_defaults_have_no_hazard() -> None:
    for target in Target:
        assert choose_strategies(target).hazards() == ()
    unsafe = choose_strategies(Target.CPU, "folded", "plain").hazards()
    assert [hazard.split(":")[0] for hazard in unsafe] == [
        "soft split 'folded' on the picture",
        "performer 'plain'",
    ]
    assert choose_strategies(Target.CPU, "centred,folded,folded").hazards() == ()


def test_auto_keeps_the_targets_choice() -> None:
    default = choose_strategies(Target.CPU)
    mixed = choose_strategies(Target.CPU, "auto,conv,auto", "auto")
    assert isinstance(default, Strategies)
    assert mixed.soft_split[1].value == "conv"
    assert mixed.soft_split[::2] == default.soft_split[::2]
    assert mixed.performer == default.performer


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_its_reference(variant: str) -> None:
    reference = reference_of(VARIANTS[variant].config)
    deploy = DeployT2TViT(reference, choose_strategies(Target.PORTABLE), Precision.FP32)
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        error = relative_error(deploy(pictures).numpy(), reference(pictures).numpy())
    assert error < 2e-6
