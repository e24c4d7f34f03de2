"""The weights of a T2T-ViT in a file, found by fit, whatever they are wrapped in."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from t2t_deploy.errors import CheckpointError, counted, one_line
from t2t_deploy.model._checkpoint_file import check_tensors
from t2t_deploy.model._mmpretrain import head_keys, is_mmpretrain, released_key
from t2t_deploy.model._unpickle import Skipped, StoredTensor, module_tensors

_SHOWN_KEYS = 3
_SHOWN_LENGTH = 160
_DEEPEST = 5
BARE = "file"
"""The name of the weights of a file that has nothing around them."""

# where a T2T-ViT begins: what stands before one of these is the prefix of its names
_ANCHORS = ("cls_token", "pos_embed", "tokens_to_token.project.weight")
# modules around a part of a model, which leave its function as it is
_INNER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_AVERAGE = re.compile(r"(^|[._])(ema|avg|average|averaged|swa|teacher)([._]|$)")
# of an optimiser and the like, with the names of the weights
_NO_WEIGHTS = re.compile(
    r"(^|[._])(exp_avg\w*|max_exp_avg\w*|momentum\w*|optim\w*|grad\w*|fisher)([._]|$)"
)
# by preference, after an average
_USUAL = (
    "state_dict", "net", "model", "model_state_dict", "module", "params", "student", "network",
    "weights",
)  # fmt: skip

_LORA = re.compile(r"(^|\.)(lora_|adapter|hada_|ia3_|lokr_)|\.base_layer\.")
_QUANTISED = re.compile(
    r"(_packed_params|\.zero_point|\.qweight|\.qzeros|\.absmax|\.quant_map|\.SCB|\.weight_scale|"
    r"\.weight_format|quant_state\.\w+)$|_packed_params\."
)
_FACTORS = re.compile(
    r"(weight_[guv]|\.parametrizations\.\w+\.(original\d*|\d+\.\w+)|\.[UV]|_svd|\.weight_[ab])$"
)
_DISTILLED = re.compile(r"^(dist_token|head_dist\.|distillation)")
_AUXILIARY = re.compile(r"^(aux|head_|\w+_head\.|\w*aux\w*\.)")
_AMAX = re.compile(r"(^|[._])amax$")
LAYER = re.compile(r"^(blocks|tokens_to_token)\.")


@dataclass(slots=True)
class WeightSet:
    """The weights of one model in a file.

    name: in the file. prefix: of its names. tensors: by released names; what is none is `Skipped`.
    outside: tensors beside it in its dictionary. mmpretrain: whether the names were that library's.
    module: the class of a whole module that held it. notes: changes, one line each.
    """

    name: str
    tensors: dict[str, Any]
    prefix: str = ""
    outside: list[str] = field(default_factory=list)
    mmpretrain: bool = False
    module: str | None = None
    notes: list[str] = field(default_factory=list)

    def shape(self, key: str) -> tuple[int, ...] | None:
        """Of a weight; None without it."""
        value = self.tensors.get(key)
        return tuple(value.shape) if isinstance(value, (torch.Tensor, StoredTensor)) else None


def shown(keys: Sequence[Any], separator: str = ", ") -> str:
    """The first few names of a file, which may be anything, on one line."""
    first = separator.join(one_line(str(key)[:_SHOWN_LENGTH]) for key in keys[:_SHOWN_KEYS])
    return first + (separator + "..." if len(keys) > _SHOWN_KEYS else "")


def weight_sets(content: Any, path: Path) -> list[WeightSet]:
    """All sets of weights in a file, in its order. Raises CheckpointError where there is none."""
    found: list[WeightSet] = []
    largest: tuple[str, dict[str, Any]] = (BARE, {})
    for name, tensors, module in _dictionaries(content):
        if len(tensors) > len(largest[1]):
            largest = name, tensors
        plain = {_INNER.sub("", key): value for key, value in tensors.items()}
        plain = plain if len(plain) == len(tensors) else tensors
        ends = [
            (key, anchor)
            for key in plain
            for anchor in _ANCHORS
            if f".{key}".endswith(f".{anchor}")
        ]
        prefixes = list(dict.fromkeys(key.removesuffix(anchor) for key, anchor in ends))
        for prefix in prefixes:
            one = _set_of(name, plain, prefix, prefixes)
            one.module = module
            found.append(one)
    if found:
        return found
    name, tensors = largest
    if not tensors:
        if not isinstance(content, Mapping):
            kind = content.kind if isinstance(content, Skipped) else type(content).__name__
            raise CheckpointError(
                f"{path} holds a {one_line(kind[:_SHOWN_LENGTH])}; expected a dictionary of "
                "tensors: save the model's state_dict()"
            )
        filled = [key for key, value in content.items() if not isinstance(value, Mapping) or value]
        raise CheckpointError(
            f"{path} holds {shown(filled) or 'nothing'}; expected tensors, or a dictionary with "
            "state_dict_ema, state_dict, model or net: save the model's state_dict()"
        )
    check_tensors(tensors, path)
    return [WeightSet(name, tensors)]


def by_preference(
    sets: Sequence[WeightSet], misfit: Callable[[WeightSet], int], *, trained_last: bool = False
) -> list[WeightSet]:
    """The sets, the best fitting first; of those that fit alike an average, as released.

    trained_last: whether ``ema_state_dict`` is the trained one, as mmengine swaps them.
    """

    def rank(item: tuple[int, WeightSet]) -> tuple[bool, int, bool, int, int]:
        index, one = item
        parts = one.name.split(".")
        usual = min((_USUAL.index(part) for part in parts if part in _USUAL), default=len(_USUAL))
        beside = _NO_WEIGHTS.search(one.name) is not None
        return (
            beside,
            misfit(one),
            not is_average(one.name, trained_last=trained_last),
            usual,
            index,
        )

    return [one for _, one in sorted(enumerate(sets), key=rank)]


def is_average(name: str, *, trained_last: bool = False) -> bool:
    """Whether a set's name says that it is an average of others."""
    if trained_last:
        return name == "state_dict"
    return _AVERAGE.search(name) is not None


