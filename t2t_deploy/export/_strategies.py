"""Named forms of the rewrites, and which target gets which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar

from t2t_deploy.errors import UsageError
from t2t_deploy.types import ATTENTION_OPSET, MAX_OPSET, MIN_OPSET, Precision, Target


class SoftSplitForm(str, Enum):
    """How windows are taken from a map."""

    UNFOLD = "unfold"
    """Pad, k*k strided slices of the channels-last map, concatenate."""
    CONV = "conv"
    """Depthwise convolution with an identity kernel."""
    FOLDED = "folded"
    """LayerNorm folded into the product, which becomes a convolution of the map. Loses flat regions
    of a picture to cancellation: not for the first split, save to measure it."""
    CENTRED = "centred"
    """Slices less a pixel of their own, LayerNorm folded into the product: safe on pictures."""
    NORMALISED = "normalised"
    """The same with its deviation divided out before the product, padded to whole vectors: what 8
    bits hold, and no copy where TensorRT would pad."""
    SHIFTED = "shifted"
    """The same slices, then LayerNorm as an operator: one kernel where a runtime fuses nothing."""


class PerformerForm(str, Enum):
    """How the performer's normalised features are computed."""

    PLAIN = "plain"
    """As the paper writes it; features would overflow half precision and are float32."""
    STABLE = "stable"
    """Shifted per feature, epsilon carried in the exponent: nothing overflows or vanishes."""
    SOFTMAX = "softmax"
    """The stable form in two Softmax operators: fewer kernels where a runtime fuses nothing."""
    ENTROPY = "entropy"
    """The same without sums or maxima, for runtimes that lose their axis; squeeze-excite's mean is
    a product then as well."""


@dataclass(frozen=True, slots=True)
class Strategies:
    """One form for each of the three soft splits, one for the performer.

    query_groups: runs of queries that stand where heads would in single-head attention; 1 is none.
    fold_class_keys: the last attention's keys and values, which one query alone reads, are never
        written out: their weights move to the query and to the weighted mean.
    fuse_attention: backbone attention as one operator of ONNX Runtime's own (float32 only).
    fuse_kernels: the same in float16 too and in token blocks, sums with the norm behind them, and
        biases with the GELU behind them: what its CUDA provider has one kernel for.
    rows_in: the backbone's rows are a multiple of it: the last tokens are computed twice, and
        nothing reads the repeats.
    """

    soft_split: tuple[SoftSplitForm, SoftSplitForm, SoftSplitForm]
    performer: PerformerForm
    query_groups: int = 1
    fold_class_keys: bool = False
    fuse_attention: bool = False
    fuse_kernels: bool = False
    rows_in: int = 1

    def rows_of(self, num_tokens: int) -> int:
        """How many rows the backbone computes for that many tokens, of which one is the class's."""
        repeats = -num_tokens % self.rows_in
        return num_tokens + repeats if repeats < num_tokens else num_tokens

    @property
    def contrib(self) -> bool:
        """Whether graphs may have operators of ONNX Runtime's own."""
        return self.fuse_attention or self.fuse_kernels

    @property
    def fused_in(self) -> tuple[Precision, ...]:
        """Where they have: what its kernels take, and ONNX Runtime's CPU kernels can check."""
        if self.fuse_kernels:
            return (Precision.FP32, Precision.FP16)
        return (Precision.FP32,) if self.fuse_attention else ()

    def hazards(self) -> tuple[str, ...]:
        """Known ways in which these forms lose numbers that others keep, one line each."""
        found = []
        if self.soft_split[0] is SoftSplitForm.FOLDED:
            found.append(
                "soft split 'folded' on the picture: flat regions (a plain background) are lost to "
                "cancellation, relative errors of 3 % in fp32 and 20 % in fp16 were measured: "
                "use 'centred'"
            )
        if self.performer is PerformerForm.PLAIN:
            found.append(
                "performer 'plain': features reach exp of half a row of w squared, which "
                "overflows even float32 where a row is longer than 13: use 'stable'"
            )
        return tuple(found)

    def check_opset(self, opset: int | None, precision: Precision) -> None:
        """Raise UsageError for an opset that nothing here writes; None is the default."""
        if opset is None or MIN_OPSET <= opset <= MAX_OPSET:
            return
        if opset != ATTENTION_OPSET:
            raise UsageError(
                f"opset is {opset}; expected {MIN_OPSET} to {MAX_OPSET}, or {ATTENTION_OPSET}"
            )
        if not self.fuse_attention or precision is not Precision.FP32:
            raise UsageError(
                f"opset {ATTENTION_OPSET} is for its Attention operator, which target cpu has in "
                f"fp32; expected {MIN_OPSET} to {MAX_OPSET}"
            )

    def check_precision(self, precision: Precision) -> None:
        """Raise UsageError where ONNX lacks an operator of these forms in that precision."""
        if precision is not Precision.BF16:
            return
        later = self.soft_split[1:]
        convolved = (SoftSplitForm.FOLDED, SoftSplitForm.CONV)
        # windows of the picture are cut out in float32, folded products of it are not
        found = [form for form in convolved if form in later]
        if self.soft_split[0] is SoftSplitForm.FOLDED:
            found.append(SoftSplitForm.FOLDED)
        if found:
            raise UsageError(
                f"soft split {found[0].value!r} is a convolution, which ONNX has in bf16 from "
                "opset 22 on, two more than torch's exporter writes: use 'unfold' or 'centred', or "
                "--precision fp16"
            )


