"""Preparations in files of the training: TOML of one's own, timm, transformers, mmpretrain.

Nothing in them is run: a Python config of mmpretrain is parsed, and its literals are read.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2t_deploy._preparation import (
    PRESETS,
    USUAL,
    ColorOrder,
    Interpolation,
    Preparation,
    Resize,
)
from t2t_deploy._untrusted import (
    MAX_CONFIG_BYTES,
    did_you_mean,
    first_line,
    json_from_file,
    read_small_file,
    shortened,
    tables_of,
)
from t2t_deploy.errors import UsageError

_TIMM = "pretrained_cfg"
_MMPRETRAIN = ("data_preprocessor", "img_norm_cfg")
# Pillow's numbers of filters
_RESAMPLES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_MOST_LITERALS = 100_000
# What reading a file that others made may end in: no preparation then.
_MALFORMED = (
    *(SyntaxError, RecursionError, MemoryError),  # of the parser: nested too deep
    *(TypeError, LookupError, ArithmeticError, AttributeError),
)


def preparation_from_file(path: Path, channels: int) -> Preparation:
    """Read a preparation from .toml, .json (timm, transformers) or .py (mmpretrain).

    channels: of the model. Raises UsageError in one line.
    """
    try:
        if path.suffix == ".toml":
            return _from_toml(path, channels)
        if path.suffix == ".json":
            found = preparation_from_json(json_from_file(path, MAX_CONFIG_BYTES), channels)
        else:
            text = read_small_file(path, MAX_CONFIG_BYTES).decode("utf-8")
            found = preparation_from_mmpretrain(text, channels)
    except OSError as err:
        raise UsageError(
            f"cannot read {path}: {err.strerror or err}; correct the path, or give one of "
            f"{', '.join(PRESETS)}"
        ) from err
    except ValueError as err:
        raise UsageError(f"{path} is no readable preparation ({first_line(err)})") from err
    if found is None:
        raise UsageError(
            f"{path} says nothing of how pictures are prepared; expected timm's pretrained_cfg, "
            "transformers' image_mean, mmpretrain's data_preprocessor, or a TOML file of its own"
        )
    return found


def preparation_beside(weights: Path, channels: int) -> tuple[Preparation, str] | None:
    """The preparation that a file beside weights says, and which; None where none does.

    weights: a file, or a folder with one. Raises UsageError for a file that says something that
    cannot be done here.
    """
    folder = weights if weights.is_dir() else weights.parent
    for name in ("preprocessor_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            try:
                values = json_from_file(path, MAX_CONFIG_BYTES)
            except (OSError, ValueError):
                continue  # of something else: only a file that is named must be one
            try:
                found = preparation_from_json(values, channels)
            except ValueError as err:
                raise _unreadable(path, err) from err
            if found is not None:
                return found, path.name
    configs = sorted(folder.glob("*.py"))
    if len(configs) != 1:
        return None
    try:
        text = read_small_file(configs[0], MAX_CONFIG_BYTES).decode("utf-8")
    except (OSError, ValueError):
        return None
    if not any(word in text for word in _MMPRETRAIN):
        return None  # a program
    try:
        found = preparation_from_mmpretrain(text, channels)
    except ValueError as err:
        raise _unreadable(configs[0], err) from err
    return None if found is None else (found, configs[0].name + remark_on_mmpretrain(text))


def _unreadable(path: Path, err: Exception) -> UsageError:
    return UsageError(
        f"{path} says how pictures are prepared in a form that cannot be read "
        f"({first_line(err)}); give the preparation by options or another file"
    )


def _from_toml(path: Path, channels: int) -> Preparation:
    values = tables_of(read_small_file(path, MAX_CONFIG_BYTES))
    preset = values.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"{path} has the preset {preset!r}; expected {', '.join(PRESETS)}")
    known = USUAL.to_dict()
    for key in values:
        if key not in known:
            hint = did_you_mean(key, known) or f"known keys: preset, {', '.join(known)}"
            raise UsageError(f"{path} has the unknown key {shortened(key)}; {hint}")
    base = PRESETS["imagenet" if preset is None else preset]
    return base.changed(values, channels=channels)


def preparation_from_json(values: Any, channels: int) -> Preparation | None:
    """Of timm's config.json or transformers' preprocessor_config.json; None of others.

    Raises UsageError for a way of preparing that is not known here, ValueError for other types of
    values.
    """
    try:
        return _from_json(values, channels)
    except _MALFORMED as err:
        raise ValueError(first_line(err)) from err


def _from_json(values: Any, channels: int) -> Preparation | None:
    if not isinstance(values, Mapping):
        return None
    timm = values.get(_TIMM, values)
    if isinstance(timm, Mapping) and {"mean", "std"} <= timm.keys():
        mode = timm.get("crop_mode", "center")
        if mode not in ("center", "squash"):
            raise UsageError(
                f"timm's crop_mode {mode!r} is not known here; expected center, squash"
            )
        return Preparation(
            resize=Resize.SQUASH if mode == "squash" else Resize.SHORTER,
            crop_fraction=timm.get("crop_pct", 0.875),
            interpolation=timm.get("interpolation", "bilinear"),
            mean=timm["mean"],
            std=timm["std"],
            channels=channels,
        )
    if "image_mean" not in values or "image_std" not in values:
        return None
    size, cropped = values.get("size"), values.get("do_center_crop") and values.get("crop_size")
    side = size.get("shortest_edge") if isinstance(size, Mapping) else size
    resize = Resize.SQUASH if side is None else Resize.SHORTER
    if not values.get("do_resize", True):
        resize, side = Resize.NONE, None
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    return Preparation(
        resize=resize,
        crop_fraction=1.0 if resize is Resize.NONE and cropped else None,
        resize_to=side,
        interpolation=_RESAMPLES.get(values.get("resample", 2), values.get("resample")),  # type: ignore[arg-type]
        mean=values["image_mean"],
        std=values["image_std"],
        scale=round(1 / factor, 6),  # 1 / 255 as text is not exactly that
        channels=channels,
    )


def preparation_from_mmpretrain(config: str, channels: int) -> Preparation | None:
    """Of a config in Python, as beside mmpretrain's weights or in them; None where it says nothing.

    Mean and std are of values from 0 to 255 there, and pictures BGR unless ``to_rgb``. Raises
    UsageError for values that fit no picture, ValueError for a text that is no such config.
    """
    if len(config) > MAX_CONFIG_BYTES:
        raise ValueError(f"longer than {MAX_CONFIG_BYTES:,} characters")
    try:
        return _from_mmpretrain(ast.parse(config), channels)
    except _MALFORMED as err:
        raise ValueError(first_line(err)) from err


def remark_on_mmpretrain(config: str) -> str:
    """What is not the same here as with a config, to follow its name; empty where all is."""
    if "test_pipeline" not in config or "pillow" in config:
        return ""
    return ", where OpenCV resized, without the antialiasing of Pillow"


def _from_mmpretrain(tree: ast.Module, channels: int) -> Preparation | None:
    reader = _Literals()
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            reader.assign(statement.targets[0].id, statement.value)
    known = reader.known
    model = known.get("model")
    own = model.get("data_preprocessor") if isinstance(model, Mapping) else None
    norm = known.get("data_preprocessor") or own or known.get("img_norm_cfg")
    if not isinstance(norm, Mapping) or not {"mean", "std"} <= norm.keys():
        return None
    # mmcls 0.x turns to RGB unless told, mmengine does where told
    rgb = norm.get("to_rgb", norm is known.get("img_norm_cfg"))
    return Preparation(
        mean=tuple(value / 255 for value in norm["mean"]),
        std=tuple(value / 255 for value in norm["std"]),
        color=ColorOrder.RGB if rgb or channels != 3 else ColorOrder.BGR,
        channels=channels,
        **_pipeline(known),
    )


def _pipeline(known: Mapping[str, Any]) -> dict[str, Any]:
    """Resizing and cropping of a test pipeline; nothing without one, as of a config's base."""
    steps = known.get("test_pipeline")
    if not isinstance(steps, Sequence):
        return {}
    found: dict[str, Any] = {"resize": Resize.NONE, "crop_fraction": None}
    for step in steps:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind in ("ResizeEdge", "Resize"):
            scale = step.get("scale", step.get("size"))
            found["interpolation"] = step.get("interpolation", Interpolation.BILINEAR)
            squash = kind == "Resize" and isinstance(scale, (list, tuple)) and -1 not in scale
            squash = squash and not step.get("keep_ratio")
            found["resize"] = Resize.SQUASH if squash else Resize.SHORTER
            side = scale[0] if isinstance(scale, (list, tuple)) else scale
            found |= {} if squash else {"resize_to": side}
        elif kind == "CenterCrop" and found["resize"] is Resize.NONE:
            found["crop_fraction"] = 1.0
    return found


class _Literals:
    """Values of literals, of dict(...) with keywords, and of names assigned before; others None.

    ``known`` has a value for each name. Raises ValueError for more than any config has, where a few
    lines that name each other double their values again and again.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._read = 0

    def assign(self, name: str, node: ast.expr) -> None:
        """Read ``name = node``."""
        before = self._read
        self.known[name] = self._value(node)
        self._sizes[name] = self._read - before

    def _value(self, node: ast.expr) -> Any:
        self._read += self._sizes.get(node.id, 1) if isinstance(node, ast.Name) else 1
        if self._read > _MOST_LITERALS:
            raise ValueError(f"more than {_MOST_LITERALS:,} values")
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, (ast.List, ast.Tuple)):
            return [self._value(one) for one in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand)
            return -value if isinstance(value, (int, float)) else None
        if isinstance(node, ast.Dict):
            return {
                key.value: self._value(value)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "dict":
            return {word.arg: self._value(word.value) for word in node.keywords if word.arg}
        return None
