from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from t2t_deploy.export._folded_split import (
    PADDED_TO,
    CentredWindows,
    FoldedConv,
    NormalisedWindows,
    make_split,
)
from t2t_deploy.export._layers import Affine
from t2t_deploy.export._soft_split import ConvWindows, Products, SlicedWindows, WindowProducts
from t2t_deploy.export._strategies import SoftSplitForm
from t2t_deploy.model import SoftSplit, soft_split

from .conftest import error

WINDOWS = (SlicedWindows, ConvWindows)
EPS = 1e-5


@st.composite
def splits(draw: st.DrawFn) -> tuple[SoftSplit, int, int, int]:
    kernel = draw(st.integers(1, 7))
    overlap = draw(st.integers(0, kernel - 1))
    split = SoftSplit(kernel, overlap, draw(st.integers(0, 4)))
    height, width = (draw(st.integers(max(1, kernel - 2 * split.padding), 18)) for _ in "hw")
    return split, draw(st.integers(1, 5)), height, width


@pytest.mark.parametrize("form", WINDOWS)
@given(case=splits())
@settings(max_examples=60, deadline=None)
def test_windows_are_unfold_up_to_the_order_of_columns(
    form: type[SlicedWindows] | type[ConvWindows], case: tuple[SoftSplit, int, int, int]
) -> None:
    split, channels, height, width = case
    picture = torch.randn(2, channels, height, width)
    unfolded = functional.unfold(
        picture, split.kernel, padding=split.padding, stride=split.stride
    ).transpose(1, 2)
    windows = form(split, (height, width), channels)
    assert sorted(windows.columns.tolist()) == list(range(unfolded.shape[-1]))
    assert torch.equal(windows(picture), unfolded[..., windows.columns])
    tokens = picture.flatten(2).transpose(1, 2)
    assert torch.equal(windows(tokens), unfolded[..., windows.columns])


@given(case=splits())
@settings(max_examples=60, deadline=None)
def test_slices_read_every_cell_and_know_the_middle(case: tuple[SoftSplit, int, int, int]) -> None:
    split, channels, height, width = case
    windows = SlicedWindows(split, (height, width), channels)
    last = (split.kernel - 1) // split.stride  # the last cell of a window, counted from its first
    assert windows.cells == tuple(count + last for count in windows.out_grid)
    picture = torch.randn(2, channels, height, width)
    padded = functional.pad(picture.mean(dim=1), (split.padding,) * 4)
    at = divmod(split.kernel**2 // 2, split.kernel)
    rows, columns = (
        slice(start, start + split.stride * count, split.stride)
        for start, count in zip(at, windows.out_grid, strict=True)
    )
    wanted = padded[:, rows, columns].flatten(1)[..., None]
    torch.testing.assert_close(windows.middle_mean(windows(picture)), wanted)


def drawn_consumers(columns: int, *widths: int) -> list[Affine]:
    return [
        Affine(torch.randn(width, columns).double() / columns**0.5, torch.zeros(width).double())
        for width in widths
    ]


def exact(picture: Tensor, split: SoftSplit, consumers: list[Affine]) -> list[Tensor]:
    """Normalised windows times each weight, in float64."""
    windows = soft_split(picture.double(), split)
    normal = functional.layer_norm(windows, windows.shape[-1:], eps=EPS)
    return [normal @ consumer.weight.T for consumer in consumers]


def layer_error(
    form: SoftSplitForm,
    picture: Tensor,
    split: SoftSplit,
    *,
    dtype: torch.dtype = torch.float32,
    from_picture: bool = False,
    rows: slice = slice(None),
) -> float:
    """Of a layer with drawn weights against norm and product in float64."""
    consumers = drawn_consumers(picture.shape[1] * split.kernel**2, 16)
    grid = (picture.shape[2], picture.shape[3])
    layer = make_split(form, split, grid, EPS, consumers, dtype=dtype, from_picture=from_picture)
    (wanted,) = exact(picture, split, consumers)
    return error(values(layer(picture))[0][:, rows], wanted[:, rows])


def values(products: Products) -> list[Tensor]:
    rstd = 1.0 if products.rstd is None else products.rstd.double()
    return [value.double() * rstd for value in products.values]


@pytest.mark.parametrize("form", SoftSplitForm)
@pytest.mark.parametrize("as_tokens", [False, True])
@given(case=splits())
@settings(max_examples=30, deadline=None)
def test_products_equal_norm_and_product_of_unfold(
    form: SoftSplitForm, as_tokens: bool, case: tuple[SoftSplit, int, int, int]
) -> None:
    split, channels, height, width = case
    columns = channels * split.kernel**2
    if columns < 2:
        return  # a LayerNorm over one value is zero
    consumers = drawn_consumers(columns, 6, 3)
    # Channels differ, as after a token block: a folded product of flat maps would cancel.
    picture = torch.randn(2, channels, height, width) + torch.arange(channels)[:, None, None]
    layer = make_split(
        form, split, (height, width), EPS, consumers, dtype=torch.float64, from_picture=False
    )
    x = picture.flatten(2).transpose(1, 2) if as_tokens else picture
    for found, wanted in zip(
        values(layer(x.double())), exact(picture, split, consumers), strict=True
    ):
        # Statistics are float32 by contract, and a window of nearly equal values, or of padding
        # alone, multiplies their rounding by up to 1 / sqrt(eps): those are left to other tests.
        contrast = soft_split(picture, split).std(dim=-1, correction=0) > 0.1
        torch.testing.assert_close(found[contrast], wanted[contrast], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", SoftSplitForm)
@pytest.mark.parametrize("from_picture", [True, False])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 5e-7), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)]
)
def test_products_of_a_released_split_are_in_the_type_they_were_made_for(
    form: SoftSplitForm, from_picture: bool, dtype: torch.dtype, most: float
) -> None:
    split = SoftSplit(3, 1, 1)
    consumers = drawn_consumers(64 * 9, 64, 128)
    tokens = torch.randn(2, 256, 64) + torch.randn(64)
    layer = make_split(
        form, split, (16, 16), EPS, consumers, dtype=dtype, from_picture=from_picture
    )
    products = layer(tokens if from_picture else tokens.to(dtype))
    assert {value.dtype for value in products.values} == {dtype}
    assert products.rstd is None or products.rstd.dtype is dtype
    picture = tokens.transpose(1, 2).unflatten(2, (16, 16))
    for found, wanted in zip(values(products), exact(picture, split, consumers), strict=True):
        assert error(found, wanted) < most


