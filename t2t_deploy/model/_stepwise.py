"""The reference layer by layer, each given what another implementation's layer before it gave.

So the error of a layer is its own: nothing adds up over depth, and a wrong layer is not hidden
behind an earlier one. A second run tells how exactly a layer can be computed at all: its inputs are
moved by one rounding of the arithmetic in question, at random.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2t_deploy.model._backbone import (
    Attention,
    Block,
    DenseBlock,
    GhostAttention,
    Transition,
    scale_channels,
)
from t2t_deploy.model._config import ModelConfig
from t2t_deploy.model._t2t import T2TViT
from t2t_deploy.model._tokens import PerformerBlock, TransformerBlock

_SEED = 8
_INT8_STEPS = 127
_FP8_MAX = 448.0


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What another implementation computes in.

    rounding: the largest relative error of one rounding of an activation. picture_rounding: that of
    the picture. eight_bit: int8 or fp8, what linear layers multiply in, or None.
    """

    rounding: float
    picture_rounding: float
    eight_bit: str | None = None


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's tensor is from what the reference makes of the same input.

    rel_l2: ||a - b|| / ||b||. channel, channel_error: the worst channel (last axis), its error over
    the root mean square of all channels' norms. sensitivity, channel_sensitivity: the same two
    figures of the reference against itself, its input moved by one rounding. terms: how many tokens
    the layer's sums run over. Errors are infinite where a number is not finite.
    """

    layer: str
    terms: int
    rel_l2: float
    channel: int
    channel_error: float
    sensitivity: float
    channel_sensitivity: float
    non_finite: int


@dataclass(frozen=True, slots=True)
class _Probe:
    """Where in the reference a layer's tensor is: what a module reads, or what it gives.

    terms: how many tokens its sums run over. wanted: that tensor -> the layer's own; given: that
    tensor with the layer's own put in.
    """

    layer: str
    module: str
    reads: bool = False
    terms: int = 1
    wanted: Callable[[Tensor], Tensor] = lambda x: x
    given: Callable[[Tensor, Tensor], Tensor] = lambda x, found: laid_over(x, found)


def reference_layers(config: ModelConfig) -> tuple[str, ...]:
    """The layers of a model that can be compared, in the order of computation.

    Names are module paths, with a word in brackets where a module gives several things, or where
    no module of its own computes it.
    """
    with torch.device("meta"):
        return tuple(probe.layer for probe in _probes(T2TViT(config)))


def layer_errors(
    model: T2TViT, picture: Tensor, found: Mapping[str, Tensor], arithmetic: Arithmetic
) -> tuple[LayerError, ...]:
    """Errors of the layers in ``found``, in order.

    model: float64; picture: (1, 3, S, S) normalised float64; found: layer -> (1, rows, channels)
    float64, rows 1 where only the class row was computed.
    """
    moved: dict[str, Tensor] = {}
    errors: list[LayerError] = []

    def keep(probe: _Probe, wanted: Tensor) -> None:
        moved[probe.layer] = wanted

    def compare(probe: _Probe, wanted: Tensor) -> None:
        errors.append(_error(probe, found[probe.layer], wanted, moved.pop(probe.layer)))

    generator = torch.Generator().manual_seed(_SEED)

    def jittered(x: Tensor, rounding: float) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        return x * (1 + rounding * (2 * noise - 1))

    shaken = {name: jittered(x, arithmetic.rounding) for name, x in found.items()}
    _run_replacing(
        _in_eight_bits(model, arithmetic.eight_bit),
        jittered(picture, arithmetic.picture_rounding),
        shaken,
        keep,
    )
    _run_replacing(model, picture, found, compare)
    return tuple(errors)


def reference_tensors(model: T2TViT, picture: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """What the reference itself computes at some of its layers: (1, rows, channels) each.

    model, picture: as in `layer_errors`.
    """
    kept: dict[str, Tensor] = {}

    def keep(probe: _Probe, x: Tensor) -> None:
        kept[probe.layer] = probe.wanted(x)

    _run(model, picture, frozenset(layers), keep)
    return kept


def laid_over(x: Tensor, found: Tensor) -> Tensor:
    """``x`` (B, rows, channels) with its first rows replaced."""
    y = x.clone()
    y[:, : found.shape[1]] = found
    return y


def _run_replacing(
    model: T2TViT,
    picture: Tensor,
    found: Mapping[str, Tensor],
    see: Callable[[_Probe, Tensor], None],
) -> None:
    """Run with every layer's tensor shown to ``see`` and then replaced by the one in ``found``."""

    def replaced(probe: _Probe, x: Tensor) -> Tensor:
        own = found[probe.layer]
        see(probe, probe.wanted(x)[:, : own.shape[1]])
        return probe.given(x, own)

    _run(model, picture, found, replaced)


