"""Weights files: released checkpoints, bare state dicts and safetensors, none of them trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import functional

from t2t_deploy.errors import AmbiguousVariantError, CheckpointError, counted, one_line
from t2t_deploy.model._checkpoint_file import (
    MAX_WEIGHTS,
    FileContent,
    check_tensors,
    read_tensor,
    read_tensors_file,
)
from t2t_deploy.model._config import ModelConfig, ModelOutput
from t2t_deploy.model._mmpretrain import class_names, rescaled, scale_of_file
from t2t_deploy.model._no_checkpoint import config_beside, weights_file
from t2t_deploy.model._random import weight_shapes
from t2t_deploy.model._t2t import T2TViT
from t2t_deploy.model._variants import VARIANTS, config_for_variant
from t2t_deploy.model._weight_sets import (
    BARE,
    LAYER,
    WeightSet,
    by_preference,
    fold,
    is_average,
    leave_out,
    named_set,
    refuse_extra,
    shown,
    weight_sets,
    without_ignored,
)

_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_HEAD = ("head.weight", "head.bias")
_CLASSIFIER = re.compile(r"(^|\.)(fc\d*|linear|classifier|\w*head)(\.\w+)*\.weight$")
_NOTABLE_DIFFERENCE = 0.1

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights that fit a model.

    state_dict: float32 tensors with the released names, ``pos_embed`` already at the config's
    resolution. container: their name in the file (``file`` for a bare state dict).
    notes: what was chosen and changed, one line each. class_names: of the file, if it has one for
    each class.
    """

    config: ModelConfig
    state_dict: StateDict
    container: str
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    training_config: str | None = None


def load_checkpoint(
    path: Path,
    *,
    variant: str | None = None,
    config: ModelConfig | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    weights: str | None = None,
    ignore_keys: Sequence[str] = (),
    qk_scale: str | None = None,
) -> Checkpoint:
    """Read a weights file, or a hub's folder, and fit it to a model.

    Of all dictionaries and prefixes in the file those are taken that make a T2T-ViT. With neither
    ``variant`` nor ``config`` the variant is recognised by names and shapes. The resolution and the
    number of classes come from the file; ``image_size`` resizes the position table,
    ``num_classes`` must agree. weights: the name of a set, where the file has several; None is the
    average. ignore_keys: patterns of names to leave out. qk_scale: ``released`` or ``mmpretrain``,
    how q·k was scaled in training; None is by the file.

    Raises CheckpointError naming the first few keys that do not fit, AmbiguousVariantError where
    shapes fit several variants, ConfigError for an impossible size.
    """
    path = weights_file(path)
    content = read_tensors_file(path)
    base = config_for_variant(variant) if config is None and variant is not None else config
    configs = [base] if base is not None else [one.config for one in VARIANTS.values()]
    chosen, notes = _choose(content, weights, configs, path)
    channels = _channels(chosen, configs[0])
    if chosen.module is not None:
        notes.append(f"the weights of a whole {chosen.module} were read; its code was not run")
    elif content.skipped:
        notes.append(f"left unread beside the weights: {shown(content.skipped)}")
    without_ignored(chosen, ignore_keys, path)
    fold(chosen, path)
    backbone = any(not _lacking(chosen, one) for one in configs)
    classes = _num_classes(chosen, path, backbone=backbone)
    if num_classes is not None and num_classes != classes:
        has = counted(classes, "class") if classes else "no classifier"
        raise CheckpointError(
            f"{path} has {has} and {num_classes} were asked for; a "
            "classifier cannot be resized: leave out the number of classes, or fine-tune first"
        )
    if base is None:
        base = config_for_variant(recognise_variant(chosen, path))
    base = base.with_(in_chans=channels, head_norm="head_norm.weight" in chosen.tensors)
    if channels != 3:
        notes.append(f"the model takes pictures of {counted(channels, 'channel')}")
    base = base.with_(num_classes=classes) if classes else base.headless(ModelOutput.EMBEDDING)
    leave_out(chosen, weight_shapes(base))
    _check_floats(chosen, path)
    size, assumed = _stored_size(chosen, base, image_size, path, stated=config is not None)
    notes += assumed
    stored = base.with_(image_size=size)
    state_dict = _read(chosen, stored, path)
    notes += chosen.notes
    if chosen.mmpretrain or qk_scale == "mmpretrain":
        qk_scale, note = scale_of_file(content.meta, qk_scale, path)
        notes.append(note)
        if qk_scale == "mmpretrain":
            state_dict = rescaled(state_dict, stored, path)
    asked = stored.with_(image_size=image_size)
    if asked != stored:
        state_dict["pos_embed"] = resize_position(
            state_dict["pos_embed"], stored.grids()[2], asked.grids()[2]
        )
        notes.append(
            f"pos_embed resized bicubically from {stored.size_text} to {asked.size_text} px"
        )
        stored = asked
    names = class_names(content.value, classes) or class_names(config_beside(path), classes)
    text = content.meta.get("cfg", content.meta.get("config"))  # as mmengine keeps it
    training = text if isinstance(text, str) else None
    return Checkpoint(stored, state_dict, chosen.name, tuple(notes), names, training)


