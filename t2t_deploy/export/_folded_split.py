"""Soft split -> LayerNorm -> product with the LayerNorm folded away.

Rows of a consumer's weight W less their mean over the D = C k k columns give products that no
longer depend on the mean of a window u, whatever constant is taken from it:

    ((u - mean(u)) * rstd) @ W.T = ((u - shift) @ W'.T) * rstd,  rstd = 1 / sqrt(var(u) + eps)

and the product of all windows with W' is a convolution of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from t2t_deploy.export._layers import Affine, weights_of
from t2t_deploy.export._soft_split import ConvWindows, Products, SlicedWindows, WindowProducts
from t2t_deploy.export._strategies import SoftSplitForm
from t2t_deploy.model import SoftSplit

PADDED_TO = 8


class FoldedConv(nn.Module):
    """Products as convolutions of the tokens' map; var(u) from channel means, averaged in float32.

    W' sums to zero over a window: where a map is flat over space *and* channels the convolution is
    pure cancellation. Maps of token blocks, whose channels differ, are not; pictures are.
    """

    def __init__(
        self,
        split: SoftSplit,
        grid: tuple[int, int],
        eps: float | None,
        consumers: Sequence[Affine],
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.split = split
        self.grid = grid
        self.eps = eps
        self.dtype = dtype
        self.channels = consumers[0].weight.shape[1] // split.kernel**2
        self.num_tokens = split.num_tokens(*grid)
        self.widths = [len(consumer.weight) for consumer in consumers]
        shape = (self.channels, split.kernel, split.kernel)
        self.weights = weights_of(
            consumers,
            lambda w: (w if eps is None else centred(w)).unflatten(1, shape),
            dtype,
        )

    def forward(self, x: Tensor) -> Products:
        """(B, C, H, W) or (B, H * W, C) -> products in the compute dtype."""
        image = x
        if x.ndim == 3:
            image = x.transpose(1, 2).reshape(-1, self.channels, *self.grid)
        rstd = None if self.eps is None else self.window_rstd(image.float()).to(self.dtype)
        image = image.to(self.dtype)
        values = []
        for weight, width in zip(self.weights.values(), self.widths, strict=True):
            maps = functional.conv2d(
                image, weight, stride=self.split.stride, padding=self.split.padding
            )
            values.append(maps.reshape(-1, width, self.num_tokens).transpose(1, 2))
        return Products(tuple(values), rstd)

    def window_rstd(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> (B, L, 1): one over the deviation of each window."""
        assert self.eps is not None
        channel_means = (image.mean(dim=1, keepdim=True), (image * image).mean(dim=1, keepdim=True))
        means = torch.cat(channel_means, dim=1)
        kernel, padding = self.split.kernel, self.split.padding
        if 2 * padding > kernel:  # more than pooling itself may pad
            means, padding = functional.pad(means, (padding,) * 4), 0
        pooled = functional.avg_pool2d(means, kernel, self.split.stride, padding)
        mean, square = pooled[:, :1], pooled[:, 1:]
        return window_rstd(mean, square, self.eps).reshape(-1, self.num_tokens, 1)


