"""Token blocks in deploy form: everything after the soft split's linear layers.

A block chooses the linear layers before it (``linears``): a performer adds its random projection
to them, a transformer its scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.export._layers import DeployMlp, constant, deploy_linear, deploy_norm, linear_of
from t2t_deploy.model import PERFORMER_EPSILON, PerformerBlock, TransformerBlock

# A power of two, so that scaling by it is exact. torch 2.13's default exporter removes additions of
# constants up to 1e-8, the performer's epsilon among them; 1e-8 * 2**20 is out of its reach.
_EPSILON_SCALE = 2.0**20
# Epsilon is shared by this many keys, so that the number of keys stays a multiple of 8: matrix
# products of other sizes leave the tensor cores.
_EPSILON_KEYS = 8


class PlainPerformer(nn.Module):
    """A performer block as the paper writes it, its features in float32.

    Features overflow float32 for keys and queries of a few times the usual size. Both 1/sqrt(m)
    factors stand in the keys' features, with the scale that keeps epsilon visible.
    """

    def __init__(self, block: PerformerBlock, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.token_dim = block.token_dim
        self.dtype = dtype
        self.linears = (block.kqv,)
        self.w = constant(block.w, torch.float32)
        self.key_scale = _EPSILON_SCALE / block.num_features
        self.proj = deploy_linear(block.proj, dtype)
        self.tail = TokenMlp(block.norm2, block.fc1, block.fc2, dtype)

    def forward(self, kqv: Tensor) -> Tensor:
        """(B, T, 3 * e) -> (B, T, e)."""
        k, q, v = pieces(kqv, (self.token_dim,) * 3)
        y = v + self.proj(self.attention(k.float(), q.float(), v.float()).to(self.dtype))
        return self.tail(y)

    def attention(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """k, q, v: (B, T, e) float32 -> (B, T, e)."""
        kp = torch.exp(k @ self.w.T - half_norm(k)) * self.key_scale
        qp = torch.exp(q @ self.w.T - half_norm(q))
        denominator = qp @ kp.sum(dim=1, keepdim=True).transpose(1, 2)
        numerator = qp @ (kp.transpose(1, 2) @ v)
        return numerator / (denominator + PERFORMER_EPSILON * _EPSILON_SCALE)


class StablePerformer(nn.Module):
    """A performer block as two softmaxes, its epsilon as further keys without a value.

    With a_k = k wT - |k|^2 / 2, a_q likewise and L_j = log sum_t exp(a_k[t, j]), the paper's
    (qp @ (kpT v)) / (qp . sum_t kp + eps), numerator and denominator times m, is

        means = softmax_t(a_k)T v
        out = softmax_j([a_q + L, log(eps m)]) @ [means, 0]

    Every weight lies in [0, 1] and each row sums to 1, so nothing overflows, vanishes or is added
    to nothing, in half precision too, and epsilon counts where it counted before. Exponents are
    float32: features are exponentials of differences of large numbers.

    The random projection is part of the linear layers; ``proj`` is applied to the (m, e) means
    instead of to T tokens; the bias of v passes both softmaxes unchanged and is added at the end.
    """

    def __init__(self, block: PerformerBlock, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        m = block.num_features
        self.num_features = m
        self.split_norms = (num_tokens, 2, block.token_dim)
        self.dtype = dtype
        self.linears = performer_linears(block)
        self.log_epsilon = math.log(PERFORMER_EPSILON * m / _EPSILON_KEYS)
        # Means over T tokens have weights near 1/T, which half precision holds poorly. A power of
        # two near sqrt(T) lifts them and is taken back by the projection that follows.
        self.gain = 2.0 ** round(math.log2(num_tokens) / 2)
        proj = block.proj.weight.detach().double().T
        v_bias = block.kqv.bias.detach().double()[-block.token_dim :]
        self.proj_weight = constant(proj / self.gain, dtype)
        self.means_bias = constant(v_bias @ proj, dtype)
        self.bias = constant(v_bias + block.proj.bias.detach().double(), dtype)
        self.tail = TokenMlp(block.norm2, block.fc1, block.fc2, dtype)

    def forward(self, projected: Tensor, kq: Tensor, v: Tensor) -> Tensor:
        """(B, T, 2 * m), (B, T, 2 * e), (B, T, e), as ``linears`` give them -> (B, T, e)."""
        return self.tail(v + self.attention(projected, kq, v) + self.bias)

    def attention(self, projected: Tensor, kq: Tensor, v: Tensor) -> Tensor:
        """[k wT, q wT], [k, q], v without bias -> (B, T, e), ``proj`` without bias applied."""
        kq = kq.float().reshape(-1, *self.split_norms)
        half_norms = (kq * kq).sum(dim=-1) * 0.5
        a_k = projected[..., : self.num_features].float() - half_norms[..., :1]
        a_q = projected[..., self.num_features :].float() - half_norms[..., 1:]
        largest = a_k.amax(dim=1, keepdim=True)
        kp = torch.exp(a_k - largest)
        total = kp.sum(dim=1, keepdim=True)
        key_weights = (kp / total * self.gain).to(self.dtype)
        means = (key_weights.transpose(1, 2) @ v) @ self.proj_weight + self.means_bias
        keys = functional.pad(
            a_q + (largest + torch.log(total)), (0, _EPSILON_KEYS), value=self.log_epsilon
        )
        return keys.softmax(dim=-1).to(self.dtype) @ functional.pad(
            means, (0, 0, 0, _EPSILON_KEYS)
        )


class TokenTransformer(nn.Module):
    """A single-head softmax block; the attention scale stands in the query rows."""

    def __init__(self, block: TransformerBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.token_dim = block.attn.token_dim
        self.linears = (with_folded_scale(block),)
        self.proj = deploy_linear(block.attn.proj, dtype)
        self.tail = TokenMlp(block.norm2, block.mlp.fc1, block.mlp.fc2, dtype)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, T, 3 * e) -> (B, T, e)."""
        q, k, v = pieces(qkv, (self.token_dim,) * 3)
        attended = functional.softmax(q @ k.transpose(1, 2), dim=-1) @ v
        return self.tail(v + self.proj(attended))


