"""Weights files: released checkpoints, bare state dicts and safetensors, none of them trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import functional

from t2t_deploy.errors import AmbiguousVariantError, CheckpointError, counted, one_line
from t2t_deploy.model._checkpoint_file import check_tensors, read_tensors_file
from t2t_deploy.model._config import ModelConfig
from t2t_deploy.model._random import weight_shapes
from t2t_deploy.model._t2t import T2TViT
from t2t_deploy.model._variants import VARIANTS, config_for_variant

# By preference: the published accuracy is of the moving average. The authors'
# transfer_learning.py saves the last.
_CONTAINERS = ("state_dict_ema", "state_dict", "net")
_WRAPPER = "module."
_SHOWN_KEYS = 3
_SHOWN_LENGTH = 160
_FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights that fit a model.

    state_dict: float32 tensors with the released names, ``pos_embed`` already at the config's
    resolution. container: its key in the file (``file`` for a bare state dict).
    notes: changes to the weights, one line each.
    """

    config: ModelConfig
    state_dict: StateDict
    container: str
    notes: tuple[str, ...] = ()


def load_checkpoint(
    path: Path,
    *,
    variant: str | None = None,
    config: ModelConfig | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Checkpoint:
    """Read a weights file and fit it to a model.

    With neither ``variant`` nor ``config`` the variant is recognised by names and shapes. The
    resolution and the number of classes come from the file; ``image_size`` resizes the position
    table, ``num_classes`` must agree.

    Raises CheckpointError naming the first few keys that do not fit, AmbiguousVariantError where
    shapes fit several variants, ConfigError for an impossible size.
    """
    state_dict, container = read_state_dict(path)
    classes = _num_classes(state_dict, path)
    if num_classes is not None and num_classes != classes:
        raise CheckpointError(
            f"{path} has {counted(classes, 'class')} and {num_classes} were asked for; a "
            "classifier cannot be resized: leave out the number of classes, or fine-tune first"
        )
    if config is None:
        name = variant if variant is not None else recognise_variant(state_dict, path)
        config = config_for_variant(name)
    stored = config.with_(num_classes=classes, image_size=_stored_size(state_dict, config, path))
    _check_keys(state_dict, stored, path)
    _check_finite(state_dict, path)
    notes = []
    if image_size is not None and image_size != stored.image_size:
        asked = stored.with_(image_size=image_size)
        state_dict["pos_embed"] = resize_position(
            state_dict["pos_embed"], stored.grids()[2], asked.grids()[2]
        )
        notes.append(f"pos_embed resized bicubically from {stored.image_size} to {image_size} px")
        stored = asked
    return Checkpoint(stored, state_dict, container, tuple(notes))


def load_reference(weights: Path, config: ModelConfig) -> T2TViT:
    """The reference model with weights written by `save_weights`, in evaluation mode."""
    state_dict, _ = read_state_dict(weights)
    _check_keys(state_dict, config, weights)
    _check_finite(state_dict, weights)
    return reference_from_state_dict(state_dict, config)


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


def read_state_dict(path: Path) -> tuple[StateDict, str]:
    """Tensors of a weights file in float32, and their container.

    Executes nothing in the file: torch's weights-only unpickler reads pickles.
    Raises CheckpointError.
    """
    content = read_tensors_file(path)
    container = "file"
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content, container = content[name], name
            break
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        keys = _shown(list(content)) or "nothing"
        raise CheckpointError(
            f"{path} holds {keys}; expected tensors, or a dictionary with "
            f"{', '.join(_CONTAINERS[:-1])} or {_CONTAINERS[-1]}: save the model's state_dict()"
        )
    check_tensors(content, path)
    if all(str(key).startswith(_WRAPPER) for key in content):
        content = {key[len(_WRAPPER) :]: value for key, value in content.items()}
    return {str(key): _as_float32(key, value, path) for key, value in content.items()}, container


def recognise_variant(state_dict: Mapping[str, torch.Tensor], path: Path) -> str:
    """The released variant with these names and shapes.

    Raises AmbiguousVariantError where several fit, CheckpointError where none does.
    """
    mismatches = {name: _mismatched_keys(state_dict, name) for name in VARIANTS}
    fitting = [name for name, keys in mismatches.items() if not keys]
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
        f"differ ({_shown(keys)}): give the variant, or a config for your own dimensions"
    )