@pytest.mark.parametrize(
    "form", [SoftSplitForm.FOLDED, SoftSplitForm.CENTRED, SoftSplitForm.NORMALISED]
)
def test_weights_that_are_not_centred_are_caught(form: SoftSplitForm) -> None:
    """The wrong version: the norm's mean neither taken from the windows nor from the weights."""
    split = SoftSplit(3, 1, 1)
    consumers = drawn_consumers(36, 8)
    picture = torch.randn(1, 4, 8, 8) + 3
    layer = make_split(form, split, (8, 8), EPS, consumers, dtype=torch.float32)
    assert isinstance(layer, FoldedConv | CentredWindows | NormalisedWindows)
    (wanted,) = exact(picture, split, consumers)
    assert error(values(layer(picture))[0], wanted) < 1e-6
    uncentred = consumers[0].weight.float()
    if isinstance(layer, NormalisedWindows):
        uncentred = functional.pad(uncentred[:, layer.windows.columns], layer.padding).T
    elif isinstance(layer, CentredWindows):
        uncentred = uncentred[:, layer.windows.columns].T
    layer.weights["0"].data = uncentred.reshape(layer.weights["0"].shape)
    assert error(values(layer(picture))[0], wanted) > 1e-2


@pytest.mark.parametrize(("kernel", "channels", "padded"), [(7, 3, 152), (3, 4, 40), (2, 2, 8)])
def test_normalised_windows_are_whole_vectors_of_one_deviation(
    kernel: int, channels: int, padded: int
) -> None:
    """What 8 bits hold, whatever a window's contrast is: no rstd is left to do."""
    split = SoftSplit(kernel, 1, 0)
    width = channels * kernel**2
    assert padded == -(-width // PADDED_TO) * PADDED_TO
    consumers = drawn_consumers(width, 8)
    layer = make_split(
        SoftSplitForm.NORMALISED, split, (16, 16), EPS, consumers, dtype=torch.float32
    )
    assert isinstance(layer, NormalisedWindows)
    read = []
    layer.normalise.register_forward_hook(lambda module, inputs, output: read.append(output))
    contrast = torch.logspace(0, 4, 3).reshape(3, 1, 1, 1)
    picture = torch.randn(3, channels, 16, 16) * contrast + 5
    assert layer(picture).rstd is None
    (windows,) = read
    assert windows.shape[-1] == len(layer.weights["0"]) == padded
    assert not windows[..., width:].any() and not layer.weights["0"][width:].any()
    deviation = windows[..., :width].std(dim=-1, correction=0)
    wanted = torch.ones_like(deviation)
    torch.testing.assert_close(deviation, wanted, rtol=1e-3, atol=1e-3)


def test_a_forgotten_permutation_is_caught() -> None:
    """The wrong version: sliced windows with weights in the channel-major order of unfold."""
    split = SoftSplit(3, 1, 1)
    consumers = drawn_consumers(36, 7)
    picture = torch.randn(1, 4, 8, 8)
    windows = SlicedWindows(split, (8, 8), 4)
    (wanted,) = exact(picture, split, consumers)

    def result() -> Tensor:
        layer = WindowProducts(
            windows, EPS, consumers, dtype=torch.float32, norm_dtype=torch.float32
        )
        return values(layer(picture))[0]

    assert error(result(), wanted) < 1e-6
    windows.columns = torch.arange(36)
    assert error(result(), wanted) > 0.1


FIRST = SoftSplit(7, 3, 2)
CREAM = torch.tensor([2.198, 2.201, 2.204]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
WITHIN = slice(9, 10)  # a window without padding


@pytest.mark.parametrize(
    "form",
    [
        SoftSplitForm.UNFOLD,
        SoftSplitForm.CENTRED,
        SoftSplitForm.NORMALISED,
        SoftSplitForm.SHIFTED,
    ],
)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_flat_pictures_keep_their_signal(
    form: SoftSplitForm, dtype: torch.dtype, most: float
) -> None:
    assert layer_error(form, CREAM, FIRST, dtype=dtype, from_picture=True, rows=WITHIN) < most


def test_a_shift_keeps_moments_that_the_norm_would_cancel() -> None:
    """ONNX Runtime takes the variance as mean(u^2) - mean(u)^2, in float32."""
    windows = SlicedWindows(FIRST, (32, 32), 3)
    u = windows(CREAM)[:, WITHIN]
    wanted = u.double().var(dim=-1, correction=0)

    def lost(values: Tensor) -> float:
        mean = values.mean(dim=-1)
        return error((values * values).mean(dim=-1) - mean * mean, wanted)

    assert lost(u - windows.middle_mean(u)) < 1e-4
    assert lost(u) > 1e-2


@pytest.mark.parametrize("constant", [True, False])
def test_a_shift_must_be_one_number_per_window(
    constant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = torch.randn(1, 3, 32, 32) + 2
    if not constant:  # the wrong version: the middle pixel's channels, each from its own
        monkeypatch.setattr(
            SlicedWindows, "middle_mean", lambda self, u: u[..., self.middle].repeat(1, 1, 49)
        )
    found = layer_error(SoftSplitForm.SHIFTED, picture, FIRST)
    assert found < 1e-6 if constant else found > 1e-2


@pytest.mark.parametrize(
    ("form", "dtype", "least"),
    [
        (SoftSplitForm.FOLDED, torch.float32, 1e-4),
        (SoftSplitForm.FOLDED, torch.float16, 0.1),
        (SoftSplitForm.UNFOLD, torch.float16, 2e-2),
    ],
)
def test_what_loses_flat_pictures_is_shown_to(
    form: SoftSplitForm, dtype: torch.dtype, least: float
) -> None:
    """A folded first split, and a picture cast to 16 bit before the first norm."""
    assert layer_error(form, CREAM, FIRST, dtype=dtype, rows=WITHIN) > least


def test_a_split_without_a_norm_is_a_plain_product() -> None:
    split = SoftSplit(3, 1, 1)
    consumers = drawn_consumers(36, 5)
    picture = torch.randn(1, 4, 8, 8)
    wanted = soft_split(picture.double(), split) @ consumers[0].weight.T
    for form in SoftSplitForm:
        layer = make_split(form, split, (8, 8), None, consumers, dtype=torch.float32)
        products = layer(picture)
        assert products.rstd is None
        assert error(products.values[0], wanted) < 1e-6
