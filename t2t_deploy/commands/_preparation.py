"""How pictures were prepared in training: by options, by files beside the weights, by default."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from t2t_deploy._options import NUMBER, PATH, AnyPath, Kind, Opt, Role, choice, number
from t2t_deploy._preparation import PRESETS, USUAL, Interpolation, Preparation, Resize
from t2t_deploy.pictures import (
    preparation_beside,
    preparation_from_file,
    preparation_from_mmpretrain,
    remark_on_mmpretrain,
)


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError
    return tuple(float(NUMBER.read(one)) for one in value)


def _above_zero(value: Any) -> tuple[float, ...]:
    numbers = _numbers(value)
    if min(numbers) <= 0:
        raise ValueError
    return numbers


_NUMBERS = Kind(
    "a number for each channel",
    _numbers,
    lambda text: [float(word) for word in text.split(",")],
    "A,B,C",
    word=lambda numbers: ",".join(f"{number:g}" for number in numbers),
)
_DEVIATIONS = replace(_NUMBERS, expected="a number above 0 for each channel", read=_above_zero)
_SHARE = number("a number above 0, at most 1", lambda share: 0 < share <= 1)
# of the table [model] in a recipe
_of_pictures = functools.partial(Opt, recipe="model", later=True)


def _preset_or_file(value: Any) -> str | Path:
    """A word stays a word: only a file's name is relative to a recipe."""
    path = PATH.read(value)
    return str(path) if str(path) in PRESETS else cast(Path, path)


_PRESET_OR_FILE = replace(PATH, expected="a preset or a path, as text", read=_preset_or_file)

Mean = Annotated[
    tuple[float, ...] | list[float] | None,
    _of_pictures("Mean of each channel, of values from 0 to 1.", _NUMBERS),
]
Std = Annotated[
    tuple[float, ...] | list[float] | None,
    _of_pictures("Deviation of each channel, likewise.", _DEVIATIONS),
]
CropFraction = Annotated[
    float | None,
    _of_pictures("The model's side over the resized picture's; default 0.9.", _SHARE),
]
ResizeRule = Annotated[
    str | Resize | None,
    _of_pictures(
        "The shorter side in proportion, both sides, or none; the last two do not crop.",
        choice(of=Resize),
    ),
]
InterpolationName = Annotated[
    str | Interpolation | None,
    _of_pictures("Between pixels; default bicubic.", choice(of=Interpolation)),
]
PreparationName = Annotated[
    AnyPath | None,
    _of_pictures(
        "How pictures were prepared in training: imagenet, cifar, inception, or a file (.toml, "
        "timm's or transformers' .json, mmpretrain's .py).",
        _PRESET_OR_FILE,
        Role.READS,
        metavar="NAME|FILE",
    ),
]


@dataclass(frozen=True, slots=True)
class ChosenPreparation:
    """A preparation and what it was taken from, in words."""

    preparation: Preparation
    source: str

    def to_details(self) -> dict[str, Any]:
        """Their entries in a manifest's details."""
        return {"preparation": self.preparation.to_dict(), "preparation_source": self.source}


def choose_preparation(
    name: AnyPath | None,
    options: dict[str, Any],
    *,
    weights: Path | None,
    trained_with: str | None,
    channels: int,
    size: tuple[int, int],
) -> ChosenPreparation:
    """Options first, then what stands beside or in the weights, then the released models'.

    name: of a preset or a file. options: single values that replace those of the rest; None is not
    given. trained_with: mmengine's configuration in the weights' file. channels, size: of the
    model's input.
    Raises UsageError for values that do not fit the model.
    """
    given = {key: value for key, value in options.items() if value is not None}
    if name is not None and str(name) in PRESETS:
        found, source = PRESETS[str(name)], str(name)
    elif name is not None:
        found, source = preparation_from_file(Path(name), channels), Path(name).name
    else:
        found, source = _as_trained(weights, trained_with, channels)
    if given:
        found = found.in_unit_values()  # which mean and std of the options are of
        found = found.changed(given, channels=channels)
        words = "options" if source.startswith("default") else f"{source}, and options"
        source = f"{words} ({', '.join(sorted(given))})"
    return ChosenPreparation(found.fitted(channels, size), source)


def _as_trained(
    weights: Path | None, trained_with: str | None, channels: int
) -> tuple[Preparation, str]:
    """What stands in or beside the weights, else the released models'; and which it was."""
    source = "default"
    try:
        own = trained_with and preparation_from_mmpretrain(trained_with, channels)
        if trained_with and own:
            return own, f"the checkpoint's meta{remark_on_mmpretrain(trained_with)}"
    except ValueError:
        source = "default, since the configuration in the checkpoint's meta cannot be read"
    beside = None if weights is None else preparation_beside(weights, channels)
    return (USUAL, source) if beside is None else beside