def load_reference(weights: Path, config: ModelConfig) -> T2TViT:
    """The reference model with weights written by `save_weights`, in evaluation mode."""
    content = read_tensors_file(weights).value
    one = WeightSet(BARE, dict(content) if isinstance(content, Mapping) else {})
    _check_floats(one, weights)
    return reference_from_state_dict(_read(one, config, weights), config)


def reference_from_state_dict(state_dict: StateDict, config: ModelConfig) -> T2TViT:
    """The reference model on given weights, not copied, in evaluation mode."""
    with torch.device("meta"):
        model = T2TViT(config)
    model.load_state_dict(state_dict, assign=True)
    return model.requires_grad_(False).eval()


def save_weights(state_dict: StateDict, path: Path) -> None:
    """Write a state dict as safetensors, the same bytes for the same weights. Raises OSError."""
    ordered = {key: state_dict[key].contiguous() for key in sorted(state_dict)}
    try:
        save_file(ordered, path)
    except SafetensorError as err:  # for a full disk too
        raise OSError(str(err)) from err


def recognise_variant(found: WeightSet, path: Path) -> str:
    """The released variant with these names and shapes; what is no layer may be beside them.

    Raises AmbiguousVariantError where several fit, CheckpointError where none does.
    """
    mismatches = {name: _mismatched_keys(found, one.config) for name, one in VARIANTS.items()}
    expected = {name: weight_shapes(one.config) for name, one in VARIANTS.items()}
    beside = {
        name: [key for key in keys if key not in expected[name] and not LAYER.match(key)]
        for name, keys in mismatches.items()
    }
    fitting = [name for name, keys in mismatches.items() if len(keys) == len(beside[name])]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AmbiguousVariantError(
            f"{path} fits the variants {' and '.join(fitting)}, whose weights have the same "
            "shapes; name one of them as variant"
        )
    nearest = min(mismatches, key=lambda name: len(mismatches[name]))
    keys = sorted(mismatches[nearest])
    raise CheckpointError(
        f"{path} fits no released variant; the nearest is {nearest}, where {len(keys)} keys "
        f"differ ({shown(keys)}): give the variant, or a config for your own dimensions"
    )


def resize_position(
    position: torch.Tensor, old: tuple[int, int], new: tuple[int, int]
) -> torch.Tensor:
    """Resample the grid part of (1, 1 + rows * columns, dim) bicubically, not the class row."""
    cls, grid = position[:, :1], position[:, 1:]
    grid = grid.transpose(1, 2).unflatten(2, old)
    grid = functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat((cls, grid.flatten(2).transpose(1, 2)), dim=1).contiguous()


