"""Backbone layers: the plain block and the paper's CNN-inspired designs (section 3.2)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from t2t_deploy.model._config import SE_REDUCTION, Backbone, ModelConfig


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))), with the exact (erf) GELU."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(self.act(self.fc1(x)))


class SqueezeExcite(nn.Module):
    """Per-channel gate from the mean over all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim // SE_REDUCTION
        self.fc = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, dim, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        return x * self.fc(x.mean(dim=1, keepdim=True))

    @property
    def down(self) -> nn.Linear:
        """To the hidden channels."""
        return cast(nn.Linear, self.fc[0])

    @property
    def up(self) -> nn.Linear:
        """Back to all channels."""
        return cast(nn.Linear, self.fc[2])


class Attention(nn.Module):
    """Multi-head softmax attention; qkv without bias, optionally gated by squeeze-excite."""

    def __init__(self, dim: int, num_heads: int, *, squeeze_excite: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.se_layer = SqueezeExcite(dim) if squeeze_excite else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        y: Tensor = self.proj(attend(q, k, v, self.num_heads, self.scale))
        return y if self.se_layer is None else self.se_layer(y)


class GhostAttention(nn.Module):
    """Attention whose q, k, v are half computed and half scaled copies ("cheap features")."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        half = dim // 2
        self.q = nn.Linear(dim, half, bias=False)
        self.k = nn.Linear(dim, half, bias=False)
        self.v = nn.Linear(dim, half, bias=False)
        self.cheap_operation_q = cheap_operation(half)
        self.cheap_operation_k = cheap_operation(half)
        self.cheap_operation_v = cheap_operation(half)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        q, k, v = self.q(x), self.k(x), self.v(x)
        q = torch.cat((q, scale_channels(q, self.cheap_operation_q)), dim=-1)
        k = torch.cat((k, scale_channels(k, self.cheap_operation_k)), dim=-1)
        v = torch.cat((v, scale_channels(v, self.cheap_operation_v)), dim=-1)
        return self.proj(attend(q, k, v, self.num_heads, self.scale))


class GhostMlp(nn.Module):
    """MLP whose hidden layer is one computed third and two scaled copies of it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(3 * dim, dim)
        self.cheap_operation2 = cheap_operation(dim)
        self.cheap_operation3 = cheap_operation(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        g = self.act(self.fc1(x))
        second = self.act(scale_channels(g, self.cheap_operation2))
        third = self.act(scale_channels(g, self.cheap_operation3))
        return self.fc2(torch.cat((g, second, third), dim=-1))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, attn: Attention | GhostAttention, mlp: Mlp | GhostMlp) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DenseBlock(Block):
    """A block whose result is mapped to ``growth`` channels and appended to its input."""

    def __init__(self, dim: int, growth: int, attn: Attention, mlp: Mlp) -> None:
        super().__init__(dim, attn, mlp)
        self.dense_linear = nn.Linear(dim, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim + growth)."""
        return torch.cat((x, self.dense_linear(super().forward(x))), dim=-1)


class Transition(nn.Module):
    """GELU(linear(x)) between dense stages; halves the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim // 2)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim // 2)."""
        return self.act(self.linear(x))


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float) -> Tensor:
    """Softmax attention over heads: q, k, v and the result are (B, N, dim)."""
    q, k, v = (t.unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = ((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def cheap_operation(channels: int) -> nn.Conv1d:
    """A depthwise 1x1 scaling without bias, weight (channels, 1, 1)."""
    return nn.Conv1d(channels, channels, kernel_size=1, groups=channels, bias=False)


def scale_channels(x: Tensor, operation: nn.Conv1d) -> Tensor:
    """Apply a cheap operation to (B, N, channels)."""
    return x * operation.weight.flatten()


def make_blocks(config: ModelConfig) -> nn.ModuleList:
    """All layers of the backbone in order, dense transitions included."""
    blocks = nn.ModuleList()
    heads = config.num_heads
    stage_starts = {sum(config.stages[:n]) for n in range(1, len(config.stages))}
    for index, width in enumerate(config.block_widths()):
        hidden = int(width * config.mlp_ratio)
        if config.backbone is Backbone.GHOST:
            blocks.append(Block(width, GhostAttention(width, heads), GhostMlp(width)))
        elif config.backbone is Backbone.DENSE:
            if index in stage_starts:
                blocks.append(Transition(2 * width))
            layer = DenseBlock(width, config.growth, Attention(width, heads), Mlp(width, hidden))
            blocks.append(layer)
        else:
            gated = config.backbone is Backbone.SE
            attention = Attention(width, heads, squeeze_excite=gated)
            blocks.append(Block(width, attention, Mlp(width, hidden)))
    return blocks
