"""Token blocks of the tokens-to-token module. Source: T2T-ViT, section 3.1."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from t2t_deploy.model._backbone import Mlp

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
