"""Soft splits as static-shape operations, together with the layers that consume them.

A map enters either as a picture (B, C, H, W) or as the tokens (B, H * W, C) of the block before;
each form takes the layout that costs it least.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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
        self.out_grid = split.grid(*grid)
        size = split.kernel**2
        self.columns = torch.arange(channels * size).reshape(channels, size).T.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H * W, C) -> (B, L, k * k * C)."""
        kernel, stride, padding = self.split.kernel, self.split.stride, self.split.padding
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x.reshape(-1, *self.grid, x.shape[-1])
        if padding:
            x = functional.pad(x, (0, 0, padding, padding, padding, padding))
        rows, columns = (stride * (count - 1) + 1 for count in self.out_grid)
        windows = [
            x[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(kernel)
            for j in range(kernel)
        ]
        return torch.cat(windows, dim=-1).flatten(1, 2)


class ConvWindows(nn.Module):
    """Windows by a depthwise convolution whose kernels each pick one pixel."""

    def __init__(self, split: SoftSplit, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.split = split
        self.grid = grid
        size = split.kernel**2
        self.columns = torch.arange(channels * size)
        one_hot = torch.eye(size).reshape(size, 1, split.kernel, split.kernel)
        self.register_buffer("kernel", one_hot.repeat(channels, 1, 1, 1))
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H * W, C) -> (B, L, C * k * k), channel-major as ``unfold``."""
        x = as_map(x, self.grid)
        windows = functional.conv2d(
            x,
            self.get_buffer("kernel").to(x.dtype),
            stride=self.split.stride,
            padding=self.split.padding,
            groups=self.channels,
        )
        return windows.flatten(2).transpose(1, 2)


def as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W) unchanged, or tokens (B, H * W, C) -> (B, C, H, W)."""
    if x.ndim == 4:
        return x
    return x.transpose(1, 2).reshape(-1, x.shape[-1], *grid)


class SplitProjection(nn.Module):
    """soft split -> [LayerNorm ->] Linear, windows taken by slices or by convolution."""

    def __init__(
        self,
        windows: SlicedWindows | ConvWindows,
        norm: nn.LayerNorm | None,
        linear: nn.Linear,
        *,
        dtype: torch.dtype,
        norm_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.dtype = dtype
        self.norm_dtype = norm_dtype
        columns = windows.columns
        self.weight = constant(linear.weight[:, columns], dtype)
        self.bias = None if linear.bias is None else constant(linear.bias, dtype)
        self.norm = None
        if norm is not None:
            self.norm = nn.LayerNorm(len(columns), eps=norm.eps)
            self.norm.weight = constant(norm.weight[columns], norm_dtype)
            self.norm.bias = constant(norm.bias[columns], norm_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """A map -> (B, L, out) in the compute dtype."""
        windows = self.windows(x.to(self.norm_dtype))
        if self.norm is not None:
            windows = self.norm(windows)
        return functional.linear(windows.to(self.dtype), self.weight, self.bias)


_WINDOWS = {SoftSplitForm.UNFOLD: SlicedWindows, SoftSplitForm.CONV: ConvWindows}


def make_split_projection(
    form: SoftSplitForm,
    split: SoftSplit,
    grid: tuple[int, int],
    norm: nn.LayerNorm | None,
    linear: nn.Linear,
    *,
    dtype: torch.dtype,
    from_picture: bool = False,
) -> SplitProjection:
    """The asked form of ``linear(norm(unfold(map)))`` on a (rows, columns) grid.

    From a picture everything up to and with the first LayerNorm stays float32: where a window is
    flat over space and channels, its normalised values differ only in bits that a 16-bit picture
    no longer has.
    """
    channels = linear.in_features // split.kernel**2
    windows = _WINDOWS[form](split, grid, channels)
    norm_dtype = torch.float32 if from_picture else dtype
    return SplitProjection(windows, norm, linear, dtype=dtype, norm_dtype=norm_dtype)


def constant(values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A frozen copy of some weights in the dtype a layer computes in."""
    return nn.Parameter(values.detach().to(dtype).contiguous(), requires_grad=False)
