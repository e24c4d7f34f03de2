"""How a quantised layer stands in a graph for TensorRT, and which layers stand how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Form(str, Enum):
    """How the product of a quantised layer is written.

    TensorRT-RTX 1.7.1 multiplies codes in integers, applies *one* float32 factor to the sums and
    writes them, as 16 bit or as codes again; what is done by channel is a kernel of its own, in 16
    bit. A scale that is a vector would come after the bare sums, and those pass float16's 65504.
    """

    VECTOR = "vector"
    """Scales in the operator: right where kernels apply them in float32, as on a CPU."""
    CHANNEL = "channel"
    """One scale, written in 16 bit, then a ratio by channel: as exact as a scale by channel."""
    TENSOR = "tensor"
    """One scale, written in 16 bit."""
    RESULT = "result"
    """One scale, written as codes: half the bytes, no bias inside."""
    WEIGHTS = "weights"
    """Codes of the weights alone, a scale by channel: the product is of the graph's own type."""
    WEIGHTS_TENSOR = "weights-tensor"
    """The same with one scale."""
    FLOAT = "float"

    @property
    def reads_codes(self) -> bool:
        """Whether the product is one of codes, both of its sides."""
        return self not in (Form.WEIGHTS, Form.WEIGHTS_TENSOR, Form.FLOAT)


@dataclass(frozen=True, slots=True)
class FormRule:
    """The form of the layers whose whole name matches the pattern."""

    pattern: str
    form: Form
    because: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Forms by layer, the first rule that matches; other layers have the form ``otherwise``.

    one_row: the form of layers that the policy leaves float for their one row a picture. Where a
    layer reads a row of a tensor that others read whole, ``queries`` makes it read all and cuts
    its result instead.
    """

    name: str
    otherwise: Form
    rules: tuple[FormRule, ...] = ()
    one_row: Form = Form.FLOAT
    queries: bool = False

    def form_of(self, layer: str) -> FormRule:
        """The rule for a layer by its name."""
        for rule in self.rules:
            if re.fullmatch(rule.pattern, layer):
                return rule
        return FormRule(".*", self.otherwise, "")


IN_OPERATOR = Placement("vector", Form.VECTOR)
"""Scales in the operators, for runtimes whose kernels apply them in float32."""

_HALF_PROJ = (
    "in 16 bit its bias and the residual sum are inside its kernel, which moves no more than 8 "
    "bits would and takes one kernel less"
)
_WIDE = "its result is the widest tensor of a block, and its bias follows in the kernel of the GELU"
_SUMMED_LATER = "a kernel that adds its bias and the residual follows in any case"
_READ_AS_WRITTEN = "attention reads it as it is written: ratios by channel would cost a kernel"
_NORMS = "keys and queries that are squared and summed, which evens their rounding out"
_BIAS_FOLLOWS = "a kernel that adds the bias follows, which scales by channel as well"

ACCURATE = Placement("accurate", Form.CHANNEL)
"""A scale by channel everywhere: the smallest rounding, one more kernel for most products."""
BALANCED = Placement(
    "balanced",
    Form.TENSOR,
    (
        FormRule(r"tokens\.splits\.[01]\.weights\.norms", Form.RESULT, _NORMS),
        FormRule(r"tokens\.splits\.[01]\.weights\.[qk]", Form.CHANNEL, _BIAS_FOLLOWS),
        FormRule(r"tokens\..*\.mlp\.fc2", Form.RESULT, _SUMMED_LATER),
        FormRule(r".*\.mlp\.fc1", Form.RESULT, _WIDE),
        FormRule(r"blocks\.\d+\.attn\.proj", Form.FLOAT, _HALF_PROJ),
    ),
)
"""One scale for the weights that read one tensor, codes between kernels where that costs none."""
COMPACT = Placement(
    "compact",
    Form.TENSOR,
    (*BALANCED.rules, FormRule(r".*\.mlp\.fc2", Form.RESULT, _SUMMED_LATER)),
    one_row=Form.WEIGHTS,
    queries=True,
)
"""The least traffic at batch 1. TensorRT-RTX 1.7.1 adds copies to it from batch 2 on."""
_FUSED_IN_HALF = (
    "bias, GELU or residual sum are inside its kernel only where its weights are 16 bit, which "
    "saves more than 8-bit weights do"
)
WEIGHTS_BALANCED = Placement(
    "balanced",
    Form.WEIGHTS,
    (
        FormRule(r".*\.proj", Form.FLOAT, _FUSED_IN_HALF),
        FormRule(r".*\.mlp\.fc1", Form.FLOAT, _FUSED_IN_HALF),
        FormRule(r"tokens\..*", Form.FLOAT, _FUSED_IN_HALF),
        FormRule(r"blocks\.\d+\.attn\.[qkv]", Form.WEIGHTS_TENSOR, _READ_AS_WRITTEN),
    ),
    one_row=Form.WEIGHTS,
)
"""Weights in 8 bits where that costs no kernel: an engine moves less at batch 1 than in fp16."""
WEIGHTS_COMPACT = Placement("compact", Form.WEIGHTS, one_row=Form.WEIGHTS)
"""Every weight in 8 bits: the least memory. More activations move than in fp16."""
FP8_BALANCED = Placement(
    "balanced",
    Form.TENSOR,
    (FormRule(r"blocks\.\d+\.attn\.proj", Form.FLOAT, _HALF_PROJ),),
)
FP8_COMPACT = Placement(
    "compact", Form.TENSOR, (*FP8_BALANCED.rules, FormRule(r".*\.mlp\.fc1", Form.RESULT, _WIDE))
)
