"""Soft splits as static-shape operations, together with the norm and products that follow them.

    windows -> normalise -> product with each consumer's weight

A map enters either as a picture (B, C, H, W) or as the tokens (B, H * W, C) of the block before;
each form takes the layout that costs it least. The norm's own scale and shift are folded into the
consumers beforehand (`Affine.after_norm`), so that normalising is (u - mean) * rstd here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.export._layers import Affine, constant
from t2t_deploy.model import SoftSplit


class Products(NamedTuple):
    """Windows times each consumer's weight, (B, L, out) each, biases not added.

    rstd: (B, L, 1) still to be multiplied in, where the norm was folded; None where it is done.
    """

    values: tuple[Tensor, ...]
    rstd: Tensor | None


class SlicedWindows(nn.Module):
    """Windows by k*k strided slices.

    Tokens are sliced channels-last, so that the columns of a window come position by position, all
    channels of each: `columns` gives their place in the channel-major order of ``unfold``.
    """

    def __init__(self, split: SoftSplit, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.split = split
        self.grid = grid
        self.channels = channels
        self.out_grid = split.grid(*grid)
        size = split.kernel**2
        self.columns = torch.arange(channels * size).reshape(channels, size).T.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H * W, C) -> (B, L, k * k * C)."""
        kernel, stride, padding = self.split.kernel, self.split.stride, self.split.padding
        num_tokens = self.split.num_tokens(*self.grid)
        rows, columns = (stride * (count - 1) + 1 for count in self.out_grid)
        places = [
            (slice(i, i + rows, stride), slice(j, j + columns, stride))
            for i in range(kernel)
            for j in range(kernel)
        ]
        edges = (padding,) * 4
        if x.ndim == 4:
            x = functional.pad(x, edges)
            windows = torch.cat([x[:, :, i, j] for i, j in places], dim=1)
            return windows.reshape(-1, len(self.columns), num_tokens).transpose(1, 2)
        x = functional.pad(x.reshape(-1, *self.grid, self.channels), (0, 0, *edges))
        windows = torch.cat([x[:, i, j] for i, j in places], dim=-1)
        return windows.reshape(-1, num_tokens, len(self.columns))


class ConvWindows(nn.Module):
    """Windows by a depthwise convolution whose kernels each pick one pixel."""

    def __init__(self, split: SoftSplit, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.split = split
        self.grid = grid
        self.channels = channels
        size = split.kernel**2
        self.columns = torch.arange(channels * size)
        one_hot = torch.eye(size).reshape(size, 1, split.kernel, split.kernel)
        self.register_buffer("kernel", one_hot.repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H * W, C) -> (B, L, C * k * k), channel-major as ``unfold``."""
        if x.ndim == 3:
            x = x.transpose(1, 2).reshape(-1, self.channels, *self.grid)
        windows = functional.conv2d(
            x,
            self.get_buffer("kernel").to(x.dtype),
            stride=self.split.stride,
            padding=self.split.padding,
            groups=self.channels,
        )
        num_tokens = self.split.num_tokens(*self.grid)
        return windows.reshape(-1, len(self.columns), num_tokens).transpose(1, 2)


class WindowProducts(nn.Module):
    """Windows, written out; LayerNorm; products. norm_dtype is what windows and norm compute in."""

    def __init__(
        self,
        windows: SlicedWindows | ConvWindows,
        eps: float | None,
        consumers: Sequence[Affine],
        *,
        dtype: torch.dtype,
        norm_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.eps = eps
        self.dtype = dtype
        self.norm_dtype = norm_dtype
        columns = windows.columns
        self.weights = nn.ParameterList(constant(c.weight[:, columns].T, dtype) for c in consumers)

    def forward(self, x: Tensor) -> Products:
        """A map -> products in the compute dtype."""
        windows = self.windows(x.to(self.norm_dtype))
        if self.eps is not None:
            windows = functional.layer_norm(windows, (len(self.windows.columns),), eps=self.eps)
        windows = windows.to(self.dtype)
        return Products(tuple(windows @ weight for weight in self.weights), None)
