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
# The epsilon term is exp of at most this: still finite in float32, and far above any numerator.
_MAX_EPSILON_EXPONENT = 80.0


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
    """A performer block whose features are shifted into (0, 1], with epsilon as one more of them.

    With a_k = k wT - |k|^2 / 2 and a_q likewise, any shifts g_j and c_t give the paper's result,
    epsilon included, once numerator and denominator are multiplied by m exp(-c):

        kp = exp(a_k - g),  qp = exp(a_q + g - c),  S_j = sum_t kp[t, j]
        out = (qp @ (kpT v)) / (qp . S + exp(log(eps m) - c))

    g_j = max_t a_k[t, j] - log s, with s a power of two near 1/sqrt(T), keeps every S_j in
    [s, T s]; c_t = max(max_j (a_q + g), log(eps m)) keeps qp and the epsilon term in [0, 1], and
    one of them at 1. So nothing overflows, vanishes or is added to nothing, in half precision too.

    The random projection is part of the linear layers, and ``proj`` is applied to the (m, e)
    summary kpT v instead of to T tokens. Exponents are float32: features are exponentials of
    differences of large numbers.
    """

    def __init__(self, block: PerformerBlock, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_features = block.num_features
        self.split_norms = (num_tokens, 2, block.token_dim)
        self.dtype = dtype
        self.linears = performer_linears(block)
        self.log_scale = -round(math.log2(num_tokens) / 2) * math.log(2)
        self.log_epsilon = math.log(PERFORMER_EPSILON * self.num_features)
        self.proj_weight = constant(block.proj.weight.T, dtype)
        self.proj_bias = constant(block.proj.bias, dtype)
        self.tail = TokenMlp(block.norm2, block.fc1, block.fc2, dtype)

    def forward(self, projected: Tensor, kq: Tensor, v: Tensor) -> Tensor:
        """(B, T, 2 * m), (B, T, 2 * e), (B, T, e), as ``linears`` give them -> (B, T, e)."""
        y = v + self.attention(projected, kq, v) + self.proj_bias
        return self.tail(y)

    def attention(self, projected: Tensor, kq: Tensor, v: Tensor) -> Tensor:
        """[k wT, q wT], [k, q] and v -> (B, T, e), ``proj`` without its bias applied."""
        kq = kq.float().reshape(-1, *self.split_norms)
        half_norms = (kq * kq).sum(dim=-1) * 0.5
        a_k = projected[..., : self.num_features].float() - half_norms[..., :1]
        a_q = projected[..., self.num_features :].float() - half_norms[..., 1:]
        g = a_k.amax(dim=1, keepdim=True) - self.log_scale
        kp = torch.exp(a_k - g)
        b = a_q + g
        c = b.amax(dim=2, keepdim=True).clamp(min=self.log_epsilon)
        qp = torch.exp(b - c)
        total = kp.sum(dim=1, keepdim=True)
        denominator = (qp * total).sum(dim=2, keepdim=True) + torch.exp(self.log_epsilon - c)
        summary = (kp.to(self.dtype).transpose(1, 2) @ v) @ self.proj_weight
        return (qp.to(self.dtype) @ summary) / denominator.to(self.dtype)


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


def performer_linears(block: PerformerBlock) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Linear layers that give [k wT, q wT], [k, q] and v.

    Apart, because each is read by other operations: slices of one wide result would be copied.
    """
    weight, bias = block.kqv.weight.detach().double(), block.kqv.bias.detach().double()
    w, e = block.w.detach().double(), block.token_dim
    projected = linear_of(
        torch.cat((w @ weight[:e], w @ weight[e : 2 * e])),
        torch.cat((w @ bias[:e], w @ bias[e : 2 * e])),
    )
    kq = linear_of(weight[: 2 * e], bias[: 2 * e])
    return projected, kq, linear_of(weight[2 * e :], bias[2 * e :])


def with_folded_scale(block: TransformerBlock) -> nn.Linear:
    """The qkv projection with the attention scale in the query rows."""
    weight = block.attn.qkv.weight.detach().clone()
    weight[: block.attn.token_dim] *= block.attn.scale
    return linear_of(weight, None)
