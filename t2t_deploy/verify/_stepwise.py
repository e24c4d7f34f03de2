"""The reference layer by layer, each given what another implementation's layer before it gave."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from t2t_deploy.model import (
    Attention,
    Block,
    DenseBlock,
    GhostAttention,
    ModelConfig,
    PerformerBlock,
    T2TViT,
    TransformerBlock,
    Transition,
    scale_channels,
)

_SEED = 8
_HEAD = "head"
_FLOAT32_ROUNDING = 2.0**-24
_INT8_STEPS = 127
_FP8_MAX = 448.0
_QKV = ("queries", "keys", "values")
_MLP = ("fc1", "act", "fc2")
_ALL = slice(None)


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's tensor is from what the reference makes of the same input.

    rel_l2: ||a - b|| / ||b||, of logits as `relative_errors`. channel, channel_error: the worst
    channel (last axis), its error over the root mean square of all channels' norms. sensitivity,
    channel_sensitivity: the same two figures of the reference against itself, its input moved by
    one rounding. terms: how many tokens the layer's sums run over. Errors are infinite where a
    number is not finite.
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
    """Where in the reference a layer's tensor is: what a module gives, or what it reads.

    module: its path; the layer's own name if it is empty. terms: how many tokens its sums run over.
    take: that tensor -> the layer's own. put: that tensor with the layer's own in its place.
    """

    layer: str
    module: str = ""
    reads: bool = False
    terms: int = 1
    take: Callable[[Tensor], Tensor] = lambda x: x
    put: Callable[[Tensor, Tensor], Tensor] = lambda x, own: _laid_over(x, own)


def reference_layers(config: ModelConfig) -> tuple[str, ...]:
    """The layers of a model that can be compared, in the order of computation.

    Names are module paths, with a word in brackets where a module gives several things, or where
    no module of its own computes it.
    """
    with torch.device("meta"):
        return tuple(probe.layer for probe in _probes(T2TViT(config)))


def layer_errors(
    model: T2TViT,
    picture: Tensor,
    found: Mapping[str, Tensor],
    rounding: float,
    eight_bit: str | None = None,
) -> tuple[LayerError, ...]:
    """Errors of the layers in ``found``, in order.

    The error of a layer is its own: nothing adds up over depth. How exactly it can be computed at
    all is seen in a second run, whose inputs are moved by one rounding at random.

    model: float64; picture: (1, 3, S, S) normalised float64; found: layer -> (1, rows, channels)
    float64, rows 1 where only the class row was computed. rounding: the largest relative error of
    rounding an activation; pictures are float32. eight_bit: int8 or fp8, what linear layers
    multiply in, or None.
    """
    generator = torch.Generator().manual_seed(_SEED)

    def jittered(x: Tensor, rounding: float) -> Tensor:
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        return x * (1 + rounding * (2 * noise - 1))

    shaken = {name: jittered(x, rounding) for name, x in found.items()}
    shaken_picture = jittered(picture, _FLOAT32_ROUNDING)
    moved = _run(_in_eight_bits(model, eight_bit), shaken_picture, shaken, shaken)
    expected = _run(model, picture, found, found)
    typical = {_HEAD: model.typical_norm()}
    return tuple(
        _error(probe, found[layer], x, moved[layer][1], typical.get(layer, 0.0))
        for layer, (probe, x) in expected.items()
    )


def reference_tensors(model: T2TViT, picture: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
    """What the reference itself computes at some of its layers: (1, rows, channels) each.

    model, picture: as in `layer_errors`.
    """
    return {layer: x for layer, (_, x) in _run(model, picture, frozenset(layers), {}).items()}


def _run(
    model: T2TViT, picture: Tensor, layers: Container[str], given: Mapping[str, Tensor]
) -> dict[str, tuple[_Probe, Tensor]]:
    """What the model computes at some layers, each given the tensors in ``given`` before it."""
    seen: dict[str, tuple[_Probe, Tensor]] = {}

    def visit(
        probe: _Probe, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None
    ) -> Tensor | None:
        x = inputs[0] if output is None else output
        own = given.get(probe.layer)
        seen[probe.layer] = probe, probe.take(x)[:, : None if own is None else own.shape[1]]
        return None if own is None else probe.put(x, own)

    with contextlib.ExitStack() as stack, torch.inference_mode():
        for probe in _probes(model):
            if probe.layer in layers:
                module = model.get_submodule(probe.module or probe.layer)
                hook = functools.partial(visit, probe)
                stack.enter_context(
                    module.register_forward_pre_hook(hook)
                    if probe.reads
                    else module.register_forward_hook(hook)
                )
        model(picture)
    return seen


def _error(
    probe: _Probe, actual: Tensor, expected: Tensor, moved: Tensor, typical: float
) -> LayerError:
    bad = int((~actual.isfinite()).sum())
    if bad or not bool(expected.isfinite().all()):
        inf = math.inf
        return LayerError(probe.layer, probe.terms, inf, 0, inf, 0.0, 0.0, bad)
    rel_l2, channels = _relative(actual, expected, typical)
    sensitivity, moved_channels = _relative(moved, expected, typical)
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


def _relative(actual: Tensor, expected: Tensor, typical: float) -> tuple[float, Tensor]:
    """Relative error of all, and of each channel over the root mean square channel."""
    width = expected.shape[-1]
    off = (actual - expected).reshape(-1, width).norm(dim=0)
    norm = max(float(expected.norm()), typical, torch.finfo(torch.float64).tiny)
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
    scale = largest / (_FP8_MAX if kind == "fp8" else _INT8_STEPS)
    codes = x / scale
    codes = codes.to(torch.float8_e4m3fn).to(x.dtype) if kind == "fp8" else codes.round()
    return codes * scale


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
        take=lambda x: x - bias,  # it stands in the position table of exported graphs
        put=lambda x, own: own + bias,
    )
    yield _Probe("pos_embed", "blocks.0", reads=True)
    for index, layer in enumerate(model.blocks):
        path = f"blocks.{index}"
        if isinstance(layer, Transition):
            yield _Probe(f"{path}.linear")
            yield _Probe(f"{path}.act", path)
        elif isinstance(layer, Block):
            yield from _block_probes(path, layer, model.config.num_patches + 1)
    yield _Probe("norm")
    if model.head is not None:
        yield _Probe(_HEAD, take=lambda x: x[:, None], put=lambda x, own: own[:, 0])


def _token_block_probes(path: str, block: nn.Module, terms: int) -> Iterator[_Probe]:
    if isinstance(block, PerformerBlock):
        yield from _runs(f"{path}.kqv", ("keys", "queries", "values"), block.token_dim)
        yield from _attention_probes(path, f"{path}.proj", terms)
        mlp = ("0", "1", "2")
    else:
        assert isinstance(block, TransformerBlock)
        yield from _runs(f"{path}.attn.qkv", _QKV, block.attn.token_dim, block.attn.scale)
        yield from _attention_probes(path, f"{path}.attn.proj", terms)
        mlp = _MLP
    yield from _mlp_probes(path, mlp, terms)
    yield _Probe(f"{path} (sum after mlp)", path)


def _block_probes(path: str, block: Block, terms: int) -> Iterator[_Probe]:
    attn, dim = block.attn, block.norm1.normalized_shape[0]
    yield _Probe(f"{path}.norm1")
    if isinstance(attn, Attention):
        yield from _runs(f"{path}.attn.qkv", _QKV, dim, attn.scale)
    else:
        for letter in "qkv":
            yield _ghost(f"{path}.attn", attn, letter, attn.scale if letter == "q" else 1.0)
    yield from _attention_probes(path, f"{path}.attn.proj", terms)
    if isinstance(attn, Attention) and attn.se_layer is not None:
        yield _Probe(f"{path}.attn.se_layer")
    yield from _mlp_probes(path, _MLP)
    if isinstance(block, DenseBlock):
        yield _Probe(f"{path} (sum after mlp)", f"{path}.dense_linear", reads=True)
        yield _Probe(f"{path}.dense_linear")
    else:
        yield _Probe(f"{path} (sum after mlp)", path)


def _attention_probes(path: str, projection: str, terms: int) -> Iterator[_Probe]:
    yield _Probe(f"{path} (attention)", projection, reads=True, terms=terms)
    yield _Probe(projection)


def _mlp_probes(path: str, names: tuple[str, str, str], terms: int = 1) -> Iterator[_Probe]:
    """terms: of the sum that the block's second norm reads."""
    fc1, act, fc2 = (f"{path}.mlp.{name}" for name in names)
    yield _Probe(f"{path} (sum after attention)", f"{path}.norm2", reads=True, terms=terms)
    yield _Probe(f"{path}.norm2")
    yield _Probe(fc1)
    yield _Probe(act, fc2, reads=True)
    yield _Probe(fc2)


