"""Chooses the asked form of a soft split."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from t2t_deploy.export._folded_split import CentredWindows, FoldedConv, NormalisedWindows
from t2t_deploy.export._layers import Affine
from t2t_deploy.export._soft_split import ConvWindows, SlicedWindows, WindowProducts
from t2t_deploy.export._strategies import SoftSplitForm
from t2t_deploy.model import SoftSplit


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