def _run(
    model: T2TViT,
    picture: Tensor,
    layers: Container[str],
    pass_on: Callable[[_Probe, Tensor], Tensor | None],
) -> None:
    """Run with what stands at some layers handed to ``pass_on``; None leaves it as it is."""
    handles = []
    try:
        for probe in _probes(model):
            if probe.layer in layers:
                handles.append(_attach(model, probe, pass_on))
        with torch.inference_mode():
            model(picture)
    finally:
        for handle in handles:
            handle.remove()


def _attach(
    model: T2TViT, probe: _Probe, pass_on: Callable[[_Probe, Tensor], Tensor | None]
) -> torch.utils.hooks.RemovableHandle:
    module = model.get_submodule(probe.module)
    if probe.reads:
        return module.register_forward_pre_hook(lambda _, inputs: pass_on(probe, inputs[0]))
    return module.register_forward_hook(lambda _, inputs, output: pass_on(probe, output))


def _error(probe: _Probe, found: Tensor, wanted: Tensor, moved: Tensor) -> LayerError:
    bad = int((~found.isfinite()).sum())
    if bad or not bool(wanted.isfinite().all()):
        inf = math.inf
        return LayerError(probe.layer, probe.terms, inf, 0, inf, 0.0, 0.0, bad)
    rel_l2, channels = _relative(found, wanted)
    sensitivity, moved_channels = _relative(moved, wanted)
    worst = int(channels.argmax())
    return LayerError(
        probe.layer,
        probe.terms,
        rel_l2,
        worst,
        float(channels[worst]),
        sensitivity,
        float(moved_channels.max()),
        bad,
    )


def _relative(found: Tensor, wanted: Tensor) -> tuple[float, Tensor]:
    """Relative error of all, and of each channel over the root mean square channel."""
    width = wanted.shape[-1]
    off = (found - wanted).reshape(-1, width).norm(dim=0)
    norm = max(float(wanted.norm()), torch.finfo(torch.float64).tiny)
    return float(off.norm()) / norm, off * (math.sqrt(width) / norm)


def _in_eight_bits(model: T2TViT, kind: str | None) -> T2TViT:
    """A copy whose linear layers multiply 8-bit numbers; the model itself where none do."""
    if kind is None:
        return model
    made = copy.deepcopy(model)
    for name, module in made.named_modules():
        # one row a picture, or the performer's means: they stay float in every 8-bit graph
        if not isinstance(module, nn.Linear) or name == "head" or ".se_layer." in name:
            continue
        module.weight.data = _eight_bit(module.weight.data, kind, dim=1)
        module.register_forward_pre_hook(lambda _, inputs: (_eight_bit(inputs[0], kind),))
    return made


def _eight_bit(x: Tensor, kind: str, dim: int | None = None) -> Tensor:
    largest = x.abs().amax(dim=dim, keepdim=True) if dim is not None else x.abs().max()
    largest = largest.clamp(min=torch.finfo(torch.float32).tiny)
    if kind == "fp8":
        scale = largest / _FP8_MAX
        return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale
    scale = largest / _INT8_STEPS
    return (x / scale).round() * scale


# -- the layers --------------------------------------------------------------------------------


def _probes(model: T2TViT) -> Iterator[_Probe]:
    """Every layer in the order of computation."""
    tokens = model.tokens_to_token
    *grids, _ = model.config.grids()
    for index, (rows, columns) in enumerate(grids, start=1):
        block = getattr(tokens, f"attention{index}")
        yield from _token_block_probes(f"tokens_to_token.attention{index}", block, rows * columns)
    bias = tokens.project.bias
    yield _Probe(
        "tokens_to_token.project",
        "tokens_to_token.project",
        wanted=lambda x: x - bias,  # it stands in the position table of exported graphs
        given=lambda x, found: found + bias,
    )
    yield _Probe("pos_embed", "blocks.0", reads=True)
    for index, layer in enumerate(model.blocks):
        path = f"blocks.{index}"
        if isinstance(layer, Transition):
            yield _Probe(f"{path}.linear", f"{path}.linear")
            yield _Probe(f"{path}.act", path)
        elif isinstance(layer, Block):
            yield from _block_probes(path, layer, model.config.num_patches + 1)
    yield _Probe("norm", "norm")
    yield _Probe("head", "head", wanted=_row, given=lambda x, found: found[:, 0])