class TokenMlp(nn.Module):
    """y + mlp(norm(y)), the end of every token block."""

    def __init__(
        self, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.norm = deploy_norm(norm, dtype)
        self.mlp = DeployMlp(fc1, fc2, dtype)

    def forward(self, y: Tensor) -> Tensor:
        """(B, T, e) -> (B, T, e)."""
        return y + self.mlp(self.norm(y))


def half_norm(u: Tensor) -> Tensor:
    """|u|^2 / 2 over the last axis, kept."""
    return (u * u).sum(dim=-1, keepdim=True) * 0.5


def pieces(x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Consecutive columns of the last axis."""
    starts = [sum(widths[:index]) for index in range(len(widths))]
    return tuple(x[..., s : s + width] for s, width in zip(starts, widths, strict=True))


def performer_linears(block: PerformerBlock) -> tuple[tuple[nn.Linear, ...], tuple[Tensor, Tensor]]:
    """Linear layers that give [k wT, q wT], [k, q] and v, and the biases of the first two.

    Three, because slices of one wide result would be copied before they are multiplied; without
    biases, because runtimes then multiply all three at once.
    """
    weight, bias = block.kqv.weight.detach().double(), block.kqv.bias.detach().double()
    w, e = block.w.detach().double(), block.token_dim
    (k, q, v), (k_bias, q_bias, _) = weight.split(e), bias.split(e)
    linears = (torch.cat((w @ k, w @ q)), torch.cat((k, q)), v)
    biases = torch.cat((w @ k_bias, w @ q_bias)), torch.cat((k_bias, q_bias))
    return tuple(linear_of(rows, None, weight.dtype) for rows in linears), biases


def with_folded_scale(block: TransformerBlock) -> nn.Linear:
    """The qkv projection with the attention scale in the query rows."""
    weight = block.attn.qkv.weight.detach().clone()
    weight[: block.attn.token_dim] *= block.attn.scale
    return linear_of(weight, None)
