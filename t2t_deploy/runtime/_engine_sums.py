"""Products of 8-bit codes whose bare sums an engine writes in 16 bit, before any scale.

TensorRT-RTX 1.7.1 applies one float32 factor to the sums of a product of codes, named alpha, and
writes them. A scale that is a vector it leaves to the next kernel, in 16 bit: alpha then keeps its
default of one, and what passes between the two is the sum of the codes' products itself, which goes
beyond float16's 65504 (K times 16129 in int8). Nothing in the types tells: both are Half. Three
witnesses do:

    alpha in the log      a factor that was set has a name of its own, the default ``..._alpha``
    the next kernel       it multiplies, and names the product's own ONNX nodes
    alpha in the engine   the default is a tensor ``NAME_alpha`` of the engine's descriptors

Any of them is enough. Seen with ahead-of-time builds for SM75 to SM120 (docs/quantization.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from t2t_deploy.runtime._engine_log import Kernel

EIGHT_BITS = ("Int8", "FP8")
_HALF = "Half"
_DEFAULT_FACTOR = re.compile(r"_alpha(_myl\d+)?$")
_IN_ENGINE = re.compile(rb'name="(?:__mye\d+)?([^"]*?)_alpha" ')
_COMPILED = re.compile(r"(_U\d+)?_myl\d+_\d+$")
# a tensor that is seen in another shape has another number behind its name
_VIEW = re.compile(r"\.\d+$")


def bare_sums(kernels: Sequence[Kernel], engine: bytes = b"") -> tuple[str, ...]:
    """The products, by kernel, whose bare sums leave in 16 bit.

    engine: its bytes, for the third witness.
    """
    unscaled = frozenset(match.decode("utf-8", "replace") for match in _IN_ENGINE.findall(engine))
    found = []
    for kernel in kernels:
        if not _multiplies_codes(kernel) or all(out.dtype != _HALF for out in kernel.outputs):
            continue
        name = _COMPILED.sub("", kernel.name)
        if (
            any(_DEFAULT_FACTOR.search(constant.name) for constant in kernel.constants)
            or _scaled_afterwards(kernel, kernels)
            or name.split("+")[0] in unscaled
        ):
            found.append(name)
    return tuple(found)


def _multiplies_codes(kernel: Kernel) -> bool:
    """Whether a kernel's operands are codes, both of them."""
    return kernel.is_gemm_like and kernel.dtype in EIGHT_BITS


def _scaled_afterwards(kernel: Kernel, kernels: Iterable[Kernel]) -> bool:
    """Whether a kernel that reads the result multiplies on behalf of the product's own nodes."""
    written = {_VIEW.sub("", out.name) for out in kernel.outputs}
    nodes = set(kernel.onnx_layers)
    return any(
        "Mul" in reader.name and not nodes.isdisjoint(reader.onnx_layers)
        for reader in kernels
        if not reader.is_gemm_like
        and any(_VIEW.sub("", read.name) in written for read in reader.inputs)
    )
