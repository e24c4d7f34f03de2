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

from t2t_deploy.export._layers import Affine, weights_of
from t2t_deploy.model import SoftSplit


class Products(NamedTuple):
    """Windows times each consumer's weight, (B, L, out) each, biases not added.

    rstd: (B, L, 1) still to be multiplied in, where the norm was folded; None where it is done.
    """

    values: tuple[Tensor, ...]
    rstd: Tensor | None


class SlicedWindows(nn.Module):
    """Windows by slices of the channels-last map.

    The map is cut into cells of stride x stride pixels. A row of a window lies in
    ceil(kernel / stride) cells, and what it takes of one is contiguous in memory, so that a slice
    takes it for all windows at once: 14 slices for a kernel of 7 with stride 4, not 49. The columns
    of a window come position by position, all channels of each: `columns` gives their place in the
    channel-major order of ``unfold``.
    """

    def __init__(self, split: SoftSplit, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        self.grid = grid
        self.channels = channels
        self.num_tokens = split.num_tokens(*grid)
        self.out_grid = split.grid(*grid)
        kernel, stride, padding = split.kernel, split.stride, split.padding
        self.stride = stride
        reach = -(-kernel // stride)
        self.cells = tuple(count + reach - 1 for count in self.out_grid)
        low, right = (
            stride * cells - size - padding for cells, size in zip(self.cells, grid, strict=True)
        )
        self.edges = (0, 0, padding, right, padding, low)
        widths = [min(stride, kernel - stride * cell) * channels for cell in range(reach)]
        # row of the window, cell in that row, values taken of it
        self.runs = [(i, cell, widths[cell]) for i in range(kernel) for cell in range(reach)]
        size = kernel**2
        self.columns = torch.arange(channels * size).reshape(channels, size).T.flatten()
        middle = channels * (size // 2)
        self.middle = slice(middle, middle + channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, H * W, C) -> (B, L, k * k * C)."""
        rows, columns = self.out_grid
        if x.ndim == 4:
            x = functional.pad(x, self.edges[2:]).permute(0, 2, 3, 1)
        else:
            x = functional.pad(x.reshape(-1, *self.grid, self.channels), self.edges)
        cell_shape = (self.cells[0], self.stride, self.cells[1], self.stride * self.channels)
        cells = x.reshape(-1, *cell_shape)
        runs = []
        for i, cell, width in self.runs:
            row, within = divmod(i, self.stride)
            run = cells[:, row : row + rows, within : within + 1, cell : cell + columns, :width]
            runs.append(run.reshape(-1, self.num_tokens, width))
        return torch.cat(runs, dim=-1)

    def middle_mean(self, windows: Tensor) -> Tensor:
        """(B, L, k * k * C) -> (B, L, 1): the middle pixel's mean over channels.

        Taken from a window it changes nothing that a LayerNorm tells apart, and leaves small
        numbers where the window is flat, whose moments do not cancel.
        """
        return windows[..., self.middle].mean(dim=-1, keepdim=True)


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
    """Windows, written out; LayerNorm; products. norm_dtype is what windows and norm compute in.

    shifted: each window less a pixel of its own before the norm (`middle_mean`).
    """

    def __init__(
        self,
        windows: SlicedWindows | ConvWindows,
        eps: float | None,
        consumers: Sequence[Affine],
        *,
        dtype: torch.dtype,
        norm_dtype: torch.dtype,
        shifted: bool = False,
    ) -> None:
        super().__init__()
        self.windows = windows
        self.eps = eps
        self.dtype = dtype
        self.norm_dtype = norm_dtype
        self.shifted = shifted
        columns = windows.columns
        self.weights = weights_of(consumers, lambda w: w[:, columns].T, dtype)

    def forward(self, x: Tensor) -> Products:
        """A map -> products in the compute dtype."""
        windows = self.windows(x.to(self.norm_dtype))
        if self.shifted:
            assert isinstance(self.windows, SlicedWindows)
            windows = windows - self.windows.middle_mean(windows)
        if self.eps is not None:
            windows = functional.layer_norm(windows, (len(self.windows.columns),), eps=self.eps)
        windows = windows.to(self.dtype)
        return Products(tuple(windows @ weight for weight in self.weights.values()), None)
