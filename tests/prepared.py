"""The released models' preparation of pictures, at the small sizes of tests."""

from __future__ import annotations

from t2t_deploy._preparation import USUAL, Preparation

normalise, pixels_of = USUAL.normalise, USUAL.pixels_of


def usual(size: int) -> Preparation:
    return USUAL.fitted(3, (size, size))