def _token_block_probes(path: str, block: nn.Module, terms: int) -> Iterator[_Probe]:
    if isinstance(block, PerformerBlock):
        e = block.token_dim
        yield _columns(f"{path}.kqv", "keys", 0, e)
        yield _columns(f"{path}.kqv", "queries", e, 2 * e)
        yield _columns(f"{path}.kqv", "values", 2 * e, 3 * e)
        yield _Probe(f"{path} (attention)", f"{path}.proj", reads=True, terms=terms)
        yield _Probe(f"{path}.proj", f"{path}.proj")
        fc1, act, fc2 = (f"{path}.mlp.{place}" for place in range(3))
    else:
        assert isinstance(block, TransformerBlock)
        attn, e = block.attn, block.attn.token_dim
        yield _columns(f"{path}.attn.qkv", "queries", 0, e, attn.scale)
        yield _columns(f"{path}.attn.qkv", "keys", e, 2 * e)
        yield _columns(f"{path}.attn.qkv", "values", 2 * e, 3 * e)
        yield _Probe(f"{path} (attention)", f"{path}.attn.proj", reads=True, terms=terms)
        yield _Probe(f"{path}.attn.proj", f"{path}.attn.proj")
        fc1, act, fc2 = (f"{path}.mlp.{name}" for name in ("fc1", "act", "fc2"))
    yield _Probe(f"{path} (sum after attention)", f"{path}.norm2", reads=True, terms=terms)
    yield _Probe(f"{path}.norm2", f"{path}.norm2")
    yield _Probe(fc1, fc1)
    yield _Probe(act, fc2, reads=True)
    yield _Probe(fc2, fc2)
    yield _Probe(f"{path} (sum after mlp)", path)


def _block_probes(path: str, block: Block, terms: int) -> Iterator[_Probe]:
    yield _Probe(f"{path}.norm1", f"{path}.norm1")
    attn, dim = block.attn, block.norm1.normalized_shape[0]
    if isinstance(attn, Attention):
        yield _columns(f"{path}.attn.qkv", "queries", 0, dim, attn.scale)
        yield _columns(f"{path}.attn.qkv", "keys", dim, 2 * dim)
        yield _columns(f"{path}.attn.qkv", "values", 2 * dim, 3 * dim)
    else:
        yield _ghost(f"{path}.attn", attn, "q", attn.scale)
        yield _ghost(f"{path}.attn", attn, "k")
        yield _ghost(f"{path}.attn", attn, "v")
    yield _Probe(f"{path} (attention)", f"{path}.attn.proj", reads=True, terms=terms)
    yield _Probe(f"{path}.attn.proj", f"{path}.attn.proj")
    if isinstance(attn, Attention) and attn.se_layer is not None:
        yield _Probe(f"{path}.attn.se_layer", f"{path}.attn.se_layer")
    yield _Probe(f"{path} (sum after attention)", f"{path}.norm2", reads=True)
    yield _Probe(f"{path}.norm2", f"{path}.norm2")
    yield _Probe(f"{path}.mlp.fc1", f"{path}.mlp.fc1")
    yield _Probe(f"{path}.mlp.act", f"{path}.mlp.fc2", reads=True)
    yield _Probe(f"{path}.mlp.fc2", f"{path}.mlp.fc2")
    if isinstance(block, DenseBlock):
        yield _Probe(f"{path} (sum after mlp)", f"{path}.dense_linear", reads=True)
        yield _Probe(f"{path}.dense_linear", f"{path}.dense_linear")
    else:
        yield _Probe(f"{path} (sum after mlp)", path)


def _columns(module: str, word: str, start: int, stop: int, scale: float = 1.0) -> _Probe:
    """Some outputs of a product; queries times the attention scale, as graphs hold them."""

    def given(x: Tensor, found: Tensor) -> Tensor:
        y = x.clone()
        y[:, : found.shape[1], start:stop] = found / scale
        return y

    return _Probe(
        f"{module} ({word})", module, wanted=lambda x: x[..., start:stop] * scale, given=given
    )


def _ghost(path: str, attn: GhostAttention, letter: str, scale: float = 1.0) -> _Probe:
    """A computed half and its scaled copy; only the computed one can be handed on."""
    cheap: nn.Conv1d = getattr(attn, f"cheap_operation_{letter}")

    def wanted(x: Tensor) -> Tensor:
        return torch.cat((x, scale_channels(x, cheap)), dim=-1) * scale

    def given(x: Tensor, found: Tensor) -> Tensor:
        return laid_over(x, found[..., : x.shape[-1]] / scale)

    return _Probe(f"{path}.{letter}", f"{path}.{letter}", wanted=wanted, given=given)


def _row(x: Tensor) -> Tensor:
    """(B, classes) -> (B, 1, classes)."""
    return x[:, None]
