"""Figures of an engine from its builder log, without a GPU, and attestation of its precision."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from t2t_deploy.engine._log import Kernel, LogTotals, parse_log
from t2t_deploy.errors import first_few
from t2t_deploy.types import Precision, Status


@dataclass(frozen=True, slots=True)
class EngineFigures(LogTotals):
    """Content of an engine, for its first profile.

    kernels: launches; ``shape_ops`` (sizes computed for a free batch) are not among them.
    kernels_by_dtype, gemms_by_dtype: `Kernel.dtype` of all kernels, and of those built
        around matrix products.
    macs_by_dtype: multiply-adds of the graph's matrix products and convolutions at the tuned batch,
        by the type of the kernel that does them; empty if only the log was read.
    macs_unplaced: multiply-adds of graph layers that no kernel names (folded at build time).
    moved_bytes: sum over kernels of the activations they read and write, constants not counted;
        None where the batch is free, because the log then prints sizes as -1.
    gemm_mha, gemv_mha: attentions in one kernel, of many queries and of one.
    profiles: how many profiles' kernels the log lists.
    bare_sums: products of 8-bit codes that write unscaled sums in 16 bit; see `bare_sums`.
    """

    kernels: int
    shape_ops: int
    kernels_by_kind: Mapping[str, int]
    kernels_by_dtype: Mapping[str, int]
    gemms_by_dtype: Mapping[str, int]
    macs_by_dtype: Mapping[str, int]
    macs_unplaced: int
    moved_bytes: int | None
    gemm_mha: int
    gemv_mha: int
    profiles: int
    layers: tuple[Kernel, ...]
    bare_sums: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int | None:
        """Activations that kernels read and write at the tuned batch, and the weights once.

        Comparable between engines of one model in different types.
        """
        return None if self.moved_bytes is None else self.moved_bytes + self.weights_bytes

    @property
    def fused_attention(self) -> int:
        """Attentions that are one kernel."""
        return self.gemm_mha + self.gemv_mha

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures, without the single kernels."""
        return {name: getattr(self, name) for name in _JSON_NAMES}


_JSON_NAMES = (
    *("kernels", "shape_ops", "kernels_by_kind", "kernels_by_dtype", "gemms_by_dtype"),
    *("macs_by_dtype", "macs_unplaced", "moved_bytes", "total_bytes", "fused_attention"),
    *("gemm_mha", "gemv_mha", "profiles"),
    *(field.name for field in fields(LogTotals)),
)


def figures_from_log(
    text: str, layer_macs: Mapping[str, int] | None = None, engine: bytes = b""
) -> EngineFigures:
    """Figures of the first profile of a builder log.

    layer_macs: multiply-adds by ONNX node name, if known. engine: its bytes, if known. Raises
    EngineError.
    """
    log = parse_log(text)
    layers = log.profiles[0]
    kernels = [layer for layer in layers if not layer.is_shape_work]
    macs, unplaced = _macs_by_dtype(kernels, layer_macs or {})
    return EngineFigures(
        **asdict(log.totals),
        kernels=len(kernels),
        shape_ops=len(layers) - len(kernels),
        kernels_by_kind=_count(kernel.kind for kernel in kernels),
        kernels_by_dtype=_count(kernel.dtype for kernel in kernels),
        gemms_by_dtype=_count(kernel.dtype for kernel in kernels if kernel.is_gemm_like),
        macs_by_dtype=macs,
        macs_unplaced=unplaced,
        moved_bytes=_moved_bytes(kernels),
        gemm_mha=sum(kernel.is_gemm_mha for kernel in kernels),
        gemv_mha=sum(kernel.is_gemv_mha for kernel in kernels),
        profiles=len(log.profiles),
        layers=layers,
        bare_sums=bare_sums(kernels, engine),
    )


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _moved_bytes(kernels: Iterable[Kernel]) -> int | None:
    sizes = [t.size_bytes for kernel in kernels for t in kernel.inputs + kernel.outputs]
    fixed = [size for size in sizes if size is not None]
    # a -1 is an unknown multiple of the batch: there is no sum then
    return sum(fixed) if len(fixed) == len(sizes) else None


def _macs_by_dtype(
    kernels: Iterable[Kernel], layer_macs: Mapping[str, int]
) -> tuple[dict[str, int], int]:
    """Multiply-adds by dtype of the kernel that does them, and those without a kernel.

    Kernels that only finish a node (its bias, a slice of its result) also have its name; the one
    built around matrix products multiplies. Without one the first with the name does it (a product
    with one row becomes a multiply and a sum).
    """
    named: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for name in kernel.onnx_layers:
            named.setdefault(name, []).append(kernel)
    by_dtype: Counter[str] = Counter()
    unplaced = 0
    for name, macs in layer_macs.items():
        candidates = named.get(name, [])
        if not candidates:
            unplaced += macs
            continue
        kernel = next((one for one in candidates if one.is_gemm_like), candidates[0])
        by_dtype[kernel.dtype] += macs
    return dict(sorted(by_dtype.items())), unplaced


