"""The reference T2T-ViT: the paper's formulas in its order, the released weights' names."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.errors import InputError
from t2t_deploy.model._backbone import Mlp, make_blocks
from t2t_deploy.model._config import ModelConfig, ModelOutput, SoftSplit, TokensType

PERFORMER_EPSILON = 1e-8


class PerformerBlock(nn.Module):
    """Token block with the performer's linear attention.

    Positive random features phi(u) = exp(u wT - |u|^2 / 2) / sqrt(m) stand in for the softmax
    kernel. Source: Performers (ICLR 2021), lemma 1, as used by the released T2T-ViT code.
    """

    def __init__(self, in_dim: int, token_dim: int) -> None:
        super().__init__()
        self.token_dim = token_dim
        self.num_features = token_dim // 2
        self.kqv = nn.Linear(in_dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.norm1 = nn.LayerNorm(in_dim)
        self.norm2 = nn.LayerNorm(token_dim)
        fc1, fc2 = (nn.Linear(token_dim, token_dim) for _ in range(2))
        self.mlp = nn.Sequential(fc1, nn.GELU(), fc2)
        self.w = nn.Parameter(torch.zeros(self.num_features, token_dim), requires_grad=False)

    @property
    def fc1(self) -> nn.Linear:
        """First layer of the MLP."""
        return cast(nn.Linear, self.mlp[0])

    @property
    def fc2(self) -> nn.Linear:
        """Second layer of the MLP."""
        return cast(nn.Linear, self.mlp[2])

    def features(self, u: Tensor) -> Tensor:
        """(B, T, token_dim) -> (B, T, m) positive features."""
        half_norm = u.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(u @ self.w.T - half_norm) / math.sqrt(self.num_features)

    def attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, in_dim) -> attended values and plain values, each (B, T, token_dim)."""
        k, q, v = self.kqv(self.norm1(x)).split(self.token_dim, dim=-1)
        kp, qp = self.features(k), self.features(q)
        denominator = qp @ kp.sum(dim=1).unsqueeze(-1)
        numerator = qp @ (kp.transpose(1, 2) @ v)
        return numerator / (denominator + PERFORMER_EPSILON), v

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_dim) -> (B, T, token_dim); the skip is v, not x."""
        attended, v = self.attention(x)
        y: Tensor = v + self.proj(attended)
        return y + self.mlp(self.norm2(y))


class TokenAttention(nn.Module):
    """One softmax head whose scale follows the *input* width, not the head's."""

    def __init__(self, in_dim: int, token_dim: int) -> None:
        super().__init__()
        self.token_dim = token_dim
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_dim) -> (B, T, token_dim), its own skip (v) included."""
        q, k, v = self.qkv(x).split(self.token_dim, dim=-1)
        weights = ((q * self.scale) @ k.transpose(1, 2)).softmax(dim=-1)
        return v + self.proj(weights @ v)


class TransformerBlock(nn.Module):
    """Token block with single-head softmax attention (the ``t_`` variants)."""

    def __init__(self, in_dim: int, token_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim, token_dim)
        self.norm2 = nn.LayerNorm(token_dim)
        self.mlp = Mlp(token_dim, token_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, in_dim) -> (B, T, token_dim)."""
        y: Tensor = self.attn(self.norm1(x))
        return y + self.mlp(self.norm2(y))


def soft_split(x: Tensor, split: SoftSplit) -> Tensor:
    """(B, C, H, W) -> (B, L, C * kernel**2), channel-major windows. Source: T2T-ViT, eq. 3."""
    windows = functional.unfold(x, split.kernel, padding=split.padding, stride=split.stride)
    return windows.transpose(1, 2)


def restructure(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, rows * columns, C) -> (B, C, rows, columns). Source: T2T-ViT, eq. 2."""
    return tokens.transpose(1, 2).unflatten(2, grid)


class TokensToToken(nn.Module):
    """Image -> backbone tokens by three soft splits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        kind = PerformerBlock if config.tokens_type is TokensType.PERFORMER else TransformerBlock
        first, second, third = config.splits
        self.config = config
        self.attention1 = kind(config.in_chans * first.kernel**2, config.token_dim)
        self.attention2 = kind(config.token_dim * second.kernel**2, config.token_dim)
        self.project = nn.Linear(config.token_dim * third.kernel**2, config.embed_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> maps (B, token_dim, rows, columns) after both blocks, and the tokens.

        Tokens: (B, N, embed_dim).
        """
        first, second, third = self.config.splits
        grid1, grid2, _ = self.config.grids()
        y1 = restructure(self.attention1(soft_split(x, first)), grid1)
        y2 = restructure(self.attention2(soft_split(y1, second)), grid2)
        return y1, y2, self.project(soft_split(y2, third))


class T2TViT(nn.Module):
    """T2T-ViT of any released or user-defined dimensions. Source: T2T-ViT (ICCV 2021)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens_to_token = TokensToToken(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, config.num_patches + 1, config.embed_dim), requires_grad=False
        )
        self.blocks = make_blocks(config)
        self.norm = nn.LayerNorm(config.head_dim)
        self.head_norm = nn.LayerNorm(config.head_dim) if config.head_norm else None
        self.head = nn.Linear(config.head_dim, config.num_classes) if config.num_classes else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, C, H, W) -> the first of `outputs`, such as the logits."""
        return self.outputs(x)[0]

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Normalised pictures (B, C, H, W) -> (B, ...) of each of the config's ``output_shapes``.

        Raises InputError where C, H, W are not the model's.
        """
        if x.shape[1:] != self.config.input_shape:
            expected = ", ".join(map(str, self.config.input_shape))
            raise InputError(
                f"input is {tuple(x.shape)}; expected (B, {expected}): resize the picture, "
                "or load the model with another image size"
            )
        map1, map2, tokens = self.tokens_to_token(x)
        cls = self.cls_token.expand(x.shape[0], -1, -1)
        z = torch.cat((cls, tokens), dim=1) + self.pos_embed
        for block in self.blocks:
            z = block(z)
        z = self.norm(z)
        if self.config.output is ModelOutput.TOKENS:
            return (z,)
        if self.config.output is ModelOutput.FEATURES:
            return map1, map2, restructure(z[:, 1:], self.config.grids()[2])
        features = z[:, 0]
        if self.head_norm is not None:
            features = self.head_norm(features)
        return (features if self.head is None else self.head(features),)

    def typical_norm(self) -> float:
        """The norm that the logits' error is told by where a picture's own is smaller.

        Root mean square over pictures whose features lie in every direction: ||W diag(g)||, of the
        classifier's weight and the weight of the norm before it, as that makes features of unit
        variance. With many classes a picture's own norm is about that large; with one or few it
        may be near zero. 0 without a classifier, whose features have a norm of their own.
        """
        if self.head is None:
            return 0.0
        norm = self.norm if self.head_norm is None else self.head_norm
        weight, scale = (one.weight.detach().double() for one in (self.head, norm))
        return float((weight * scale).norm())
