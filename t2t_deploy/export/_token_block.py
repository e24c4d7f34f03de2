"""Token blocks in deploy form: everything after the products of the soft split.

A block chooses the products before it (``consumers``): a performer adds its random projection to
them, a transformer its scale; both fold the scale and shift of their first norm into them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.export._layers import (
    Affine,
    DeployMlp,
    FusedAttention,
    constant,
    deploy_linear,
    deploy_norm,
)
from t2t_deploy.export._soft_split import Products
from t2t_deploy.model import PERFORMER_EPSILON, PerformerBlock, TransformerBlock

# A power of two, so that scaling by it is exact. torch 2.13's default exporter removes additions of
# constants up to 1e-8, the performer's epsilon among them; 1e-8 * 2**20 is out of its reach.
_EPSILON_SCALE = 2.0**20
_TINY = torch.finfo(torch.float32).tiny


class PlainPerformer(nn.Module):
    """A performer block as the paper writes it, its features in float32.

    Features are at most exp(|w_j|^2 / 2): 9e6 for rows of norm sqrt(m), infinity beyond 13. Both
    1/sqrt(m) factors stand in the keys' features, with the scale that keeps epsilon visible.
    """

    def __init__(self, block: PerformerBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.token_dim = block.token_dim
        self.dtype = dtype
        kqv = Affine.of(block.kqv).after_norm(block.norm1)
        self.consumers = (kqv,)
        self.bias = constant(kqv.bias, dtype)
        self.w_transposed = constant(block.w.T, torch.float32)
        self.key_scale = _EPSILON_SCALE / block.num_features
        self.proj = deploy_linear(block.proj, dtype)
        self.tail = TokenMlp(block.norm2, block.fc1, block.fc2, dtype)

    def forward(self, products: Products) -> Tensor:
        """Products with ``consumers`` -> (B, T, e)."""
        (kqv,) = products.values
        k, q, v = pieces(scaled(kqv, products.rstd) + self.bias, self.token_dim)
        y = v + self.proj(self.attention(k.float(), q.float(), v.float()).to(self.dtype))
        return self.tail(y)

    def attention(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """k, q, v: (B, T, e) float32 -> (B, T, e)."""
        kp = torch.exp(k @ self.w_transposed - half_norm(k)) * self.key_scale
        qp = torch.exp(q @ self.w_transposed - half_norm(q))
        denominator = qp @ kp.sum(dim=1, keepdim=True).transpose(1, 2)
        numerator = qp @ (kp.transpose(1, 2) @ v)
        return numerator / (denominator + PERFORMER_EPSILON * _EPSILON_SCALE)


class StablePerformer(nn.Module):
    """A performer block as two softmaxes, its epsilon as one more key without a value.

    With a_k = k wT - |k|^2 / 2, a_q likewise and L_j = log sum_t exp(a_k[t, j]), the paper's
    (qp @ (kpT v)) / (qp . sum_t kp + eps), numerator and denominator times m, is

        means = softmax_t(a_k)T v
        out = softmax_j([a_q + L, log(eps m)]) @ [means, 0]

    Every weight lies in [0, 1] and each row of them sums to 1, so nothing overflows, vanishes or is
    added to nothing, in half precision too, and epsilon counts where it counted before. Exponents
    are float32: features are exponentials of differences of large numbers.

    The random projection is part of the products before the block; ``proj`` is applied to the
    (m, e) means instead of to T tokens; a bias of v passes a mean unchanged and is added at the
    end.
    """

    def __init__(self, block: PerformerBlock, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        m, e = block.num_features, block.token_dim
        self.num_features = m
        self.split_norms = (num_tokens, 2, e)
        self.dtype = dtype
        kqv = Affine.of(block.kqv).after_norm(block.norm1)
        k, q, v = kqv.thirds()
        projected, kq = Affine.stacked(k.then(block.w), q.then(block.w)), Affine.stacked(k, q)
        # Three products: slices of one wide result would be copied before they are multiplied.
        # keys and queries themselves are squared and summed, and nothing else
        self.consumers = (projected.named("features"), kq.named("norms"), v.named("v"))
        # apart: a bfloat16 constant that the graph slices is one that nothing folds
        self.key_bias = constant(projected.bias[:m], dtype)
        self.query_bias = constant(projected.bias[m:], dtype)
        self.kq_bias = constant(kq.bias, dtype)
        self.log_epsilon = math.log(PERFORMER_EPSILON * m)
        self.gain = mean_gain(num_tokens)
        proj = Affine.of(block.proj)
        self.proj_weight = constant(proj.weight.T / self.gain, dtype)
        self.means_bias = constant(proj.weight @ v.bias, dtype)
        self.bias = constant(v.bias + proj.bias, dtype)
        self.tail = TokenMlp(block.norm2, block.fc1, block.fc2, dtype)

    def forward(self, products: Products) -> Tensor:
        """Products with ``consumers`` -> (B, T, e)."""
        projected, kq, v = (scaled(product, products.rstd) for product in products.values)
        m = self.num_features
        kw = projected[..., :m] + self.key_bias
        qw = projected[..., m:] + self.query_bias
        key_weights, query_weights = self.weights(kw, qw, kq + self.kq_bias)
        means = (key_weights.transpose(1, 2) @ v) @ self.proj_weight + self.means_bias
        return self.tail(v + query_weights @ means + self.bias)

    def weights(self, kw: Tensor, qw: Tensor, kq: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of keys, times ``gain``, and of queries: (B, T, m) each.

        kw, qw: k wT and q wT, (B, T, m). kq: [k, q], (B, T, 2 * e).
        """
        kq = kq.float().reshape(-1, *self.split_norms)
        half_norms = (kq * kq).sum(dim=-1) * 0.5
        a_k = kw.float() - half_norms[..., :1]
        a_q = qw.float() - half_norms[..., 1:]
        largest = a_k.amax(dim=1, keepdim=True)
        kp = torch.exp(a_k - largest)
        total = kp.sum(dim=1, keepdim=True)
        keys = a_q + (largest + torch.log(total))
        most = keys.amax(dim=2, keepdim=True)
        qp = torch.exp(keys - most)
        # Beyond exp(80) times all features together, epsilon leaves nothing of them in any case.
        epsilon = torch.exp((self.log_epsilon - most).clamp(max=80.0))
        query_weights = qp / (qp.sum(dim=2, keepdim=True) + epsilon)
        return (kp / total * self.gain).to(self.dtype), query_weights.to(self.dtype)


