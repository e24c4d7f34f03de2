"""A recipe as values: what is made from what, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy.commands import BenchOutputs, BenchRequest, CalibrateRequest, EvaluateRequest

TOP1_WITHIN = 0.2
"""How far, in points, a measured top-1 may be from the published one."""


@dataclass(frozen=True, slots=True)
class Named:
    """A step that makes an artifact. source: the name of what it is made from; None for exports."""

    name: str
    request: Any
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What the model must turn out to be; None is not checked.

    top1: of the float32 model on ``[evaluate]`` images, percent; within: how far off it may be.
    """

    sha256: str | None = None
    classes: int | None = None
    image_size: int | None = None
    params: int | None = None
    top1: float | None = None
    within: float = TOP1_WITHIN


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """How all artifacts are verified once more."""

    images: Path | None = None
    nodewise: bool = False
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe file, read. Every path in it is relative to the file's folder.

    calibration: what static quantisation takes ranges on, without an artifact. None, or nothing in
    a tuple, where the recipe does not ask for it.
    """

    file: Path
    workspace: Path | None
    exports: tuple[Named, ...]
    expected: Expected | None
    calibration: CalibrateRequest | None
    quantizations: tuple[Named, ...]
    builds: tuple[Named, ...]
    verify: VerifyPlan | None
    evaluate: EvaluateRequest | None
    bench: BenchRequest | None
    outputs: BenchOutputs
    packages: tuple[Named, ...]

    @property
    def folder(self) -> Path:
        """What its paths are relative to."""
        return self.file.parent

    @property
    def artifacts(self) -> tuple[Named, ...]:
        """Everything that makes an artifact, in the order of the work."""
        return (*self.exports, *self.quantizations, *self.builds)
