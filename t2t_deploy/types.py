"""Shared types: precisions, targets, tensors, profiles, tolerances, verdicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from t2t_deploy.errors import ArtifactError, UsageError

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
PROBABILITIES_NAME = "probabilities"
UNIT_NAME = "unit_embedding"
INDICES_NAME = "indices"
DEFAULT_TOP_K = 5
MIN_OPSET, MAX_OPSET, ATTENTION_OPSET = 17, 20, 23
"""Of exports: the first with LayerNormalization, the last of torch's TorchScript exporter."""
DEFAULT_THRESHOLD = 0.5

HALF_MAX = float(np.finfo(np.float16).max)
"""The largest number of float16."""


class Precision(str, Enum):
    """Arithmetic of a graph or engine."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    INT8_WEIGHTS = "int8-weights"
    """fp16, with weights stored as int8 and widened in the products"""
    FP8_WEIGHTS = "fp8-weights"

    @property
    def codes(self) -> Precision:
        """The type of the codes of a quantised graph."""
        return _CODES.get(self, self)

    @property
    def weights_only(self) -> bool:
        """Whether only weights are in 8 bits, without products of codes."""
        return self in _CODES


_CODES = {Precision.INT8_WEIGHTS: Precision.INT8, Precision.FP8_WEIGHTS: Precision.FP8}
QUANTIZED = frozenset({Precision.INT8, Precision.FP8, *_CODES})
"""Precisions of quantised graphs."""


class Target(str, Enum):
    """The runtime that a graph is for; it selects the form of the rewrites."""

    PORTABLE = "portable"
    CPU = "cpu"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"
    CUDA = "cuda"
    NCNN = "ncnn"


_PLANES, _PIXELS = "float32_nchw", "uint8_nhwc"


class Tail(str, Enum):
    """The outputs of a graph."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    TOPK = "topk"
    SIGMOID = "sigmoid"
    EMBEDDING = "embedding"
    UNIT_EMBEDDING = "unit-embedding"
    TOKENS = "tokens"
    FEATURES = "features"

    @property
    def output(self) -> str:
        """What the model inside gives: logits, embedding, tokens or features."""
        if self in (Tail.EMBEDDING, Tail.UNIT_EMBEDDING, Tail.TOKENS, Tail.FEATURES):
            return str(self.value).removeprefix("unit-")
        return Tail.LOGITS.value

    @property
    def appended(self) -> bool:
        """Whether it stands behind the model's own output; else it is that output."""
        return self.value != self.output

    @property
    def classifies(self) -> bool:
        """Whether it tells classes."""
        return self.output == Tail.LOGITS.value


class Activation(str, Enum):
    """From logits to probabilities: of one class among all, or of each class by itself."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class GraphIO:
    """Inputs and outputs of a graph.

    embed_preprocess: the input is (batch, H, W, C) uint8, normalised inside. tail: the output.
    """

    embed_preprocess: bool = False
    tail: Tail = Tail.LOGITS

    @property
    def bare(self) -> bool:
        """Whether they are plain: normalised pictures in, logits out."""
        return self == GraphIO()

    @property
    def words(self) -> tuple[str, ...]:
        """Their words in a file name."""
        tail = () if self.tail is Tail.LOGITS else (self.tail.value,)
        return ("uint8", *tail) if self.embed_preprocess else tail

    @property
    def image_input(self) -> str:
        """Name of the image format: float32_nchw or uint8_nhwc."""
        return _PIXELS if self.embed_preprocess else _PLANES

    def takes(self, tensor: TensorSpec) -> bool:
        """Whether a tensor is the image, of a fixed size."""
        dtype = "uint8" if self.embed_preprocess else "float32"
        sizes = tensor.shape[1:]
        return tensor.dtype == dtype and len(tensor.shape) == 4 and None not in sizes

    def input_shape(self, tensor: TensorSpec) -> tuple[int, int, int] | None:
        """(channels, height, width) of the pictures of a tensor; None unless it `takes` it."""
        if not self.takes(tensor):
            return None
        first, second, third = (size for size in tensor.shape[1:] if size is not None)
        return (third, first, second) if self.embed_preprocess else (first, second, third)

    def to_details(self) -> dict[str, str]:
        """Their entries in a manifest's details."""
        return {"image_input": self.image_input, "tail": self.tail.value}

    @classmethod
    def of_details(cls, details: Mapping[str, Any]) -> GraphIO:
        """Read what `to_details` wrote; a manifest without it is of a bare graph.

        Raises ArtifactError for an unknown form.
        """
        image = details.get("image_input", _PLANES)
        tail = details.get("tail", Tail.LOGITS.value)
        if image not in (_PLANES, _PIXELS) or tail not in [one.value for one in Tail]:
            raise ArtifactError(
                f"the manifest names input {image!r} and tail {tail!r}; known are {_PLANES}, "
                f"{_PIXELS} and {', '.join(one.value for one in Tail)}: update t2t-deploy, or "
                "export the model again"
            )
        return cls(image == _PIXELS, Tail(tail))


