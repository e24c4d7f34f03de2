"""A model's dimensions from plain values, as TOML files and manifests hold them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2t_deploy._untrusted import (
    MAX_CONFIG_BYTES,
    did_you_mean,
    first_line,
    read_small_file,
    shortened,
)
from t2t_deploy.errors import ConfigError
from t2t_deploy.model._config import LARGEST, Backbone, ModelConfig, SoftSplit, TokensType

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def config_from_dict(values: Mapping[str, Any], source: str = "model description") -> ModelConfig:
    """Build a config from plain values, as in TOML or a manifest.

    Raises ConfigError for an unknown key (the nearest known one is named), a missing key or a
    value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(ModelConfig)}
    for key in values:
        if key not in fields:
            hint = did_you_mean(str(key), fields) or f"known keys: {', '.join(fields)}"
            raise ConfigError(f"{source} has the unknown key {shortened(key)}; {hint}")
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}; add them")
    converted = dict(values)
    try:
        converted["name"] = str(values["name"])
        converted["tokens_type"] = TokensType(values["tokens_type"])
        converted["mlp_ratio"] = _number(values["mlp_ratio"])
        if "backbone" in values:
            converted["backbone"] = Backbone(values["backbone"])
        if "stages" in values:
            converted["stages"] = _whole_numbers(values["stages"])
        if "splits" in values:
            splits = tuple(SoftSplit(*_whole_numbers(split)) for split in values["splits"])
            if len(splits) != 3:
                raise ConfigError(f"{source} has {len(splits)} splits; expected 3")
            converted["splits"] = splits
        return ModelConfig(**converted)
    except (TypeError, ValueError, OverflowError) as err:
        raise ConfigError(f"{source}: {first_line(err)}") from err


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{shortened(value)} is no number")
    return float(value)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or any(type(value) is not int for value in values):
        raise TypeError(f"{shortened(values)} is no list of whole numbers")
    if len(values) > LARGEST["depth"] or any(abs(v) > LARGEST["image_size"] for v in values):
        raise ValueError(f"{shortened(values)} is more than any model has")
    return tuple(values)


def config_from_toml(path: Path) -> ModelConfig:
    """Read a model description; ``name`` defaults to the file's stem.

    Raises ConfigError where the file is absent, not TOML or not a model.
    """
    try:
        values = tomllib.loads(read_small_file(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except OSError as err:
        raise ConfigError(f"cannot read {path}: {err.strerror}; give a TOML file") from err
    except ValueError as err:
        raise ConfigError(f"{path} is not valid TOML: {first_line(err)}") from err
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it nests too deep") from None
    return config_from_dict({"name": path.stem, **values}, source=str(path))