def named_set(sets: Sequence[WeightSet], name: str, path: Path) -> WeightSet:
    """The set of a name, or of the only name that has it as a part. Raises CheckpointError."""
    for found in (
        [one for one in sets if one.name == name],
        [one for one in sets if name in one.name.split(".")],
    ):
        if len(found) == 1:
            return found[0]
    names = " and ".join(one.name for one in sets)
    raise CheckpointError(f"{path} has no weights {name!r}; it has {one_line(names)}: give one")


def without_ignored(one: WeightSet, patterns: Sequence[str], path: Path) -> None:
    """Leave out what the caller ignores. Raises CheckpointError for a pattern that fits nothing."""
    for pattern in patterns:
        gone = [
            key
            for key in one.tensors
            if any(fnmatch.fnmatchcase(name, pattern) for name in (key, one.prefix + key))
        ]
        outside = [key for key in one.outside if fnmatch.fnmatchcase(key, pattern)]
        if not gone and not outside:
            raise CheckpointError(
                f"{path} has no name that fits ignore_keys {pattern!r}; leave it out, or give one "
                f"such as {shown([key for key in one.tensors if not LAYER.match(key)][-1:])!r}"
            )
        for key in gone:
            del one.tensors[key]
        one.outside = [key for key in one.outside if key not in outside]
        one.notes.append(f"left out, as asked: {shown(gone + outside)}")


def fold(one: WeightSet, path: Path) -> None:
    """Bring a set into the released form where that is exact.

    A head of one layer is renamed, a missing bias of it is zero. Raises CheckpointError for weights
    that are stored in another form, by its name.
    """
    distilled = [key for key in one.tensors if _DISTILLED.match(key)]
    if distilled:
        raise CheckpointError(
            f"{path} is a distilled model ({shown(distilled)}): it averages two heads and has a "
            "second token, which no T2T-ViT has; give a checkpoint trained without distillation"
        )
    for pattern, what, cure in (
        (
            _LORA,
            "adapters (LoRA) beside its weights",
            "merge them with peft's merge_and_unload() and save that state_dict()",
        ),
        (_QUANTISED, "quantised weights", "give the float checkpoint they were made from"),
        (
            _FACTORS,
            "factorised weights",
            "multiply them out first (remove_weight_norm, or parametrize.remove_parametrizations) "
            "and save that state_dict()",
        ),
    ):
        keys = [key for key in one.tensors if pattern.search(key)]
        if keys:
            raise CheckpointError(f"{path} has {what} ({shown(keys)}); {cure}")
    _rename_head(one, path)


def leave_out(one: WeightSet, expected: Mapping[str, Any]) -> None:
    """Leave out what fits no name and is no weight: counters, scalars, maxima of quantisers."""
    gone = []
    for key, value in list(one.tensors.items()):
        shape = one.shape(key)
        if key in expected:
            continue
        if shape is None:
            del one.tensors[key]  # an object, as beside the weights
        elif not value.dtype.is_floating_point or not shape or _AMAX.search(key):
            gone.append(key)
            del one.tensors[key]
    if gone:
        one.notes.append(f"left out, as no weights: {shown(gone)}")
    if one.outside:
        one.notes.append(
            f"left out, beside the model in {one.name}: {counted(len(one.outside), 'tensor')} "
            f"({shown(one.outside)})"
        )


def refuse_extra(keys: Sequence[str], name: str, path: Path) -> None:
    """Raise CheckpointError for weights that are no part of the model, by what they are."""
    if not keys or any(LAYER.match(key) for key in keys):
        return
    top = dict.fromkeys(key.partition(".")[0] + (".*" if "." in key else "") for key in keys)
    advice = " and ".join(f"ignore_keys {pattern!r}" for pattern in list(top)[:_SHOWN_KEYS])
    auxiliary = all(_AUXILIARY.match(key) for key in keys)
    what = "an auxiliary head" if auxiliary else counted(len(keys), "unexpected key")
    raise CheckpointError(
        f"{path} has {what} ({shown(keys)}) beside the weights of {name}; where its answers do not "
        f"depend on {'it' if len(keys) == 1 or auxiliary else 'them'}, {one_line(advice)} leaves "
        f"{'it' if len(keys) == 1 or auxiliary else 'them'} out"
    )


