from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch

from t2t_deploy.errors import UsageError
from t2t_deploy.export import DeployT2TViT, PerformerForm, choose_strategies
from t2t_deploy.export._layers import ClassQueryAttention
from t2t_deploy.export._token_block import TokenTransformer
from t2t_deploy.model import VARIANTS, ModelOutput, T2TViT
from t2t_deploy.types import TOLERANCES, Precision, Target

from .conftest import KINDS, deploy_error, deployed, drawn, logits_of, reference_of, relative_error

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
    deploy = deployed(reference, Target.PORTABLE, soft_split, performer)
    assert deploy_error(deploy, reference) < 2e-6


@pytest.mark.parametrize("target", [Target.TENSORRT, Target.CPU])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_typed_forms_stay_within_tolerance(
    reference: T2TViT, precision: Precision, target: Target
) -> None:
    deploy = deployed(reference, target, precision=precision)
    assert logits_of(deploy, drawn(reference)).dtype == np.float32
    assert deploy_error(deploy, reference) < TOLERANCES[precision].rel_l2


@pytest.mark.parametrize("soft_split", ["unfold", "conv", "shifted"])
def test_what_16_bits_cannot_tell_of_a_picture_is_seen(reference: T2TViT, soft_split: str) -> None:
    """The first norm works in float32: here its windows are flat in float16."""
    deploy = deployed(reference, Target.TENSORRT, soft_split, precision=Precision.FP16)
    pictures = 3 + 1.9e-3 * (torch.rand(3, 3, 32, 32) - 0.5)
    assert (pictures.half() == 3).all()
    wanted = logits_of(reference, pictures)
    blind = logits_of(deploy, pictures.half().float())
    assert relative_error(logits_of(deploy, pictures), wanted) < TOLERANCES[Precision.FP16].rel_l2
    assert relative_error(blind, wanted) > TOLERANCES[Precision.FP16].rel_l2


def test_what_was_rewritten_is_counted(kind: str, reference: T2TViT) -> None:
    report = deployed(reference, Target.TENSORRT, "centred,conv,unfold", "stable").report
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
    assert deploy_error(deploy, reference) < 2e-6


def test_the_cpu_forms_are_counted(kind: str, reference: T2TViT) -> None:
    deploy = deployed(reference, Target.CPU)
    applied, refused = deploy.report.applied, deploy.report.refused
    assert (applied["shifted_soft_split"], applied["unfold_soft_split"]) == (1, 2)
    assert applied.get("softmax_performer", 0) == (0 if kind == "transformer" else 2)
    # the folded class keys leave nothing to fuse in the last block
    blocks = KINDS[kind].depth
    assert applied["fused_attention"] == (blocks if kind == "se" else blocks - 1)
    assert applied.get("folded_class_keys", 0) == (0 if kind == "se" else 1)
    assert list(refused) == (["class_query_only", "folded_class_keys"] if kind == "se" else [])
    assert deploy_error(deploy, reference) < 2e-6


@pytest.mark.parametrize("target", [Target.TENSORRT, Target.CPU])
def test_the_last_attention_has_one_query(kind: str, reference: T2TViT, target: Target) -> None:
    """A gate averages all rows, and needs them."""
    last: Any = deployed(reference, target).blocks[-1]
    (dim,) = last.norm1.normalized_shape
    assert last.attn(torch.randn(2, 5, dim)).shape == (2, 5 if kind == "se" else 1, dim)


@pytest.mark.parametrize("output", [ModelOutput.LOGITS, ModelOutput.TOKENS, ModelOutput.FEATURES])
def test_nothing_reads_the_repeated_rows(kind: str, output: ModelOutput) -> None:
    """4 patches and the class row are computed as 8 rows; what the others hold does not matter."""
    config = KINDS[kind]
    reference = reference_of(config if output is ModelOutput.LOGITS else config.headless(output))
    deploy = deployed(reference, Target.OPENVINO)
    assert deploy.report.applied["repeated_rows"] == 3
    pictures = drawn(reference)

    def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
        with torch.inference_mode():
            found = model(pictures)
        return [found] if isinstance(found, torch.Tensor) else list(found)

    expected, actual = outputs(deployed(reference)), outputs(deploy)
    with torch.inference_mode():
        assert deploy.position[:, 2:5].equal(deploy.position[:, 5:])
        deploy.position[:, 5:] += 10
    for one, own, moved in zip(expected, actual, outputs(deploy), strict=True):
        assert relative_error(own.numpy(), one.numpy()) < 2e-6
        assert relative_error(moved.numpy(), own.numpy()) < 2e-6


@pytest.mark.parametrize(("tokens", "rows"), [(197, 200), (196, 196), (5, 8), (2, 2), (3, 4)])
def test_rows_are_repeated_where_there_are_enough(tokens: int, rows: int) -> None:
    assert choose_strategies(Target.OPENVINO).rows_of(tokens) == rows
    assert choose_strategies(Target.CPU).rows_of(tokens) == tokens


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
    deploy = deployed(reference, Target.CPU)
    shared = [
        name
        for name, tensor in deploy.state_dict().items()
        if tensor.untyped_storage().data_ptr() in owned
    ]
    assert shared == []


@pytest.mark.parametrize(
    "mistake", ["scale", "class token", "key and query", "ghost copy", "transposed projection"]
)
def test_a_wrong_version_is_far_outside_the_tolerance(mistake: str) -> None:
    """Each fold done wrongly once, by hand, on the deployed weights."""
    reference = reference_of(KINDS["ghost" if mistake == "ghost copy" else "performer"])
    deploy = deployed(reference)
    attention: Any = deploy.blocks[0].attn
    block: Any = deploy.tokens.blocks[0]
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
    assert deploy_error(deploy, reference) > 1e-3


@pytest.mark.parametrize(
    ("soft_split", "folded"), [("centred,folded,unfold", 2), ("conv,unfold,folded", None)]
)
def test_folded_norms_are_counted(soft_split: str, folded: int | None) -> None:
    """There is no norm before the third split."""
    report = deployed("performer", Target.PORTABLE, soft_split).report
    assert report.applied.get("folded_layer_norm") == folded


def test_refusals_have_their_reasons() -> None:
    report = deployed("se", Target.CPU, precision=Precision.FP16).report
    averaged = "the squeeze-excite gate averages all rows"
    assert report.refused == {
        "fused_attention": "ONNX Runtime's CPU kernel takes float32 only",
        "class_query_only": averaged,
        "folded_class_keys": averaged,
    }
    message = "precision int8 comes from quantisation, not export; export one of fp32, fp16, bf16"
    with pytest.raises(UsageError, match=re.escape(message)):
        deployed("performer", Target.CPU, precision=Precision.INT8)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_equals_its_reference(variant: str) -> None:
    reference = reference_of(VARIANTS[variant].config)
    assert deploy_error(deployed(reference), reference) < 2e-6