class SoftmaxPerformer(nn.Module):
    """The stable performer in two Softmax operators (the formulas are `StablePerformer`'s).

    A softmax over tokens does not tell its sum, but its largest weight is one over it:

        L_j = max_t a_k[t, j] - log max_t softmax_t(a_k)[t, j]

    and a softmax over features does not change when -|q|^2 / 2 moves from all features to the one
    key that stands for epsilon, with the other sign. Keys are kept features first, so that both
    run over the last axis. The projection's bias passes the means unchanged, as rows of the first
    softmax sum to 1: it is added to the values and taken back from the means.
    """

    def __init__(self, block: PerformerBlock, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        m = block.num_features
        self.num_features, self.num_tokens = m, num_tokens
        self.dtype = dtype
        kqv = Affine.of(block.kqv).after_norm(block.norm1)
        *kq, v = kqv.thirds()
        proj = Affine.of(block.proj)
        # keys and queries over sqrt(2), so that |k|^2 / 2 is their sum of squares
        half = math.sqrt(0.5)
        k, q = (Affine(part.weight * half, part.bias * half) for part in kq)
        values = Affine(v.weight, v.bias + proj.bias)
        self.consumers = (k.named("k"), q.named("q"), values.named("v"))
        self.biases = nn.ParameterList(constant(part.bias, dtype) for part in self.consumers)
        w = block.w.detach().double() / half
        self.w = constant(w, torch.float32)
        self.w_transposed = constant(w.T, torch.float32)
        self.log_epsilon = math.log(PERFORMER_EPSILON * m)
        self.gain = 1.0 if dtype is torch.float32 else mean_gain(num_tokens)
        self.proj_weight = constant(proj.weight.T / self.gain, dtype)
        self.means_bias = constant(-(proj.weight @ proj.bias), dtype)
        self.tail = TokenMlp(block.norm2, block.fc1, block.fc2, dtype)

    def forward(self, products: Products) -> Tensor:
        """Products with ``consumers`` -> (B, T, e)."""
        k, q, v = (
            scaled(product, products.rstd) + bias
            for product, bias in zip(products.values, self.biases, strict=True)
        )
        k, q = k.float(), q.float()
        squares = self.squares(k, keepdim=False).reshape(-1, 1, self.num_tokens)
        a_k = self.w @ k.transpose(1, 2) - squares
        weights = functional.softmax(a_k, dim=-1)
        log_sums = self.log_sums(a_k, weights)
        if self.gain != 1:
            weights = weights * self.gain
        means = (weights.to(self.dtype) @ v) @ self.proj_weight + self.means_bias
        epsilon = self.squares(q, keepdim=True) + self.log_epsilon
        keys = torch.cat((q @ self.w_transposed + log_sums, epsilon), dim=-1)
        query_weights = functional.softmax(keys, dim=-1).to(self.dtype)
        return self.tail(v + query_weights @ functional.pad(means, (0, 0, 0, 1)))

    def squares(self, x: Tensor, *, keepdim: bool) -> Tensor:
        """|x|^2 over the last axis."""
        return (x * x).sum(dim=-1, keepdim=keepdim)

    def log_sums(self, a_k: Tensor, weights: Tensor) -> Tensor:
        """L as a row, (B, 1, m), of the keys' exponents and their softmax, (B, m, T) each."""
        largest = a_k.amax(dim=-1), weights.amax(dim=-1)
        return (largest[0] - torch.log(largest[1])).reshape(-1, 1, self.num_features)


class EntropyPerformer(SoftmaxPerformer):
    """The softmax form without sums, means or maxima: for runtimes that lose the axes of those.

    With p = softmax_t(a_k), every token gives L_j = a_k[t, j] - log p[t, j], and so does their mean
    weighted by p, where a token whose weight vanishes counts nothing:

        L_j = sum_t p[t, j] (a_k[t, j] - log max(p[t, j], tiny))

    Sums are products with ones.
    """

    def __init__(self, block: PerformerBlock, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__(block, num_tokens, dtype)
        self.token_ones = constant(torch.ones(num_tokens, 1), torch.float32)
        self.value_ones = constant(torch.ones(block.token_dim, 1), torch.float32)

    def squares(self, x: Tensor, *, keepdim: bool) -> Tensor:
        """|x|^2 over the last axis, kept in any case."""
        return (x * x) @ self.value_ones

    def log_sums(self, a_k: Tensor, weights: Tensor) -> Tensor:
        """L as a row: (B, 1, m)."""
        each = weights * (a_k - torch.log(weights.clamp(min=_TINY)))
        return (each @ self.token_ones).transpose(1, 2)


class TokenTransformer(nn.Module):
    """A single-head softmax block; the attention scale stands in the query rows.

    groups: the queries are cut into that many runs, which stand where heads would. Each sees all
    keys and values, so the result is the same; runtimes that fuse attention only for several heads
    then do not write the T x T weights out. fused: as one operator of ONNX Runtime's own.
    """

    def __init__(
        self,
        block: TransformerBlock,
        num_tokens: int,
        dtype: torch.dtype,
        *,
        groups: int = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        e = block.attn.token_dim
        self.groups, self.fused = groups, fused
        self.queries = (groups, num_tokens // groups, e)
        self.tokens = (num_tokens, e)
        qkv = Affine.of(block.attn.qkv).after_norm(block.norm1)
        q, k, v = qkv.thirds()
        q = Affine(q.weight * block.attn.scale, q.bias * block.attn.scale)
        self.consumers = (q.named("q"), k.named("k"), v.named("v"))
        self.biases = nn.ParameterList(constant(part.bias, dtype) for part in self.consumers)
        self.proj = deploy_linear(block.attn.proj, dtype)
        self.tail = TokenMlp(block.norm2, block.mlp.fc1, block.mlp.fc2, dtype)

    def forward(self, products: Products) -> Tensor:
        """Products with ``consumers`` -> (B, T, e)."""
        q, k, v = (
            scaled(product, products.rstd) + bias
            for product, bias in zip(products.values, self.biases, strict=True)
        )
        if self.fused:
            attended: Tensor = FusedAttention.apply(  # type: ignore[no-untyped-call]
                q, k, v, 1, self.tokens
            )
        else:
            q = q.reshape(-1, *self.queries)
            keys, values = (torch.stack((t,) * self.groups, dim=1) for t in (k, v))
            attended = functional.softmax(q @ keys.transpose(2, 3), dim=-1) @ values
            attended = attended.reshape(-1, *self.tokens)
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


def mean_gain(num_tokens: int) -> float:
    """What the weights of a mean over T tokens are lifted by, and the projection after it lowered.

    They are near 1/T, which half precision holds poorly: a power of two near sqrt(T).
    """
    return 2.0 ** round(math.log2(num_tokens) / 2)


def half_norm(u: Tensor) -> Tensor:
    """|u|^2 / 2 over the last axis, kept."""
    return (u * u).sum(dim=-1, keepdim=True) * 0.5


def pieces(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three runs of columns of the last axis."""
    return x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]


def scaled(x: Tensor, rstd: Tensor | None) -> Tensor:
    """x * rstd, where a norm was folded and left it to do."""
    return x if rstd is None else x * rstd