def _runs(
    module: str, words: tuple[str, str, str], width: int, scale: float = 1.0
) -> Iterator[_Probe]:
    """Runs of columns of a product; queries times the attention scale, as graphs hold them."""
    for index, word in enumerate(words):
        columns = slice(index * width, (index + 1) * width)
        yield _columns(f"{module} ({word})", module, columns, scale if word == "queries" else 1.0)


def _columns(layer: str, module: str, columns: slice, factor: float) -> _Probe:
    return _Probe(
        layer,
        module,
        take=lambda x: x[..., columns] * factor,
        put=lambda x, own: _laid_over(x, own / factor, columns),
    )


def _ghost(path: str, attn: GhostAttention, letter: str, scale: float) -> _Probe:
    """A computed half and its scaled copy; only the computed one can be handed on."""
    cheap: nn.Conv1d = getattr(attn, f"cheap_operation_{letter}")

    def take(x: Tensor) -> Tensor:
        return torch.cat((x, scale_channels(x, cheap)), dim=-1) * scale

    def put(x: Tensor, own: Tensor) -> Tensor:
        return _laid_over(x, own[..., : x.shape[-1]] / scale)

    return _Probe(f"{path}.{letter}", take=take, put=put)


def _laid_over(x: Tensor, own: Tensor, columns: slice = _ALL) -> Tensor:
    """``x`` (B, rows, channels) with its first rows, or columns of them, replaced."""
    y = x.clone()
    y[:, : own.shape[1], columns] = own
    return y