# the log's name of each precision
DTYPE_NAMES = {
    Precision.FP32: "Float",
    Precision.FP16: "Half",
    Precision.BF16: "BFloat16",
    Precision.INT8: "Int8",
    Precision.FP8: "FP8",
    # products widen the weights: the arithmetic is 16-bit
    Precision.INT8_WEIGHTS: "Half",
    Precision.FP8_WEIGHTS: "Half",
}
# The performer's features stay float32 by design: 1 % of the multiply-adds of the released
# variants, some 11 % of a 32-pixel model; a build of the wrong precision has next to none.
_ISLANDS = 0.75
# Only linear layers and convolutions are quantised (about 0.9 of the multiply-adds), less what an
# accuracy budget returned to float.
_LINEAR_ONLY = 0.5
MIN_SHARES = {
    precision: _LINEAR_ONLY if precision in (Precision.INT8, Precision.FP8) else _ISLANDS
    for precision in Precision
}
"""Least share of the multiply-adds in the requested type."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """Whether an engine computes in the requested precision.

    found: the log's name of each type -> its share in 0..1 of the multiply-adds (of the kernels
        built around matrix products if only the log was read: ``by`` says which).
    bare_sums: products of codes that write unscaled sums in 16 bit: real pictures overflow them.
    """

    status: Status
    asked: str
    found: Mapping[str, float]
    by: str
    reason: str | None
    bare_sums: tuple[str, ...] = ()


def attest(figures: EngineFigures, precision: Precision) -> Attestation:
    """Say whether the engine multiplies in ``precision``; `MIN_SHARES` is how much of it must be.

    An engine that writes bare sums of codes in 16 bit fails in every precision. One without a
    matrix product is NOT_RUN.
    """
    weights = figures.macs_by_dtype or figures.gemms_by_dtype
    by = "multiply-adds" if figures.macs_by_dtype else "kernels"
    total = sum(weights.values())
    shares = {name: round(amount / total, 4) for name, amount in weights.items() if total}
    expected, least = DTYPE_NAMES[precision], MIN_SHARES[precision]
    reason = None
    if total == 0:
        status, reason = Status.NOT_RUN, "the engine has no matrix product"
    elif figures.bare_sums:
        status = Status.FAILED
        reason = (
            f"{len(figures.bare_sums)} products of 8-bit codes write their bare sums as Half, "
            f"before the scale ({first_few(figures.bare_sums)}); those of real pictures pass "
            "65504, where Half ends: give each weight one scale and multiply by channel "
            "afterwards, which t2t-deploy quantize --target tensorrt does"
        )
    elif weights.get(expected, 0) / total >= least:
        status = Status.PASSED
    else:
        status = Status.FAILED
        shown = ", ".join(f"{share:.1%} {name}" for name, share in shares.items())
        reason = (
            f"{precision.value} was asked and {shown} of the {by} found; expected at least "
            f"{least:.0%} {expected}: build from a graph exported in {precision.value}"
        )
    return Attestation(status, precision.value, shares, by, reason, figures.bare_sums)


EIGHT_BITS = ("Int8", "FP8")
_HALF = "Half"
_DEFAULT_FACTOR = re.compile(r"_alpha(_myl\d+)?$")
_IN_ENGINE = re.compile(rb'name="(?:__mye\d+)?([^"]*?)_alpha" ')
_COMPILED = re.compile(r"(_U\d+)?_myl\d+_\d+$")
# a view of a tensor has another number after its name
_VIEW = re.compile(r"\.\d+$")


def bare_sums(kernels: Sequence[Kernel], engine: bytes = b"") -> tuple[str, ...]:
    """Names of the products that write bare sums in 16 bit.

    engine: its bytes, which also name unscaled products.
    """
    unscaled = frozenset(match.decode("utf-8", "replace") for match in _IN_ENGINE.findall(engine))
    products = []
    for kernel in kernels:
        of_codes = kernel.is_gemm_like and kernel.dtype in EIGHT_BITS
        if not of_codes or all(out.dtype != _HALF for out in kernel.outputs):
            continue
        name = _COMPILED.sub("", kernel.name)
        if (
            any(_DEFAULT_FACTOR.search(constant.name) for constant in kernel.constants)
            or _scaled_afterwards(kernel, kernels)
            or name.split("+")[0] in unscaled
        ):
            products.append(name)
    return tuple(products)


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