_Form = TypeVar("_Form", SoftSplitForm, PerformerForm)
# Every first split here keeps flat pictures. docs/rewrites.md has the figures of all forms.
_CENTRED = (SoftSplitForm.CENTRED, SoftSplitForm.UNFOLD, SoftSplitForm.UNFOLD)
_NORMALISED = (SoftSplitForm.NORMALISED, SoftSplitForm.UNFOLD, SoftSplitForm.UNFOLD)
_SHIFTED = (SoftSplitForm.SHIFTED, SoftSplitForm.UNFOLD, SoftSplitForm.UNFOLD)
# Where kernels compute one operator each, fewer and larger ones win: 8 % in OpenVINO, 10 % in ORT.
_OPERATORS = Strategies(_SHIFTED, PerformerForm.SOFTMAX, fold_class_keys=True)
_DEFAULTS: Mapping[Target, Strategies] = {
    Target.PORTABLE: Strategies(_CENTRED, PerformerForm.STABLE),
    # 1 to 3 % more, by an operator that only this runtime has
    Target.CPU: replace(_OPERATORS, fuse_attention=True),
    # oneDNN cuts rows into blocks of one size: 197, a prime, cost a fifth more than 200
    Target.OPENVINO: replace(_OPERATORS, rows_in=4),
    # TensorRT fuses all around products, so there the written-out forms give fewer kernels; two
    # groups of queries let it fuse the token attention of the t_ variants.
    Target.TENSORRT: Strategies(_NORMALISED, PerformerForm.STABLE, query_groups=2),
    # keys and values of the class query as two products more: three kernels fewer than folded
    Target.CUDA: replace(_OPERATORS, fold_class_keys=False, fuse_kernels=True),
    # pnnx drops the axis of a sum, a mean or a maximum: only operators that hold theirs inside
    Target.NCNN: Strategies((SoftSplitForm.UNFOLD,) * 3, PerformerForm.ENTROPY),
}


def choose_strategies(
    target: Target, soft_split: str | None = None, performer: str | None = None
) -> Strategies:
    """The target's strategies, with what the user asked for in their place.

    soft_split: one form, or three separated by commas; None or ``auto`` keeps the target's.
    performer: a form; None or ``auto`` keeps the target's. Raises UsageError.
    """
    default = _DEFAULTS[target]
    return replace(
        default,
        soft_split=_parse_soft_split(soft_split, default.soft_split),
        performer=(
            default.performer
            if performer in (None, "auto")
            else _parse(PerformerForm, str(performer), "performer form")
        ),
    )


def _parse_soft_split(
    text: str | None, default: tuple[SoftSplitForm, SoftSplitForm, SoftSplitForm]
) -> tuple[SoftSplitForm, SoftSplitForm, SoftSplitForm]:
    words = [word.strip() for word in (text or "auto").split(",")]
    if len(words) == 1:
        words *= 3
    if len(words) != 3:
        raise UsageError(f"{len(words)} soft-split forms given: {text}; expected one or three")
    first, second, third = (
        kept if word == "auto" else _parse(SoftSplitForm, word, "soft-split form")
        for word, kept in zip(words, default, strict=True)
    )
    return first, second, third


def _parse(kind: type[_Form], word: str, what: str) -> _Form:
    try:
        return kind(word)
    except ValueError:
        known = ", ".join(form.value for form in kind)
        raise UsageError(f"{word!r} is no {what}; expected one of: auto, {known}") from None


@dataclass(frozen=True, slots=True)
class RewriteReport:
    """What a rewrite did (name -> count) and what it declined (name -> reason)."""

    applied: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
