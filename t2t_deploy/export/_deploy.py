"""The deploy form: the reference's numbers in fewer, larger and safer operations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.errors import UsageError
from t2t_deploy.export._folded_split import make_split
from t2t_deploy.export._layers import (
    Affine,
    DeployAttention,
    DeployBlock,
    DeployTransition,
    constant,
    deploy_linear,
    deploy_norm,
)
from t2t_deploy.export._strategies import (
    PerformerForm,
    RewriteReport,
    SoftSplitForm,
    Strategies,
)
from t2t_deploy.export._token_block import (
    EntropyPerformer,
    PlainPerformer,
    SoftmaxPerformer,
    StablePerformer,
    TokenTransformer,
)
from t2t_deploy.model import (
    Block,
    ModelOutput,
    PerformerBlock,
    T2TViT,
    TransformerBlock,
    Transition,
    restructure,
)
from t2t_deploy.types import Precision

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}
_CLASS_ROW_OUTPUTS = (ModelOutput.LOGITS, ModelOutput.EMBEDDING)
"""Of these the last block computes the class row alone, and reads no repeats."""
_FOLD_NORM = frozenset({SoftSplitForm.FOLDED, SoftSplitForm.CENTRED, SoftSplitForm.NORMALISED})


class DeployT2TViT(nn.Module):
    """A T2T-ViT rewritten for export; inputs and outputs are float32 in any precision.

    ``report`` counts the rewrites. Weights are folded in float64, then cast once. Raises UsageError
    for a precision that only quantisation gives.
    """

    def __init__(self, reference: T2TViT, strategies: Strategies, precision: Precision) -> None:
        super().__init__()
        if precision not in _DTYPES:
            raise UsageError(
                f"precision {precision.value} comes from quantisation, not export; export one of "
                f"{', '.join(p.value for p in _DTYPES)}"
            )
        self.config = reference.config
        self.strategies, self.precision = strategies, precision
        dtype = _DTYPES[precision]
        counter = _Counter()
        self.tokens = DeployTokens(reference, strategies, dtype, counter)
        self.num_tokens = reference.config.num_patches + 1
        self.repeats = strategies.rows_of(self.num_tokens) - self.num_tokens
        if self.repeats:
            counter.applied["repeated_rows"] += self.repeats
        self.position = constant(repeated_rows(folded_position(reference), self.repeats), dtype)
        counter.applied["folded_class_token"] += 1
        self.blocks = deploy_blocks(reference, strategies, dtype, counter)
        self.norm = deploy_norm(reference.norm, dtype)
        norm, head = reference.head_norm, reference.head
        self.head_norm = None if norm is None else deploy_norm(norm, dtype)
        self.head = None if head is None else deploy_linear(head, dtype)
        self.report = RewriteReport(applied=dict(counter.applied), refused=counter.refused)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Normalised pictures (B, C, H, W) float32 -> the outputs of the reference, float32."""
        *maps, tokens = self.tokens(x)
        z = functional.pad(repeated_rows(tokens, self.repeats), (0, 0, 1, 0)) + self.position
        output = self.config.output
        class_row = output in _CLASS_ROW_OUTPUTS
        for block in self.blocks[:-1] if class_row else self.blocks:
            z = block(z)
        if self.repeats:
            z = z[:, : self.num_tokens]
        if class_row:
            z = self.blocks[-1](z)
        if output is ModelOutput.TOKENS:
            return self.norm(z).float()
        if output is ModelOutput.FEATURES:
            *grids, last = self.config.grids()
            maps.append(self.norm(z[:, 1:]))
            return tuple(
                restructure(one.float(), grid)
                for one, grid in zip(maps, (*grids, last), strict=True)
            )
        z = self.norm(z[:, 0])
        if self.head_norm is not None:
            z = self.head_norm(z)
        return (z if self.head is None else self.head(z)).float()


@dataclass(slots=True)
class _Counter:
    """Counts of the rewrites so far."""

    applied: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)