def _choose(
    content: FileContent, asked: str | None, configs: Sequence[ModelConfig], path: Path
) -> tuple[WeightSet, list[str]]:
    """The set of weights to read, and the notes on the choice."""
    value = content.value
    hub = isinstance(value, Mapping) and "message_hub" in value
    swapped = hub or "mmengine_version" in content.meta

    def misfit(one: WeightSet) -> int:
        return min(len(_lacking(one, config)) for config in configs)

    sets = by_preference(weight_sets(value, path), misfit, trained_last=swapped)
    chosen = sets[0] if asked is None else named_set(sets, asked, path)
    allowed = max(misfit(chosen), len(weight_shapes(configs[0])) // 2)
    others = [one for one in sets if one is not chosen and misfit(one) <= allowed]
    if not others:
        return chosen, []
    average = asked is None and is_average(chosen.name, trained_last=swapped)
    names = ", ".join(one.name for one in others)
    notes = [
        f"of the weights in the file {chosen.name} were taken{', the average' * average}; weights "
        f"chooses another: {names}"
    ]
    for one in others:
        share = _difference(chosen, one, path)
        if share > _NOTABLE_DIFFERENCE:
            notes.append(
                f"warning: {one.name} and {chosen.name} differ by {share:.0%} of the norm of the "
                "weights; make sure that the right ones were taken"
            )
    return chosen, list(map(one_line, notes))


def _difference(one: WeightSet, other: WeightSet, path: Path) -> float:
    """The norm of the difference of two sets, in norms of the first; 0 where it is unknown."""
    shared = [key for key in one.tensors if one.shape(key) and one.shape(key) == other.shape(key)]
    if sum(math.prod(one.shape(key) or ()) for key in shared) > MAX_WEIGHTS:
        return 0.0
    difference = norm = 0.0
    for key in shared:
        a, b = (read_tensor(key, of.tensors[key], path).double() for of in (one, other))
        difference += float((a - b).square().sum())
        norm += float(a.square().sum())
    share = math.sqrt(difference / norm) if norm > 0 else 0.0
    return share if math.isfinite(share) else 0.0


def _channels(one: WeightSet, config: ModelConfig) -> int:
    """Channels of the pictures, by the width of the first windows; of the config if unknown."""
    shape = one.shape("tokens_to_token.attention1.norm1.weight")
    area = config.splits[0].kernel ** 2
    known = shape is not None and len(shape) == 1 and shape[0] > 0 and shape[0] % area == 0
    return shape[0] // area if shape is not None and known else config.in_chans


def _shapes(one: WeightSet, config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of a model that takes pictures of the set's channels."""
    return weight_shapes(config.with_(in_chans=_channels(one, config)))


def _lacking(one: WeightSet, config: ModelConfig) -> list[str]:
    """Weights of a model that a set lacks or has in another shape.

    Apart from what fine-tuning changes, and from the head, which may be of another form.
    """
    return [
        key
        for key, shape in _shapes(one, config).items()
        if key not in _HEAD and not _fits(one.shape(key), shape, key)
    ]


_HEAD_NORM = frozenset({"head_norm.weight", "head_norm.bias"})
_TUNED = {"pos_embed": (0, 2), "head.weight": (1,), "head.bias": ()}  # the axes that stay


def _fits(shape: tuple[int, ...] | None, expected: tuple[int, ...], key: str) -> bool:
    if shape is None or len(shape) != len(expected):
        return False
    axes = _TUNED.get(key, range(len(shape)))
    return all(shape[axis] == expected[axis] for axis in axes)


def _mismatched_keys(one: WeightSet, config: ModelConfig) -> set[str]:
    """Keys missing on either side or of another shape, apart from what fine-tuning changes."""
    expected = dict(_shapes(one, config))
    if "head.weight" not in one.tensors:  # a backbone alone
        expected = {key: shape for key, shape in expected.items() if key not in _HEAD}
    unknown = one.tensors.keys() - expected.keys() - _HEAD_NORM
    extra = WeightSet("", {key: one.tensors[key] for key in unknown})
    leave_out(extra, {})
    return extra.tensors.keys() | {
        k for k, shape in expected.items() if not _fits(one.shape(k), shape, k)
    }


def _check_keys(one: WeightSet, config: ModelConfig, path: Path) -> None:
    expected = weight_shapes(config)
    missing = [key for key in expected if key not in one.tensors]
    unexpected = [key for key in one.tensors if key not in expected]
    misshaped = [
        f"{key} {one.shape(key)}, expected {shape}"
        for key, shape in expected.items()
        if key in one.tensors and one.shape(key) != shape
    ]
    if not missing and not misshaped:
        refuse_extra(unexpected, config.name, path)
    faults = (
        (f"lacks {len(missing)} of {len(expected)} keys", missing, ", "),
        (f"has {len(unexpected)} unexpected keys", unexpected, ", "),
        (f"has {len(misshaped)} mis-shaped tensors", misshaped, "; "),
    )
    complaints = [f"{what} ({shown(keys, separator)})" for what, keys, separator in faults if keys]
    if complaints:
        raise CheckpointError(
            f"{path} is no {config.name}: it {', it '.join(complaints)}; give the variant the file "
            "was trained as, or leave the variant out to have it recognised"
        )


def _num_classes(one: WeightSet, path: Path, *, backbone: bool) -> int:
    """Classes by the head; 0 of a backbone alone."""
    check_tensors({key: one.tensors[key] for key in _HEAD if key in one.tensors}, path)
    head = one.shape("head.weight")
    if head is None or len(head) != 2 or head[0] < 1:
        if backbone and head is None:
            own = [key for key in one.tensors if not LAYER.match(key)]
            like = [key for key in (*own, *one.outside) if _CLASSIFIER.search(key)]
            if like:
                one.notes.append(
                    f"no classifier (head.weight) in {one.name}; {shown(like)} may be one under "
                    "another name: where it is, name it head"
                )
            return 0
        keys = shown(list(one.tensors))
        raise CheckpointError(
            f"{path} has no classifier head.weight (its keys: {keys}); expected the state dict "
            "of a T2T-ViT"
        )
    return head[0]


def _stored_size(
    one: WeightSet,
    config: ModelConfig,
    asked: int | tuple[int, int] | None,
    path: Path,
    *,
    stated: bool,
) -> tuple[int | tuple[int, int], list[str]]:
    """Image size of the position table, and a note where it was assumed.

    Positions are numbered along the tokens, so their rows and columns are not in the file: the size
    asked for where it has as many, the config's where that is ``stated`` and has, else a square.
    """
    position = one.shape("pos_embed")
    if position is None or len(position) != 3:
        return config.image_size, []  # _check_keys says what is wrong
    patches = position[1] - 1
    if asked is not None and config.with_(image_size=asked).num_patches == patches:
        return asked, []
    if stated and config.num_patches == patches:
        return config.image_size, []
    side = math.isqrt(max(patches, 0))
    stride = math.prod(split.stride for split in config.splits)
    size = side * stride
    square = side >= 1 and side * side == patches
    if square and config.with_(image_size=size).num_patches == patches:
        return size, [
            f"{patches} positions are taken as {side}x{side}, pictures of {size}x{size} pixels; "
            "where height and width differ, give image_size as HxW"
        ]
    rows = next((n for n in range(side, 1, -1) if patches % n == 0), 0)
    example = f", such as {rows * stride}x{patches // rows * stride}" if rows else ""
    raise CheckpointError(
        f"{path} has a pos_embed for {patches} tokens, which is no square grid of {config.name}; "
        f"give image_size as height x width of the training's pictures{example}"
    )


def _check_floats(one: WeightSet, path: Path) -> None:
    check_tensors(one.tensors, path)
    for key, tensor in one.tensors.items():
        if tensor.dtype not in _FLOATS:
            small = tensor.dtype.itemsize == 1
            hint = ": quantised weights; give the float checkpoint they were made from"
            raise CheckpointError(
                f"{path} has {shown([key])} as {tensor.dtype}; expected floating point of 16 bits "
                f"or more{hint if small else ''}"
            )


def _read(one: WeightSet, config: ModelConfig, path: Path) -> StateDict:
    """The weights, float32. Raises CheckpointError unless they are a model's, and finite."""
    _check_keys(one, config, path)
    found = {
        key: read_tensor(key, tensor, path).detach().to(torch.float32).contiguous()
        for key, tensor in one.tensors.items()
    }
    bad = [key for key, tensor in found.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{path} has NaN or infinity in {counted(len(bad), 'tensor')} ({shown(bad)}); the "
            "training run diverged or the file is damaged: use an earlier checkpoint"
        )
    return found
