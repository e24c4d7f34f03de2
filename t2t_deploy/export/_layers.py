"""Layers of the deploy form: small ones, and the backbone's blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from t2t_deploy.graph import CONTRIB_DOMAIN
from t2t_deploy.model import (
    Attention,
    Block,
    DenseBlock,
    GhostAttention,
    GhostMlp,
    SqueezeExcite,
    Transition,
)


class DeployMlp(nn.Module):
    """fc2(GELU(fc1(x))) with the erf written out.

    ONNX Runtime's CPU kernels fuse this form and not the Gelu operator of opset 20.
    """

    def __init__(self, fc1: nn.Linear, fc2: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = deploy_linear(fc1, dtype)
        self.fc2 = deploy_linear(fc2, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.fc2(gelu(self.fc1(x)))


@dataclass(frozen=True, slots=True)
class Affine:
    """y = x @ weight.T + bias in float64: weight (out, in), bias (out,).

    Rewrites compose and fold these; a layer casts the result once. name: of the weights among
    others; None is their index.
    """

    weight: Tensor
    bias: Tensor
    name: str | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> Affine:
        """The map of a Linear; an absent bias is zero."""
        weight = linear.weight.detach().double()
        if linear.bias is None:
            return cls(weight, torch.zeros(len(weight), dtype=torch.float64))
        return cls(weight, linear.bias.detach().double())

    def named(self, name: str) -> Affine:
        """The same map with a name."""
        return replace(self, name=name)

    def after_norm(self, norm: nn.LayerNorm) -> Affine:
        """The same map of the normalised input before the norm's own scale and shift."""
        bias = self.bias + self.weight @ norm.bias.detach().double()
        return Affine(self.weight * norm.weight.detach().double(), bias)

    def thirds(self) -> Iterator[Affine]:
        """Three runs of outputs, as a layer of keys, queries and values has."""
        return map(Affine, self.weight.chunk(3), self.bias.chunk(3))

    def then(self, matrix: Tensor) -> Affine:
        """matrix @ y for a matrix (out', out)."""
        matrix = matrix.detach().double()
        return Affine(matrix @ self.weight, matrix @ self.bias)

    @staticmethod
    def stacked(*maps: Affine) -> Affine:
        """Outputs one after the other."""
        return Affine(
            torch.cat([one.weight for one in maps]), torch.cat([one.bias for one in maps])
        )


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, x * (1 + erf(x / sqrt 2)) / 2."""
    return x * (torch.erf(x / math.sqrt(2)) + 1) * 0.5


class DeployLinear(nn.Module):
    """x @ weight + bias around frozen copies; weight is kept (in, out), as products take it.

    The exporter would have to fold a transposition, and cannot in bf16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = constant(weight.T, dtype)
        self.bias = None if bias is None else constant(bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


def deploy_linear(linear: nn.Linear, dtype: torch.dtype) -> DeployLinear:
    """A frozen copy in another dtype."""
    return DeployLinear(linear.weight, linear.bias, dtype)


def deploy_norm(norm: nn.LayerNorm, dtype: torch.dtype) -> nn.LayerNorm:
    """A frozen copy in another dtype; ONNX keeps its statistics in float32 (stash_type 1)."""
    copy = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    copy.weight = constant(norm.weight, dtype)
    copy.bias = constant(norm.bias, dtype)
    return copy


def weights_of(
    consumers: Sequence[Affine], form: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> nn.ParameterDict:
    """Each consumer's weight in another form, by its name or its index."""
    # pairs keep their order, a dict's keys are sorted
    return nn.ParameterDict(
        (c.name or str(index), constant(form(c.weight), dtype)) for index, c in enumerate(consumers)
    )


def constant(values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A frozen copy of some weights in the dtype a layer computes in."""
    copied = values.detach().to(dtype, copy=True).contiguous()
    return nn.Parameter(copied, requires_grad=False)


# -- the backbone ------------------------------------------------------------------------------


class FusedAttention(torch.autograd.Function):
    """softmax(q kT) v per head, exported as ONNX Runtime's ``MultiHeadAttention``.

    Source: ONNX Runtime's contrib operators, com.microsoft.MultiHeadAttention-1.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, num_heads: int, shape: tuple[int, int]
    ) -> Tensor:
        """(B, Q, dim), (B, N, dim), (B, N, dim) -> (B, Q, dim); q includes the scale.

        shape: (Q, dim).
        """
        q, k, v = (split_heads(x, x.shape[1], num_heads) for x in (q, k, v))
        return ((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, num_heads: int, shape: tuple[int, int]) -> Any:
        """The node in the exported graph, with its shape, which no exporter can infer."""
        op = f"{CONTRIB_DOMAIN}::MultiHeadAttention"
        node = g.op(op, q, k, v, num_heads_i=num_heads, scale_f=1.0)
        return node.setType(q.type().with_sizes([None, *shape]))


class DeployAttention(nn.Module):
    """Softmax attention with its scale in the query weight; ``class_only`` is for one query.

    Ghost attention becomes plain attention: concatenating W x with c * (W x) is one
    projection by [W; diag(c) W]. fused: as one operator of ONNX Runtime's own.
    num_rows: of what it reads and gives; keys and values are those of the first ``num_tokens``.
    """

    def __init__(
        self,
        attention: Attention | GhostAttention,
        num_tokens: int,
        num_rows: int,
        dtype: torch.dtype,
        *,
        class_only: bool,
        fused: bool = False,
    ) -> None:
        super().__init__()
        q, k, v = qkv_weights(attention)
        self.fused = fused
        self.num_heads = attention.num_heads
        self.num_tokens, self.num_rows = num_tokens, num_rows
        self.repeats = num_rows > num_tokens
        self.num_queries = 1 if class_only else num_rows
        self.q, self.k, self.v = (DeployLinear(w, None, dtype) for w in (q * attention.scale, k, v))
        self.proj = deploy_linear(attention.proj, dtype)
        self.gate = None
        if isinstance(attention, Attention) and attention.se_layer is not None:
            counted = num_tokens if self.repeats else None
            self.gate = DeployGate(attention.se_layer, counted, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, queries, dim)."""
        queries = x[:, :1] if self.num_queries == 1 else x
        q, k, v = self.q(queries), self.k(x), self.v(x)
        if self.fused:
            if self.repeats:
                k, v = k[:, : self.num_tokens], v[:, : self.num_tokens]
            y: Tensor = FusedAttention.apply(  # type: ignore[no-untyped-call]
                q, k, v, self.num_heads, (self.num_queries, self.proj.in_features)
            )
        else:
            q = split_heads(q, self.num_queries, self.num_heads)
            k, v = (split_heads(part, self.num_rows, self.num_heads) for part in (k, v))
            if self.repeats:  # behind the transposition OpenVINO copies less
                k, v = k[:, :, : self.num_tokens], v[:, :, : self.num_tokens]
            y = (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
            y = y.transpose(1, 2).reshape(-1, self.num_queries, self.proj.in_features)
        y = self.proj(y)
        return y if self.gate is None else self.gate(y)


class ClassQueryAttention(nn.Module):
    """Attention of the class query, without explicit keys and values.

    Per head, with one query q: q . (K x_t) = (KT q) . x_t, and sum_t p_t (V x_t) = V (sum_t p_t
    x_t). Two products with all N tokens become two with one row.
    """

    def __init__(self, attention: Attention | GhostAttention, dtype: torch.dtype) -> None:
        super().__init__()
        q, k, v = qkv_weights(attention)
        heads = (attention.num_heads, -1, q.shape[1])
        self.num_heads, self.dim = attention.num_heads, q.shape[1]
        self.q = DeployLinear(q * attention.scale, None, dtype)
        self.k = constant(k.reshape(heads), dtype)
        self.v = constant(v.reshape(heads).transpose(1, 2), dtype)
        self.proj = deploy_linear(attention.proj, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, 1, dim)."""
        q = self.q(x[:, :1]).reshape(-1, self.num_heads, 1, self.k.shape[1])
        queries = (q @ self.k).reshape(-1, self.num_heads, self.dim)
        means = (queries @ x.transpose(1, 2)).softmax(dim=-1) @ x
        y = means.reshape(-1, self.num_heads, 1, self.dim) @ self.v
        return self.proj(y.reshape(-1, 1, self.proj.in_features))


class DeployGate(nn.Module):
    """Squeeze-excite over all tokens; num_tokens: where other rows follow them, else None."""

    def __init__(self, layer: SqueezeExcite, num_tokens: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.shares: Tensor | None = None
        self.down = deploy_linear(layer.down, dtype)
        self.up = deploy_linear(layer.up, dtype)

    def average_by_product(self, num_tokens: int) -> None:
        """Take the mean as a product, for runtimes that lose its axis.

        In two rows alike: ncnn 1.0.20261020 gives other numbers for a gate of one row.
        """
        self.shares = torch.full((2, num_tokens), 1 / num_tokens).to(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        tokens = x if self.num_tokens is None else x[:, : self.num_tokens]
        mean = tokens.mean(dim=1, keepdim=True) if self.shares is None else self.shares @ tokens
        gate = torch.sigmoid(self.up(torch.relu(self.down(mean))))
        return x * (gate if self.shares is None else torch.full_like(self.shares, 0.5).T @ gate)


class DeployGhostMlp(nn.Module):
    """Ghost MLP; its scaled copies pass the GELU, so they are not folded."""

    def __init__(self, mlp: GhostMlp, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc1 = deploy_linear(mlp.fc1, dtype)
        self.fc2 = deploy_linear(mlp.fc2, dtype)
        self.second = constant(mlp.cheap_operation2.weight.flatten(), dtype)
        self.third = constant(mlp.cheap_operation3.weight.flatten(), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        g = gelu(self.fc1(x))
        copies = (g, gelu(g * self.second), gelu(g * self.third))
        return self.fc2(torch.cat(copies, dim=-1))


class DeployBlock(nn.Module):
    """A pre-norm block; ``class_only`` computes the class row and drops the others.

    The squeeze-excite gate averages over all rows, so a gated attention keeps every query, and
    only the rest is cut. fold_class_keys: see `ClassQueryAttention`; fuse_attention: see
    `FusedAttention`.
    """

    def __init__(
        self,
        block: Block,
        num_tokens: int,
        num_rows: int,
        dtype: torch.dtype,
        *,
        class_only: bool,
        fold_class_keys: bool = False,
        fuse_attention: bool = False,
    ) -> None:
        super().__init__()
        self.class_only = class_only
        gated = isinstance(block.attn, Attention) and block.attn.se_layer is not None
        self.class_query = class_only and not gated
        self.norm1 = deploy_norm(block.norm1, dtype)
        self.attn = (
            ClassQueryAttention(block.attn, dtype)
            if self.class_query and fold_class_keys
            else DeployAttention(
                block.attn,
                num_tokens,
                num_rows,
                dtype,
                class_only=self.class_query,
                fused=fuse_attention,
            )
        )
        self.norm2 = deploy_norm(block.norm2, dtype)
        self.mlp = (
            DeployGhostMlp(block.mlp, dtype)
            if isinstance(block.mlp, GhostMlp)
            else DeployMlp(block.mlp.fc1, block.mlp.fc2, dtype)
        )
        self.dense_linear = (
            deploy_linear(block.dense_linear, dtype) if isinstance(block, DenseBlock) else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim [+ growth]), or (B, 1, ...) of the class row."""
        attended = self.attn(self.norm1(x))
        if self.class_only:
            x, attended = x[:, :1], attended[:, :1]
        y = x + attended
        y = y + self.mlp(self.norm2(y))
        if self.dense_linear is None:
            return y
        return torch.cat((x, self.dense_linear(y)), dim=-1)


class DeployTransition(nn.Module):
    """GELU(linear(x)) between dense stages."""

    def __init__(self, transition: Transition, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = deploy_linear(transition.linear, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim // 2)."""
        return gelu(self.linear(x))


def split_heads(x: Tensor, tokens: int, num_heads: int) -> Tensor:
    """(B, tokens, dim) -> (B, heads, tokens, dim / heads)."""
    return x.reshape(-1, tokens, num_heads, x.shape[-1] // num_heads).transpose(1, 2)


def qkv_weights(attention: Attention | GhostAttention) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value weights, each (dim, dim)."""
    if isinstance(attention, Attention):
        q, k, v = attention.qkv.weight.detach().chunk(3)
        return q, k, v
    halves = (
        (getattr(attention, letter), getattr(attention, f"cheap_operation_{letter}"))
        for letter in "qkv"
    )
    q, k, v = (
        torch.cat((half.weight, half.weight * cheap.weight.reshape(-1, 1))).detach()
        for half, cheap in halves
    )
    return q, k, v
