"""Small layers of the deploy form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


class DeployMlp(nn.Module):
    """fc2(GELU(fc1(x))) with the erf written out.

    ONNX Runtime's CPU kernels fuse the written-out form and not the Gelu operator of opset 20.
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

    Rewrites compose and fold these; a layer casts the result once. name: what the map's weights are
    called among others; their place among them if it is None.
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
        """The same map, called so."""
        return replace(self, name=name)

    def after_norm(self, norm: nn.LayerNorm) -> Affine:
        """The same map of the normalised input before the norm's own scale and shift."""
        bias = self.bias + self.weight @ norm.bias.detach().double()
        return Affine(self.weight * norm.weight.detach().double(), bias)

    def rows(self, start: int, stop: int) -> Affine:
        """Some outputs only."""
        return Affine(self.weight[start:stop], self.bias[start:stop])

    def then(self, matrix: Tensor) -> Affine:
        """matrix @ y for a matrix (out', out)."""
        matrix = matrix.detach().double()
        return Affine(matrix @ self.weight, matrix @ self.bias)

    @staticmethod
    def stacked(*parts: Affine) -> Affine:
        """Outputs one after the other."""
        return Affine(
            torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        )


def gelu(x: Tensor) -> Tensor:
    """The exact GELU, x * (1 + erf(x / sqrt 2)) / 2."""
    return x * (torch.erf(x / math.sqrt(2)) + 1) * 0.5


class DeployLinear(nn.Module):
    """x @ weight + bias around frozen copies; weight is kept (in, out), as products take it.

    A weight that must be transposed is left to the exporter to fold, and of bf16 it cannot.
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
    """Each consumer's weight in another form, by its name or its place."""
    # pairs keep their order, of a dict the keys are sorted
    return nn.ParameterDict(
        (c.name or str(place), constant(form(c.weight), dtype)) for place, c in enumerate(consumers)
    )


def constant(values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A frozen copy of some weights in the dtype a layer computes in."""
    copied = values.detach().to(dtype, copy=True).contiguous()
    return nn.Parameter(copied, requires_grad=False)
