"""Soft splits as static-shape operations, together with the layers that consume them.

A map enters either as a picture (B, C, H, W) or as the tokens (B, H * W, C) of the block before;
each form takes the layout that costs it least.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.export._layers import constant, linear_of
from t2t_deploy.export._strategies import SoftSplitForm
from t2t_deploy.model import SoftSplit


class SlicedWindows(nn.Module):
    """Windows by k*k strided slices of the channels-last map.

    The columns of a token come position by position, all channels of each: `columns` gives their
    place in the channel-major order of ``unfold``.
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
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x.reshape(-1, *self.grid, self.channels)
        if padding:
            x = functional.pad(x, (0, 0, padding, padding, padding, padding))
        rows, columns = (stride * (count - 1) + 1 for count in self.out_grid)
        windows = [
            x[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(kernel)
            for j in range(kernel)
        ]
        tokens = torch.cat(windows, dim=-1)
        return tokens.reshape(-1, self.split.num_tokens(*self.grid), len(self.columns))


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


class SplitProjection(nn.Module):
    """soft split -> [LayerNorm ->] linear layers, windows taken by slices or by convolution."""

    def __init__(
        self,
        windows: SlicedWindows | ConvWindows,
        norm: nn.LayerNorm | None,
        linears: Sequence[nn.Linear],
        *,
        dtype: torch.dtype,
        norm_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.dtype = dtype
        self.norm_dtype = norm_dtype
        columns = windows.columns
        self.linears = nn.ModuleList(
            linear_of(linear.weight[:, columns], linear.bias, dtype) for linear in linears
        )
        self.norm = None
        if norm is not None:
            self.norm = nn.LayerNorm(len(columns), eps=norm.eps)
            self.norm.weight = constant(norm.weight[columns], norm_dtype)
            self.norm.bias = constant(norm.bias[columns], norm_dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """A map -> (B, L, out) for each linear layer, in the compute dtype."""
        windows = self.windows(x.to(self.norm_dtype))
        if self.norm is not None:
            windows = self.norm(windows)
        windows = windows.to(self.dtype)
        return tuple(linear(windows) for linear in self.linears)


def make_split_projection(
    form: SoftSplitForm,
    split: SoftSplit,
    grid: tuple[int, int],
    norm: nn.LayerNorm | None,
    linears: Sequence[nn.Linear],
    *,
    dtype: torch.dtype,
    from_picture: bool = False,
) -> SplitProjection:
    """The asked form of ``linear(norm(unfold(map)))``, for each linear, on a (rows, columns) grid.

    From a picture everything up to and with the first LayerNorm stays float32: where a window is
    flat over space and channels, its normalised values differ only in bits that a 16-bit picture
    no longer has.
    """
    channels = linears[0].in_features // split.kernel**2
    windows: SlicedWindows | ConvWindows
    if form is SoftSplitForm.UNFOLD:
        windows = SlicedWindows(split, grid, channels)
    else:
        windows = ConvWindows(split, grid, channels)
    norm_dtype = torch.float32 if from_picture else dtype
    return SplitProjection(windows, norm, linears, dtype=dtype, norm_dtype=norm_dtype)
