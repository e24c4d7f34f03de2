"""Token maps: what the reference and artifacts have at stages of the model, for one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2t_deploy.types import softmax

PICTURE = "picture"
_TOP = 5
_COMPONENTS = 3
# Of the reference's values: the ends of the colour scale, so that one odd token does not set them.
_PERCENTILES = (1.0, 99.0)
# A component beyond the rank of the tokens is rounding, which no map shall show.
_LEAST_SINGULAR_VALUE = 1e-9


@dataclass(frozen=True, slots=True)
class Stage:
    """A place in the model. layer: the reference's, as `reference_layers` names it, or `PICTURE`.

    grid: rows and columns of its tokens, None where it has none. wanted: what the reference
    computes, (rows, channels) float64; a row more than the grid has is the class row, the first.
    """

    layer: str
    title: str
    grid: tuple[int, int] | None
    wanted: np.ndarray

    def tokens(self, values: np.ndarray) -> np.ndarray | None:
        """Those of the grid, (tokens, channels); None where not all of them are there."""
        if self.grid is None or len(values) != len(self.wanted):
            return None
        return values[len(values) - math.prod(self.grid) :]


@dataclass(frozen=True, slots=True)
class SeenStage:
    """What an artifact has there. found: (rows, channels) float64, None where nothing compares.

    rel_l2: ||a - b|| / ||b|| over the rows that were found, infinite where a number is not finite.
    note: what is not drawn or not compared, and why.
    """

    found: np.ndarray | None
    rel_l2: float | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureColumn:
    """An artifact: its stages, in the order of the reference's, and its logits (classes,)."""

    name: str
    seen: tuple[SeenStage, ...]
    logits: np.ndarray


@dataclass(frozen=True, slots=True)
class Features:
    """The stages of one picture in the reference and in artifacts. logits: the reference's."""

    stages: tuple[Stage, ...]
    columns: tuple[FeatureColumn, ...]
    logits: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an error that is not finite, or a stage that nothing compares, is null."""
        stages = [
            {
                "artifact": column.name,
                "stage": stage.layer,
                "grid": _grid_of(stage, seen),
                "channels": stage.wanted.shape[1],
                "rel_l2": None if seen.rel_l2 is None or math.isinf(seen.rel_l2) else seen.rel_l2,
                "note": seen.note,
            }
            for column in self.columns
            for stage, seen in zip(self.stages, column.seen, strict=True)
        ]
        ranked = [("reference", self.logits), *((c.name, c.logits) for c in self.columns)]
        top = [
            {
                "of": name,
                "classes": [
                    {"index": index, "probability": probability}
                    for index, probability in top_classes(logits)
                ],
            }
            for name, logits in ranked
        ]
        return {"stages": stages, "top": top}


def see_stage(stage: Stage, found: np.ndarray | None) -> SeenStage:
    """Compare an artifact's (rows, channels) with the reference's; None is a graph without them."""
    wanted = stage.wanted
    if found is None:
        return SeenStage(None, None, "not comparable: the graph holds no tensor of it in its units")
    whole = found.shape == wanted.shape
    if not whole and found.shape != (1, wanted.shape[1]):
        reason = f"not comparable: the graph holds {found.shape}, the reference {wanted.shape}"
        return SeenStage(None, None, reason)
    note = None if whole else "the graph computes the class row only: no map"
    bad = int(found.size - np.isfinite(found).sum())
    if bad:
        return SeenStage(found, math.inf, f"{bad:,} of {found.size:,} numbers are not finite")
    rows = wanted[: len(found)]
    norm = max(float(np.linalg.norm(rows)), np.finfo(np.float64).tiny)
    return SeenStage(found, float(np.linalg.norm(found - rows)) / norm, note)


def token_errors(stage: Stage, seen: SeenStage) -> np.ndarray | None:
    """(rows, columns): the error of each token over all channels, NaN where it is not finite.

    Relative to the root mean square of the reference's tokens. None where there is no map.
    """
    found = None if seen.found is None else stage.tokens(seen.found)
    wanted = stage.tokens(stage.wanted)
    if found is None or wanted is None or stage.grid is None:
        return None
    typical = math.sqrt(float(np.square(wanted).sum(axis=1).mean()))
    off = np.linalg.norm(found - wanted, axis=1) / max(typical, np.finfo(np.float64).tiny)
    return np.where(np.isfinite(off), off, np.nan).reshape(stage.grid)


@dataclass(frozen=True, slots=True)
class TokenColours:
    """One linear map of a stage's channels to red, green and blue, for every column.

    mean: (channels,); components: (channels, 3), zero beyond the rank; low, high: the colour scale
    of each, (3,). share: of the variance of the reference's tokens that the components hold.
    """

    mean: np.ndarray
    components: np.ndarray
    low: np.ndarray
    high: np.ndarray
    share: float

    @classmethod
    def of(cls, tokens: np.ndarray) -> TokenColours:
        """The first three principal components of the reference's tokens (tokens, channels)."""
        mean = tokens.mean(axis=0)
        _, values, vectors = np.linalg.svd(tokens - mean, full_matrices=False)
        most = float(values[0])
        kept = [
            # either sign is a component: the largest entry is positive
            vector * np.sign(vector[np.abs(vector).argmax()])
            for value, vector in zip(values[:_COMPONENTS], vectors, strict=False)
            if value > _LEAST_SINGULAR_VALUE * most
        ]
        components = np.zeros((tokens.shape[1], _COMPONENTS))
        for place, vector in enumerate(kept):
            components[:, place] = vector
        total = float(np.square(values).sum())
        share = float(np.square(values[: len(kept)]).sum()) / total if total else 1.0
        low, high = np.percentile((tokens - mean) @ components, _PERCENTILES, axis=0)
        return cls(mean, components, low, high, share)

    def __call__(self, tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """(tokens, channels) -> (rows, columns, 3) of 0 to 1; tokens that are no numbers white."""
        finite = np.isfinite(tokens).all(axis=1, keepdims=True)
        values = (np.where(finite, tokens, 0.0) - self.mean) @ self.components
        width = self.high - self.low
        scaled = np.where(width > 0, (values - self.low) / np.where(width > 0, width, 1.0), 0.5)
        return np.where(finite, scaled.clip(0, 1), 1.0).reshape(*grid, _COMPONENTS)


def top_classes(logits: np.ndarray) -> Sequence[tuple[int, float]]:
    """The five likeliest classes with their probabilities; none where logits are no numbers."""
    if not np.isfinite(logits).all():
        return []
    probabilities = softmax(logits[None])[0]
    order = np.argsort(-probabilities, kind="stable")[:_TOP]
    return [(int(index), float(probabilities[index])) for index in order]


def _grid_of(stage: Stage, seen: SeenStage) -> list[int] | None:
    if stage.grid is None or seen.found is None or stage.tokens(seen.found) is None:
        return None
    return list(stage.grid)