BARE = GraphIO()
"""Normalised pictures in, logits out."""


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of (n, classes) logits, as in a tail, in float64."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """A probability of each logit by itself, as in a tail, in float64."""
    # of half the logit: nothing overflows
    return np.asarray(0.5 + 0.5 * np.tanh(logits.astype(np.float64) / 2))


def relative_errors(actual: np.ndarray, expected: np.ndarray, typical: float = 0.0) -> np.ndarray:
    """||a - b|| / max(||b||, typical) of each row, (n,) float64; infinite where not all is finite.

    typical: of the reference, see `T2TViT.typical_norm`. The logits of a picture on the border of
    few classes are near zero, and the error of a right graph is not.
    """
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    errors = np.full(len(a), np.inf)
    norms = np.linalg.norm(b[finite], axis=1)
    errors[finite] = np.linalg.norm(a[finite] - b[finite], axis=1) / np.maximum(
        norms, max(typical, np.finfo(np.float64).tiny)
    )
    return errors


class Status(str, Enum):
    """Outcome of a check or a measurement; not run is never passed."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not_run"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a tensor; None is a dimension free at run time."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def accepts(self, array: np.ndarray) -> bool:
        """Whether the array's dtype and shape fit."""
        return (
            array.dtype == np.dtype(self.dtype)
            and array.ndim == len(self.shape)
            and all(
                expected is None or actual == expected
                for actual, expected in zip(array.shape, self.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        shown = ", ".join("N" if dim is None else str(dim) for dim in self.shape)
        return f"{self.name} {self.dtype} ({shown})"


@dataclass(frozen=True, slots=True)
class ShapeProfile:
    """Batch sizes an engine accepts (min..max) and the one it is tuned for (opt)."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UsageError(
                f"batch profile is {self}; expected 1 <= min <= opt <= max, as in 1:8:32"
            )

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> ShapeProfile:
        """Read MIN:OPT:MAX. Raises UsageError."""
        match = re.fullmatch(r"(\d+):(\d+):(\d+)", text.strip())
        if match is None:
            raise UsageError(f"batch profile is {text!r}; expected MIN:OPT:MAX, as in 1:8:32")
        return cls(*(int(group) for group in match.groups()))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest accepted relative L2 error of the logits, and why."""

    rel_l2: float
    because: str


# The command-line contract: changing one of these is a change of the contract.
TOLERANCES = {
    Precision.FP32: Tolerance(1e-5, "float32 sums in another order"),
    Precision.FP16: Tolerance(5e-3, "11-bit significands through the whole backbone"),
    Precision.BF16: Tolerance(4e-2, "8-bit significands through the whole backbone"),
    Precision.INT8: Tolerance(6e-2, "8-bit weights and activations of every linear layer"),
    Precision.FP8: Tolerance(6e-2, "E4M3 weights and activations of every linear layer"),
    Precision.INT8_WEIGHTS: Tolerance(6e-2, "8-bit weights of every linear layer"),
    Precision.FP8_WEIGHTS: Tolerance(6e-2, "E4M3 weights of every linear layer"),
}
