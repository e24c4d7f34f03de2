from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from t2t_deploy.export._soft_split import ConvWindows, SlicedWindows, make_split_projection
from t2t_deploy.export._strategies import SoftSplitForm
from t2t_deploy.model import SoftSplit, soft_split

FORMS = (SlicedWindows, ConvWindows)


@st.composite
def splits(draw: st.DrawFn) -> tuple[SoftSplit, int, int, int]:
    kernel = draw(st.integers(1, 7))
    overlap = draw(st.integers(0, kernel - 1))
    split = SoftSplit(kernel, overlap, draw(st.integers(0, 4)))
    height, width = (draw(st.integers(max(1, kernel - 2 * split.padding), 18)) for _ in "hw")
    return split, draw(st.integers(1, 5)), height, width


@pytest.mark.parametrize("form", FORMS)
@given(case=splits())
@settings(max_examples=80, deadline=None)
def test_windows_are_unfold_up_to_the_order_of_columns(
    form: type[SlicedWindows] | type[ConvWindows], case: tuple[SoftSplit, int, int, int]
) -> None:
    split, channels, height, width = case
    picture = torch.randn(2, channels, height, width)
    unfolded = functional.unfold(
        picture, split.kernel, padding=split.padding, stride=split.stride
    ).transpose(1, 2)
    windows = form(split, (height, width), channels)
    assert torch.equal(windows(picture), unfolded[..., windows.columns])
    tokens = picture.flatten(2).transpose(1, 2)
    assert torch.equal(windows(tokens), unfolded[..., windows.columns])


@pytest.mark.parametrize("form", FORMS)
def test_columns_are_a_permutation(form: type[SlicedWindows] | type[ConvWindows]) -> None:
    columns = form(SoftSplit(3, 1, 1), (8, 8), 4).columns
    assert sorted(columns.tolist()) == list(range(36))


@pytest.mark.parametrize("form", SoftSplitForm)
def test_projection_equals_norm_and_linear_of_unfold(form: SoftSplitForm) -> None:
    split = SoftSplit(3, 1, 1)
    norm, linear = nn.LayerNorm(36), nn.Linear(36, 7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    picture = torch.randn(2, 4, 9, 6)
    projection = make_split_projection(
        form, split, (9, 6), norm, linear, dtype=torch.float32, from_picture=True
    )
    with torch.inference_mode():
        torch.testing.assert_close(
            projection(picture), linear(norm(soft_split(picture, split))), rtol=1e-5, atol=1e-5
        )


def test_a_forgotten_permutation_is_caught() -> None:
    """The wrong version: sliced windows with weights in the channel-major order of unfold."""
    split = SoftSplit(3, 1, 1)
    linear = nn.Linear(36, 7)
    picture = torch.randn(1, 4, 8, 8)
    right = make_split_projection(
        SoftSplitForm.UNFOLD, split, (8, 8), None, linear, dtype=torch.float32
    )
    windows = SlicedWindows(split, (8, 8), 4)
    windows.columns = torch.arange(36)
    wrong = type(right)(windows, None, linear, dtype=torch.float32, norm_dtype=torch.float32)
    with torch.inference_mode():
        wanted = linear(soft_split(picture, split))
        torch.testing.assert_close(right(picture), wanted, rtol=1e-5, atol=1e-5)
        assert (wrong(picture) - wanted).norm() > 0.1 * wanted.norm()


def test_a_picture_stays_float32_through_the_first_norm() -> None:
    """Cream is flat over space and nearly over channels: 16 bit before the norm lose it."""
    split = SoftSplit(7, 3, 2)
    norm, linear = nn.LayerNorm(147), nn.Linear(147, 16)
    cream = torch.tensor([2.198, 2.201, 2.204]).reshape(1, 3, 1, 1).expand(1, 3, 32, 32)
    with torch.inference_mode():
        wanted = linear(norm(soft_split(cream, split)))[:, 9:10]  # a window without padding

        def error(*, from_picture: bool) -> float:
            projection = make_split_projection(
                SoftSplitForm.UNFOLD,
                split,
                (32, 32),
                norm,
                linear,
                dtype=torch.float16,
                from_picture=from_picture,
            )
            found = projection(cream if from_picture else cream.half()).float()[:, 9:10]
            return float((found - wanted).norm() / wanted.norm())

        assert error(from_picture=True) < 2e-3
        assert error(from_picture=False) > 2e-2