def _dictionaries(content: Any) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Name, tensors and kind of module of each dictionary of tensors, the outer ones first."""
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(_DEEPEST):
        deeper = []
        for names, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            module = module_tensors(value)
            inner = value.items if isinstance(value, Skipped) else value
            inner = inner if module is None else module
            if not isinstance(inner, Mapping):
                continue
            tensors = {key: one for key, one in inner.items() if isinstance(key, str)}
            nested = {k: v for k, v in tensors.items() if isinstance(v, Mapping)}
            objects = {k: v for k, v in tensors.items() if isinstance(v, Skipped)}
            own = {
                key: one
                for key, one in tensors.items()
                if isinstance(one, (torch.Tensor, StoredTensor, Skipped))
            }
            if len(own) > len(objects) or (objects and names):
                kind = value.kind if isinstance(value, Skipped) else None
                yield ".".join(names) or BARE, own, kind
            deeper += [((*names, key), one) for key, one in (nested | objects).items()]
        level = deeper


def _set_of(
    name: str, tensors: Mapping[str, Any], prefix: str, prefixes: Sequence[str]
) -> WeightSet:
    others = tuple(other for other in prefixes if not prefix.startswith(other))
    taken = {key for key in tensors if key.startswith(prefix) and not key.startswith(others)}
    inside = {key.removeprefix(prefix): tensors[key] for key in tensors if key in taken}
    mmpretrain = is_mmpretrain(inside)
    if mmpretrain:
        heads = head_keys(tensors, prefix)
        taken |= heads.keys()
        inside = {released_key(key): value for key, value in inside.items()}
        inside |= {new: tensors[old] for old, new in heads.items()}
    if len(prefixes) > 1:
        part = prefix.rstrip(".") or "plain"
        name = part if name == BARE else f"{name}.{part}"
    outside = [
        key
        for key, value in tensors.items()
        if key not in taken and not isinstance(value, Skipped) and not key.startswith(others)
    ]
    if prefix and "" in prefixes:  # they are another set
        outside = []
    made = WeightSet(name, inside, prefix, outside, mmpretrain)
    _apply_masks(made)
    return made


def _apply_masks(one: WeightSet) -> None:
    """Multiply pruned weights with their masks, as the model did."""
    masked = []
    for mask_key in [key for key in one.tensors if key.endswith("_mask")]:
        key = mask_key.removesuffix("_mask")
        mask, original = one.tensors[mask_key], one.tensors.get(f"{key}_orig")
        if original is None or one.shape(mask_key) != one.shape(f"{key}_orig"):
            continue
        if isinstance(original, StoredTensor) and isinstance(mask, StoredTensor):
            original.mask = mask
        else:
            original = original * mask.to(original.dtype)
        one.tensors[key] = original
        del one.tensors[mask_key], one.tensors[f"{key}_orig"]
        masked.append(key)
    if masked:
        one.notes.append(f"masks of pruning were applied: {shown(masked)}")


def _rename_norm(one: WeightSet, keys: list[str], layers: set[str], path: Path) -> None:
    """A LayerNorm before the classifier; nothing in the file tells its epsilon."""
    norm = {key.rpartition(".")[0] for key in keys}
    plain = sorted(key.rpartition(".")[2] for key in keys) == ["bias", "weight"]
    if len(norm) != 1 or not plain or any(len(one.shape(key) or ()) != 1 for key in keys):
        raise CheckpointError(
            f"{path} has more than a LayerNorm before its classifier ({shown(keys)}); expected a "
            "linear classifier, or a LayerNorm and one"
        )
    for key in keys:
        one.tensors[f"head_norm.{key.rpartition('.')[2]}"] = one.tensors.pop(key)
    one.notes.append(
        f"{shown(sorted(norm))} before the classifier {shown(sorted(layers))} is taken as a "
        "LayerNorm with epsilon 1e-5"
    )


def _rename_head(one: WeightSet, path: Path) -> None:
    head = [key for key in one.tensors if key.startswith("head.") and one.shape(key)]
    linear = [key for key in head if key.endswith(".weight") and len(one.shape(key) or ()) == 2]
    layers = {key.rpartition(".")[0] for key in linear}
    others = [key for key in head if key.rpartition(".")[0] not in layers]
    if len(linear) > 1:
        raise CheckpointError(
            f"{path} has a head of {len(linear)} layers ({shown(linear)}); expected one: only a "
            "linear classifier is exported"
        )
    if not linear:
        return
    if others:
        _rename_norm(one, others, layers, path)
    old = linear[0].removesuffix("weight")
    if old != "head.":
        for key in [key for key in one.tensors if key.startswith(old)]:
            one.tensors[f"head.{key.removeprefix(old)}"] = one.tensors.pop(key)
        one.notes.append(f"the head is the linear layer {shown([old.rstrip('.')])}")
    if "head.bias" not in one.tensors:
        one.tensors["head.bias"] = torch.zeros((one.shape("head.weight") or (0,))[0])
        one.notes.append("the head has no bias: zeros were taken")
