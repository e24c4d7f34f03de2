"""Token blocks in deploy form: everything after the soft split's Linear."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.export._layers import DeployMlp, constant, deploy_linear, deploy_norm
from t2t_deploy.export._strategies import PerformerForm
from t2t_deploy.model import PERFORMER_EPSILON, PerformerBlock, TransformerBlock

# A power of two, so that scaling by it is exact. torch 2.13's exporter removes additions of
# constants up to 1e-8, the performer's epsilon among them; 1e-8 * 2**20 is out of its reach.
_EPSILON_SCALE = 2.0**20
# Largest exponent of the epsilon term: exp(11) still fits fp16, exp(80) float32 and bf16.
_MAX_EPSILON_EXPONENT = {torch.float16: 11.0, torch.bfloat16: 80.0, torch.float32: 80.0}


class PlainFeatures(nn.Module):
    """Performer attention as the paper writes it: features overflow for large keys.

    Both 1/sqrt(m) factors stand in the keys' features, with the scale that keeps epsilon visible.
    """

    def __init__(self, w: Tensor, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = constant(w, dtype)
        self.key_scale = _EPSILON_SCALE / w.shape[0]

    def forward(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """k, q, v: (B, T, e) -> (B, T, e)."""
        kp = torch.exp(log_features(k, self.w)) * self.key_scale
        qp = torch.exp(log_features(q, self.w))
        denominator = qp @ kp.sum(dim=1, keepdim=True).transpose(1, 2)
        numerator = qp @ (kp.transpose(1, 2) @ v)
        return numerator / (denominator + PERFORMER_EPSILON * _EPSILON_SCALE)


class StableFeatures(nn.Module):
    """Performer attention with a shift per feature and epsilon carried in the exponent.

    c_j = max_t a_k[t, j] moves from the keys into the queries, c_q = max_j (a_q + c)_j cancels
    between numerator and denominator, so all features lie in (0, 1] and every feature's mean over
    the T tokens is at least 1/T. Equal to the paper's form, epsilon included.
    """

    def __init__(self, w: Tensor, num_tokens: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = constant(w, dtype)
        self.token_scale = 1 / math.sqrt(num_tokens)
        self.log_epsilon = math.log(PERFORMER_EPSILON * w.shape[0] / num_tokens)
        self.max_exponent = _MAX_EPSILON_EXPONENT[dtype]

    def forward(self, k: Tensor, q: Tensor, v: Tensor) -> Tensor:
        """k, q, v: (B, T, e) -> (B, T, e)."""
        a_k = log_features(k, self.w)
        shift = a_k.amax(dim=1, keepdim=True)
        kp = torch.exp(a_k - shift)
        b = log_features(q, self.w) + shift
        query_shift = b.amax(dim=2, keepdim=True)
        qp = torch.exp(b - query_shift)
        summary = (kp * self.token_scale).transpose(1, 2) @ (v * self.token_scale)
        epsilon = torch.exp((self.log_epsilon - query_shift).clamp(max=self.max_exponent))
        denominator = (qp * kp.mean(dim=1, keepdim=True)).sum(dim=2, keepdim=True) + epsilon
        return (qp @ summary) / denominator


def log_features(u: Tensor, w: Tensor) -> Tensor:
    """u wT - |u|^2 / 2: (B, T, e), (m, e) -> (B, T, m)."""
    return u @ w.T - (u * u).sum(dim=-1, keepdim=True) * 0.5


_FEATURES = {PerformerForm.PLAIN: PlainFeatures, PerformerForm.STABLE: StableFeatures}


class DeployPerformer(nn.Module):
    """A performer block after its kqv projection; the feature region computes in float32."""

    def __init__(
        self, block: PerformerBlock, form: PerformerForm, num_tokens: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.token_dim = block.token_dim
        self.dtype = dtype
        self.attention = _FEATURES[form](block.w, num_tokens, torch.float32)
        self.proj = deploy_linear(block.proj, dtype)
        self.norm = deploy_norm(block.norm2, dtype)
        self.mlp = DeployMlp(block.fc1, block.fc2, dtype)

    def forward(self, kqv: Tensor) -> Tensor:
        """(B, T, 3 * e) -> (B, T, e)."""
        k, q, v = thirds(kqv, self.token_dim)
        attended = self.attention(k.float(), q.float(), v.float()).to(self.dtype)
        y = v + self.proj(attended)
        return y + self.mlp(self.norm(y))


class DeployTokenTransformer(nn.Module):
    """A single-head softmax block after its qkv projection (scale already in the query rows)."""

    def __init__(self, block: TransformerBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.token_dim = block.attn.token_dim
        self.proj = deploy_linear(block.attn.proj, dtype)
        self.norm = deploy_norm(block.norm2, dtype)
        self.mlp = DeployMlp(block.mlp.fc1, block.mlp.fc2, dtype)

    def forward(self, qkv: Tensor) -> Tensor:
        """(B, T, 3 * e) -> (B, T, e)."""
        q, k, v = thirds(qkv, self.token_dim)
        attended = functional.softmax(q @ k.transpose(1, 2), dim=-1) @ v
        y = v + self.proj(attended)
        return y + self.mlp(self.norm(y))


def thirds(x: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3 * width) -> three (B, T, width)."""
    return x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]


def scaled_qkv(block: TransformerBlock) -> nn.Linear:
    """The block's qkv projection with the attention scale folded into the query rows."""
    qkv = block.attn.qkv
    scaled = nn.Linear(qkv.in_features, qkv.out_features, bias=False)
    rows = torch.ones(qkv.out_features, 1)
    rows[: block.attn.token_dim] = block.attn.scale
    scaled.weight = constant(qkv.weight * rows, qkv.weight.dtype)
    return scaled