class CentredWindows(nn.Module):
    """Windows less a pixel of their own, float32, before they are cast and multiplied with W'.

    Pictures have flat regions: on a cream background all values of a window agree to three digits,
    and their differences are all that the LayerNorm sees. The middle pixel's mean over channels is
    a shift that needs no sum over the window. It lies within sqrt(D / C) deviations of the window's
    mean, so the differences can be 16 bit and their moments give var(u) without cancellation.
    """

    def __init__(
        self,
        split: SoftSplit,
        grid: tuple[int, int],
        eps: float,
        consumers: Sequence[Affine],
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        channels = consumers[0].weight.shape[1] // split.kernel**2
        self.windows = SlicedWindows(split, grid, channels)
        self.eps = eps
        self.dtype = dtype
        columns = self.windows.columns
        self.weights = weights_of(consumers, lambda w: centred(w)[:, columns].T, dtype)

    def forward(self, x: Tensor) -> Products:
        """(B, C, H, W) float32, or (B, H * W, C) -> products in the compute dtype."""
        windows = self.windows(x.float())
        u = windows - self.windows.middle_mean(windows)
        mean, square = u.mean(dim=-1, keepdim=True), (u * u).mean(dim=-1, keepdim=True)
        rstd = window_rstd(mean, square, self.eps).to(self.dtype)
        u = u.to(self.dtype)
        return Products(tuple(u @ weight for weight in self.weights.values()), rstd)


class NormalisedWindows(nn.Module):
    """`CentredWindows` with rstd multiplied in before the cast: nothing is left to do afterwards.

    The windows are then as even as a LayerNorm's output, so that 8 bits hold them, and a product
    may have a bias. They and the rows of W' are padded with zeros to a multiple of `PADDED_TO`:
    TensorRT-RTX 1.7.1 pads odd widths itself, by a kernel that copies the largest tensor of all.
    """

    def __init__(
        self,
        split: SoftSplit,
        grid: tuple[int, int],
        eps: float,
        consumers: Sequence[Affine],
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.width = consumers[0].weight.shape[1]
        self.windows = SlicedWindows(split, grid, self.width // split.kernel**2)
        self.padding = (0, -self.width % PADDED_TO)
        self.normalise = Normalise(self.width, eps)
        self.dtype = dtype
        columns = self.windows.columns
        self.weights = weights_of(
            consumers,
            lambda w: functional.pad(centred(w)[:, columns], self.padding).T,
            dtype,
        )

    def forward(self, x: Tensor) -> Products:
        """(B, C, H, W) float32, or (B, H * W, C) -> products in the compute dtype."""
        windows = self.windows(x.float())
        u = functional.pad(windows - self.windows.middle_mean(windows), self.padding)
        u = self.normalise(u).to(self.dtype)
        return Products(tuple(u @ weight for weight in self.weights.values()), None)


class Normalise(nn.Module):
    """u * rstd; a module of its own, so that the tensor is called by what it is.

    width: how many columns are the window's; zeros stand behind them.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps

    def forward(self, u: Tensor) -> Tensor:
        """(..., width + padding) -> the same shape."""
        mean = u.sum(dim=-1, keepdim=True) / self.width
        square = (u * u).sum(dim=-1, keepdim=True) / self.width
        return u * window_rstd(mean, square, self.eps)


def window_rstd(mean: Tensor, square: Tensor, eps: float) -> Tensor:
    """One over the deviation of each window, from the means of its values and of their squares."""
    return torch.rsqrt((square - mean * mean).clamp(min=0) + eps)


def centred(weight: Tensor) -> Tensor:
    """Rows (O, D) less their mean."""
    return weight - weight.mean(dim=1, keepdim=True)


def make_split(
    form: SoftSplitForm,
    split: SoftSplit,
    grid: tuple[int, int],
    eps: float | None,
    consumers: Sequence[Affine],
    *,
    dtype: torch.dtype,
    from_picture: bool = False,
) -> WindowProducts | FoldedConv | CentredWindows | NormalisedWindows:
    """The asked form of ``normalise(unfold(map)) @ W.T`` for each consumer's W, on a map's grid.

    eps: the norm's epsilon; None where there is no norm. From a picture everything up to and with
    the norm's statistics stays float32: where a window is flat over space and channels, its
    normalised values differ only in bits that a 16-bit picture no longer has.
    """
    channels = consumers[0].weight.shape[1] // split.kernel**2
    if form is SoftSplitForm.CENTRED and eps is not None:
        return CentredWindows(split, grid, eps, consumers, dtype=dtype)
    if form is SoftSplitForm.NORMALISED and eps is not None:
        return NormalisedWindows(split, grid, eps, consumers, dtype=dtype)
    if form is SoftSplitForm.FOLDED:
        return FoldedConv(split, grid, eps, consumers, dtype=dtype)
    windows: SlicedWindows | ConvWindows
    if form is SoftSplitForm.CONV:
        windows = ConvWindows(split, grid, channels)
    else:
        windows = SlicedWindows(split, grid, channels)
    return WindowProducts(
        windows,
        eps,
        consumers,
        dtype=dtype,
        norm_dtype=torch.float32 if from_picture else dtype,
        shifted=form is SoftSplitForm.SHIFTED and eps is not None,
    )
