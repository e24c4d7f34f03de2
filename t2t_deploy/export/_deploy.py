"""The deploy form: the reference's numbers in fewer, larger and safer operations."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.errors import UsageError
from t2t_deploy.export._backbone import DeployBlock, DeployTransition
from t2t_deploy.export._layers import deploy_linear, deploy_norm
from t2t_deploy.export._soft_split import constant, make_split_projection
from t2t_deploy.export._strategies import RewriteReport, Strategies
from t2t_deploy.export._token_block import DeployPerformer, DeployTokenTransformer, scaled_qkv
from t2t_deploy.model import PerformerBlock, T2TViT, Transition
from t2t_deploy.types import Precision

_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}


class DeployT2TViT(nn.Module):
    """A T2T-ViT rewritten for export; inputs and outputs are float32 whatever it computes in.

    ``report`` counts the rewrites. Weights are carried over exactly, then cast once.
    """

    def __init__(self, reference: T2TViT, strategies: Strategies, precision: Precision) -> None:
        super().__init__()
        if precision not in _DTYPES:
            raise UsageError(
                f"precision {precision.value} is made by quantising, not by export; export one of "
                f"{', '.join(p.value for p in _DTYPES)}"
            )
        config = reference.config
        self.config = config
        self.dtype = dtype = _DTYPES[precision]
        applied: Counter[str] = Counter()
        refused: dict[str, str] = {}

        tokens = reference.tokens_to_token
        picture = (config.image_size, config.image_size)
        grids = (picture, *config.grids())
        forms = strategies.soft_split
        self.splits = nn.ModuleList()
        self.token_blocks = nn.ModuleList()
        for index, block in enumerate((tokens.attention1, tokens.attention2)):
            num_tokens = config.splits[index].num_tokens(*grids[index])
            performer = isinstance(block, PerformerBlock)
            split = make_split_projection(
                forms[index],
                config.splits[index],
                grids[index],
                block.norm1,
                block.kqv if performer else scaled_qkv(block),
                dtype=dtype,
                from_picture=index == 0,
            )
            self.splits.append(split)
            applied[f"{forms[index].value}_soft_split"] += 1
            if performer:
                deployed = DeployPerformer(block, strategies.performer, num_tokens, dtype)
                applied[f"{strategies.performer.value}_performer"] += 1
            else:
                deployed = DeployTokenTransformer(block, dtype)
                applied["folded_attention_scale"] += 1
            self.token_blocks.append(deployed)
        self.project = make_split_projection(
            forms[2], config.splits[2], grids[2], None, tokens.project, dtype=dtype
        )
        applied[f"{forms[2].value}_soft_split"] += 1

        self.position = constant(folded_position(reference), dtype)
        applied["folded_class_token"] += 1
        self.blocks = nn.ModuleList()
        last = len(reference.blocks) - 1
        for index, layer in enumerate(reference.blocks):
            if isinstance(layer, Transition):
                self.blocks.append(DeployTransition(layer, dtype))
                continue
            deployed = DeployBlock(
                layer, config.num_patches + 1, dtype, class_only=index == last
            )
            applied["folded_attention_scale"] += 1
            self.blocks.append(deployed)
            if index == last:
                applied["class_row_only"] += 1
                if deployed.class_query:
                    applied["class_query_only"] += 1
                else:
                    refused["class_query_only"] = "the squeeze-excite gate averages all rows"
        self.norm = deploy_norm(reference.norm, dtype)
        self.head = deploy_linear(reference.head, dtype)
        self.report = RewriteReport(applied=dict(applied), refused=refused)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, 3, S, S) float32 -> logits (B, num_classes) float32."""
        for split, block in zip(self.splits, self.token_blocks, strict=True):
            x = block(split(x))
        tokens = self.project(x)
        z = functional.pad(tokens, (0, 0, 1, 0)) + self.position
        for block in self.blocks:
            z = block(z)
        return self.head(self.norm(z[:, 0])).float()  # type: ignore[no-any-return]  # Module calls are Any


def folded_position(reference: T2TViT) -> Tensor:
    """(1, N + 1, dim): position table with the class token added to its first row.

    Tokens padded with one zero row in front, plus this, are [cls; tokens] + pos_embed.
    """
    position = reference.pos_embed.detach().clone()
    position[:, :1] += reference.cls_token.detach()
    return position