def resize_position(
    position: torch.Tensor, old: tuple[int, int], new: tuple[int, int]
) -> torch.Tensor:
    """Resample the grid part of (1, 1 + rows * columns, dim) bicubically, not the class row."""
    cls, grid = position[:, :1], position[:, 1:]
    grid = grid.transpose(1, 2).unflatten(2, old)
    grid = functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat((cls, grid.flatten(2).transpose(1, 2)), dim=1).contiguous()


def _mismatched_keys(state_dict: Mapping[str, torch.Tensor], variant: str) -> set[str]:
    """Keys missing on either side or of another shape, apart from what fine-tuning changes."""
    expected = weight_shapes(VARIANTS[variant].config)
    different = expected.keys() ^ state_dict.keys()
    tuned = {"pos_embed": (0, 2), "head.weight": (1,), "head.bias": ()}  # the axes that stay
    for key in expected.keys() & state_dict.keys():
        shapes = [tuple(state_dict[key].shape), expected[key]]
        if key in tuned and len(shapes[0]) == len(shapes[1]):
            shapes = [tuple(shape[axis] for axis in tuned[key]) for shape in shapes]
        if shapes[0] != shapes[1]:
            different.add(key)
    return different


def _check_keys(state_dict: Mapping[str, torch.Tensor], config: ModelConfig, path: Path) -> None:
    expected = weight_shapes(config)
    missing = [key for key in expected if key not in state_dict]
    unexpected = [key for key in state_dict if key not in expected]
    misshaped = [
        f"{key} {tuple(state_dict[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in state_dict and tuple(state_dict[key].shape) != shape
    ]
    faults = (
        (f"lacks {len(missing)} of {len(expected)} keys", missing, ", "),
        (f"has {len(unexpected)} unexpected keys", unexpected, ", "),
        (f"has {len(misshaped)} mis-shaped tensors", misshaped, "; "),
    )
    complaints = [f"{what} ({_shown(keys, separator)})" for what, keys, separator in faults if keys]
    if complaints:
        raise CheckpointError(
            f"{path} is no {config.name}: it {', it '.join(complaints)}; give the variant the file "
            "was trained as, or leave the variant out to have it recognised"
        )


def _check_finite(state_dict: Mapping[str, torch.Tensor], path: Path) -> None:
    bad = [key for key, tensor in state_dict.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{path} has NaN or infinity in {counted(len(bad), 'tensor')} ({_shown(bad)}); the "
            "training run diverged or the file is damaged: use an earlier checkpoint"
        )


def _num_classes(state_dict: Mapping[str, torch.Tensor], path: Path) -> int:
    head = state_dict.get("head.weight")
    if head is None or head.ndim != 2 or head.shape[0] < 1:
        keys = _shown(list(state_dict))
        raise CheckpointError(
            f"{path} has no classifier head.weight (its keys: {keys}); expected the state dict "
            "of a T2T-ViT"
        )
    return int(head.shape[0])


def _stored_size(
    state_dict: Mapping[str, torch.Tensor], config: ModelConfig, path: Path
) -> int | tuple[int, int]:
    """Image size with the position table's token grid."""
    position = state_dict.get("pos_embed")
    if position is None or position.ndim != 3:
        return config.image_size  # _check_keys says what is wrong
    patches = position.shape[1] - 1
    side = math.isqrt(max(patches, 0))
    size = side * math.prod(split.stride for split in config.splits)
    if side < 1 or side * side != patches or config.with_(image_size=size).num_patches != patches:
        raise CheckpointError(
            f"{path} has a pos_embed for {patches} tokens, which is no square grid of "
            f"{config.name}; expected 1 + n*n rows, as in {1 + config.num_patches}"
        )
    return size


def _as_float32(key: Any, tensor: torch.Tensor, path: Path) -> torch.Tensor:
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{path} has {_shown([key])} as {tensor.dtype}; expected floating point of 16 bits or "
            "more"
        )
    return tensor.detach().to(torch.float32).contiguous()


def _shown(keys: list[Any], separator: str = ", ") -> str:
    # names in a file may be anything
    shown = separator.join(one_line(str(key)[:_SHOWN_LENGTH]) for key in keys[:_SHOWN_KEYS])
    return shown + (separator + "..." if len(keys) > _SHOWN_KEYS else "")