class DeployTokens(nn.Module):
    """The tokens-to-token module: picture -> backbone tokens."""

    def __init__(
        self, reference: T2TViT, strategies: Strategies, dtype: torch.dtype, counter: _Counter
    ) -> None:
        super().__init__()
        config, tokens = reference.config, reference.tokens_to_token
        forms, splits = strategies.soft_split, config.splits
        grids = (config.image_hw, *config.grids())
        self.splits = nn.ModuleList()
        self.blocks = nn.ModuleList()
        for index, block in enumerate((tokens.attention1, tokens.attention2)):
            num_tokens = splits[index].num_tokens(*grids[index])
            deployed = deploy_token_block(block, num_tokens, strategies, dtype, counter)
            self.blocks.append(deployed)
            self.splits.append(
                make_split(
                    forms[index],
                    splits[index],
                    grids[index],
                    block.norm1.eps,
                    deployed.consumers,
                    dtype=dtype,
                    from_picture=index == 0,
                )
            )
            if forms[index] in _FOLD_NORM:
                counter.applied["folded_layer_norm"] += 1
        project = Affine.of(tokens.project)
        self.project = make_split(forms[2], splits[2], grids[2], None, (project,), dtype=dtype)
        for form in forms:
            counter.applied[f"{form.value}_soft_split"] += 1

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) float32 -> (B, N, embed_dim) in the compute dtype, bias not added.

        Before it the outputs of both token blocks, (B, rows * columns, token_dim).
        """
        found = []
        for split, block in zip(self.splits, self.blocks, strict=True):
            x = block(split(x))
            found.append(x)
        (tokens,) = self.project(x).values
        return [*found, tokens]


def deploy_token_block(
    block: PerformerBlock | TransformerBlock,
    num_tokens: int,
    strategies: Strategies,
    dtype: torch.dtype,
    counter: _Counter,
) -> PlainPerformer | StablePerformer | SoftmaxPerformer | TokenTransformer:
    """The requested form of a token block on ``num_tokens`` tokens."""
    if isinstance(block, PerformerBlock):
        counter.applied[f"{strategies.performer.value}_performer"] += 1
        if strategies.performer is PerformerForm.PLAIN:
            return PlainPerformer(block, dtype)
        if strategies.performer is PerformerForm.SOFTMAX:
            return SoftmaxPerformer(block, num_tokens, dtype)
        if strategies.performer is PerformerForm.ENTROPY:
            return EntropyPerformer(block, num_tokens, dtype)
        return StablePerformer(block, num_tokens, dtype)
    counter.applied["folded_attention_scale"] += 1
    groups = strategies.query_groups
    if num_tokens % groups:
        counter.refused["query_groups"] = (
            f"{num_tokens} tokens do not divide into {groups} groups of queries"
        )
        groups = 1
    if groups > 1:
        counter.applied["query_groups"] += 1
    fused = strategies.fuse_kernels and dtype in map(_DTYPES.get, strategies.fused_in)
    if fused:
        counter.applied["fused_attention"] += 1
    return TokenTransformer(block, num_tokens, dtype, groups=groups, fused=fused)


def deploy_blocks(
    reference: T2TViT, strategies: Strategies, dtype: torch.dtype, counter: _Counter
) -> nn.ModuleList:
    """The backbone's layers; the last one computes the class row only, if no other is an output."""
    blocks = nn.ModuleList()
    num_tokens = reference.config.num_patches + 1
    num_rows = strategies.rows_of(num_tokens)
    fused = [_DTYPES[precision] for precision in strategies.fused_in]
    fuse = dtype in fused
    if strategies.contrib and not fuse:
        taken = " and ".join(str(one).removeprefix("torch.") for one in fused)
        provider = "CUDA" if strategies.fuse_kernels else "CPU"
        counter.refused["fused_attention"] = f"ONNX Runtime's {provider} kernel takes {taken} only"
    class_row = reference.config.output in _CLASS_ROW_OUTPUTS
    last = len(reference.blocks) - 1 if class_row else None
    for index, layer in enumerate(reference.blocks):
        if isinstance(layer, Transition):
            blocks.append(DeployTransition(layer, dtype))
            continue
        assert isinstance(layer, Block)
        deployed = DeployBlock(
            layer,
            num_tokens,
            num_tokens if index == last else num_rows,
            dtype,
            class_only=index == last,
            fold_class_keys=strategies.fold_class_keys,
            fuse_attention=fuse,
        )
        blocks.append(deployed)
        gate = getattr(deployed.attn, "gate", None)
        if gate is not None and strategies.performer is PerformerForm.ENTROPY:
            gate.average_by_product(num_tokens)
        counter.applied["folded_attention_scale"] += 1
        if isinstance(deployed.attn, DeployAttention) and deployed.attn.fused:
            counter.applied["fused_attention"] += 1
        if deployed.class_only:
            counter.applied["class_row_only"] += 1
            if deployed.class_query:
                counter.applied["class_query_only"] += 1
                if strategies.fold_class_keys:
                    counter.applied["folded_class_keys"] += 1
            else:
                reason = "the squeeze-excite gate averages all rows"
                counter.refused["class_query_only"] = reason
                if strategies.fold_class_keys:
                    counter.refused["folded_class_keys"] = reason
    return blocks


def repeated_rows(x: Tensor, count: int) -> Tensor:
    """(B, N, dim) -> (B, N + count, dim), the last rows once more.

    Whatever the blocks make of a token they make of its repeat: ranges see nothing that is new.
    """
    return torch.cat((x, x[:, -count:]), dim=1) if count else x


def folded_position(reference: T2TViT) -> Tensor:
    """(1, N + 1, dim) float64: position table plus the class token, and the bias of ``project``.

    Tokens without that bias, after one zero row, plus this are [cls; tokens] + pos_embed.
    """
    position = reference.pos_embed.detach().double()
    position[:, :1] += reference.cls_token.detach().double()
    position[:, 1:] += reference.tokens_to_token.project.bias.detach().double()
    return position
