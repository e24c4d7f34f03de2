"""The dimensions of a T2T-ViT, also from plain values and TOML files, without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy._codec import to_plain
from t2t_deploy._untrusted import (
    MAX_CONFIG_BYTES,
    did_you_mean,
    first_line,
    read_small_file,
    shortened,
    tables_of,
)
from t2t_deploy.errors import ConfigError, shown_size


class TokensType(str, Enum):
    """Attention used inside the tokens-to-token module."""

    PERFORMER = "performer"
    TRANSFORMER = "transformer"


class Backbone(str, Enum):
    """Block design of the backbone (T2T-ViT, section 3.2)."""

    PLAIN = "plain"
    DENSE = "dense"
    SE = "se"
    GHOST = "ghost"


class ModelOutput(str, Enum):
    """What a model gives for each picture."""

    LOGITS = "logits"
    """(classes,)"""
    EMBEDDING = "embedding"
    """(head_dim,): the class token after the last norm"""
    TOKENS = "tokens"
    """(1 + N, head_dim): the class token and all others after the last norm"""
    FEATURES = "features"
    """maps (C, rows, columns): after both token blocks, and of the tokens after the last norm"""


@dataclass(frozen=True, slots=True)
class SoftSplit:
    """One soft split: overlapping square windows of a map, each flattened to a token.

    kernel, overlap and padding are in pixels of the map; neighbouring windows share
    ``overlap`` of them. Source: T2T-ViT, section 3.1, eq. 3.
    """

    kernel: int
    overlap: int
    padding: int

    def __post_init__(self) -> None:
        if not (self.kernel >= 1 and 0 <= self.overlap < self.kernel and self.padding >= 0):
            raise ConfigError(
                f"soft split has kernel {self.kernel}, overlap {self.overlap}, padding "
                f"{self.padding}; expected kernel >= 1, 0 <= overlap < kernel, padding >= 0"
            )

    @property
    def stride(self) -> int:
        """Step between windows, in pixels."""
        return self.kernel - self.overlap

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of windows on a (height, width) map.

        Raises ConfigError where the map is smaller than one window.
        """
        padded = (height + 2 * self.padding, width + 2 * self.padding)
        if min(padded) < self.kernel:
            raise ConfigError(
                f"a map of {height}x{width} padded by {self.padding} is smaller than the soft "
                f"split's window of {self.kernel}; use a larger image size"
            )
        rows, columns = ((side - self.kernel) // self.stride + 1 for side in padded)
        return rows, columns

    def num_tokens(self, height: int, width: int) -> int:
        """Number of tokens of a (height, width) map."""
        return math.prod(self.grid(height, width))


RELEASED_SPLITS = (SoftSplit(7, 3, 2), SoftSplit(3, 1, 1), SoftSplit(3, 1, 1))
SE_REDUCTION = 16
# A typo must not fill the memory; the largest released model has 64 million weights.
_MOST_WEIGHTS = 1 << 29
_MOST_PATCHES = 1 << 18
LARGEST = {
    "embed_dim": 16_384, "depth": 1_000, "num_heads": 16_384, "token_dim": 4_096,
    "image_size": 16_384, "num_classes": 1_000_000, "in_chans": 256,
}  # fmt: skip
"""The largest value of a dimension."""


_ADDED = frozenset({"in_chans", "head_norm", "output"})
"""Fields that an earlier version did not know: written where they are not the default."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Dimensions of one T2T-ViT.

    The dense backbone runs ``stages`` of layers instead of ``depth`` and widens by ``growth`` a
    layer; the other backbones leave both unset. image_size: pixels, one number where square, else
    (height, width). num_classes: 0 without a classifier, where the output is another than logits.
    head_norm: whether another LayerNorm stands before the classifier.
    """

    name: str
    tokens_type: TokensType
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    token_dim: int = 64
    backbone: Backbone = Backbone.PLAIN
    stages: tuple[int, ...] = ()
    growth: int = 0
    splits: tuple[SoftSplit, SoftSplit, SoftSplit] = RELEASED_SPLITS
    image_size: int | tuple[int, int] = 224
    num_classes: int = 1000
    in_chans: int = 3
    head_norm: bool = False
    output: ModelOutput = ModelOutput.LOGITS

    def __post_init__(self) -> None:
        if isinstance(self.image_size, tuple):
            height, width = self.image_size
            object.__setattr__(self, "image_size", height if height == width else (height, width))
        for field, largest in LARGEST.items():
            value = getattr(self, field)
            least = 0 if field == "num_classes" else 1
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, int) or isinstance(number, bool) or number < least:
                    raise ConfigError(
                        f"{field} is {shortened(value)}; expected a whole number of at least "
                        f"{least}"
                    )
                if number > largest:
                    raise ConfigError(f"{field} is {value}; expected at most {largest}")
        if (self.num_classes > 0) != (self.output is ModelOutput.LOGITS):
            raise ConfigError(
                f"num_classes is {self.num_classes} and the output {self.output.value}; logits "
                "need a class at least, and the others have none"
            )
        if self.head_norm and not self.num_classes:
            raise ConfigError("head_norm belongs to a classifier, and num_classes is 0")
        if not isinstance(self.growth, int) or not 0 <= self.growth <= LARGEST["embed_dim"]:
            raise ConfigError(
                f"growth is {shortened(self.growth)}; expected a whole number from 0 to "
                f"{LARGEST['embed_dim']}"
            )
        if any(layers < 1 for layers in self.stages):
            raise ConfigError(f"stages are {list(self.stages)}; expected at least 1 layer in each")
        if not (math.isfinite(self.mlp_ratio) and int(self.embed_dim * self.mlp_ratio) >= 1):
            raise ConfigError(
                f"mlp_ratio is {self.mlp_ratio}; expected a finite number that leaves the MLP of "
                f"embed_dim {self.embed_dim} at least one channel"
            )
        if self.tokens_type is TokensType.PERFORMER and self.token_dim % 2:
            raise ConfigError(
                f"token_dim is {self.token_dim}; the performer has token_dim / 2 random features: "
                "use an even width"
            )
        if (self.backbone is Backbone.DENSE) != bool(self.stages):
            raise ConfigError("stages belong to the dense backbone, and it needs them")
        if self.backbone is Backbone.DENSE and sum(self.stages) != self.depth:
            raise ConfigError(
                f"depth is {self.depth} and the dense stages are {list(self.stages)}; expected "
                "depth to be their sum"
            )
        if (self.backbone is Backbone.DENSE) != (self.growth > 0):
            raise ConfigError(
                f"growth is {self.growth}; the dense backbone needs at least 1, the others 0"
            )
        if self.backbone is Backbone.GHOST and (self.embed_dim % 2 or self.mlp_ratio != 3):
            raise ConfigError(
                f"the ghost backbone has embed_dim {self.embed_dim} and mlp_ratio "
                f"{self.mlp_ratio}; expected an even width and ratio 3"
            )
        for width in self.block_widths():
            if width % self.num_heads:
                raise ConfigError(
                    f"a block of width {width} does not divide into {self.num_heads} heads; "
                    "change embed_dim or num_heads"
                )
        mlp = 4 + 2 * self.mlp_ratio
        weights = sum(mlp * width * width for width in self.block_widths())
        weights += self.num_classes * self.head_dim
        if weights > _MOST_WEIGHTS:
            raise ConfigError(
                f"a model of these dimensions has about {weights:.2g} weights; expected at most "
                f"{_MOST_WEIGHTS:.2g}: reduce embed_dim, depth or num_classes"
            )
        if self.num_patches > _MOST_PATCHES:
            raise ConfigError(
                f"image size {self.size_text} gives {self.num_patches} tokens; expected at most "
                f"{_MOST_PATCHES}: reduce image_size, or give the splits less overlap"
            )

    def grids(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(rows, columns) of tokens after each soft split.

        Raises ConfigError unless the image size lies on the model's grid.
        """
        stride = math.prod(split.stride for split in self.splits)
        for side in self.image_hw:
            if side % stride:
                below = side // stride * stride
                near = [str(size) for size in (below, below + stride) if size]
                raise ConfigError(
                    f"image size is {self.size_text}; expected a multiple of {stride}, such as "
                    f"{' or '.join(near)}"
                )
        first = self.splits[0].grid(*self.image_hw)
        second = self.splits[1].grid(*first)
        return first, second, self.splits[2].grid(*second)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        size = self.image_size
        return size if isinstance(size, tuple) else (size, size)

    @property
    def size_text(self) -> str:
        """The image size for messages and file names: 224, or 128x256 (height x width)."""
        return shown_size(self.image_size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a prepared picture."""
        return (self.in_chans, *self.image_hw)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name of each output -> its shape for one picture."""
        if self.output is not ModelOutput.FEATURES:
            shape = {
                ModelOutput.LOGITS: (self.num_classes,),
                ModelOutput.EMBEDDING: (self.head_dim,),
                ModelOutput.TOKENS: (1 + self.num_patches, self.head_dim),
            }[self.output]
            return {self.output.value: shape}
        channels = (self.token_dim, self.token_dim, self.head_dim)
        found: dict[str, tuple[int, ...]] = {}
        stride = 1
        for split, depth, grid in zip(self.splits, channels, self.grids(), strict=True):
            stride *= split.stride
            found[f"features_s{stride}"] = (depth, *grid)
        return found

    @property
    def num_patches(self) -> int:
        """Tokens that enter the backbone, without the class token."""
        return math.prod(self.grids()[2])

    def block_widths(self) -> list[int]:
        """Width of each backbone layer."""
        if self.backbone is not Backbone.DENSE:
            return [self.embed_dim] * self.depth
        widths: list[int] = []
        width = self.embed_dim
        for index, layers in enumerate(self.stages):
            if index:
                width //= 2
            widths += [width + layer * self.growth for layer in range(layers)]
            width += layers * self.growth
        return widths

    @property
    def head_dim(self) -> int:
        """Width of the final norm and of the classifier's input."""
        return self.block_widths()[-1] + self.growth

    def with_(
        self,
        *,
        image_size: int | tuple[int, int] | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        head_norm: bool | None = None,
    ) -> ModelConfig:
        """The same model with other sizes or another head; None keeps."""
        return dataclasses.replace(
            self,
            image_size=self.image_size if image_size is None else image_size,
            num_classes=self.num_classes if num_classes is None else num_classes,
            in_chans=self.in_chans if in_chans is None else in_chans,
            head_norm=self.head_norm if head_norm is None else head_norm,
        )

    def headless(self, output: ModelOutput) -> ModelConfig:
        """The same model without its classifier, with another output."""
        return dataclasses.replace(self, num_classes=0, head_norm=False, output=output)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `config_from_dict` reads it back."""
        splits = [[split.kernel, split.overlap, split.padding] for split in self.splits]
        values: dict[str, Any] = to_plain(self) | {"splits": splits}
        for field in dataclasses.fields(self):
            if field.name in _ADDED and getattr(self, field.name) == field.default:
                del values[field.name]
        return values


def config_from_dict(values: Mapping[str, Any], source: str = "model description") -> ModelConfig:
    """Build a config from plain values, as in TOML or a manifest.

    Raises ConfigError for an unknown key (with the nearest known one), a missing key or a value of
    the wrong type.
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
    try:
        read = {key: _READERS[key](v) if key in _READERS else v for key, v in values.items()}
        return ModelConfig(**read)
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


def _splits(values: Any) -> tuple[SoftSplit, ...]:
    splits = tuple(SoftSplit(*_whole_numbers(split)) for split in values)
    if len(splits) != 3:
        raise ValueError(f"it has {len(splits)} splits; expected 3")
    return splits


def _size(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    sides = _whole_numbers(value)
    if len(sides) != 2:
        raise ValueError(f"image_size is {shortened(value)}; expected one number or two")
    return sides


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{shortened(value)} is neither true nor false")
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "image_size": _size,
    "head_norm": _flag,
    "output": ModelOutput,
    "name": str,
    "tokens_type": TokensType,
    "mlp_ratio": _number,
    "backbone": Backbone,
    "stages": _whole_numbers,
    "splits": _splits,
}


def config_from_toml(path: Path) -> ModelConfig:
    """Read a model description; ``name`` defaults to the file's stem.

    Raises ConfigError where the file is absent, not TOML or not a model.
    """
    try:
        values = tables_of(read_small_file(path, MAX_CONFIG_BYTES))
    except OSError as err:
        raise ConfigError(f"cannot read {path}: {err.strerror}; give a TOML file") from err
    except ValueError as err:
        raise ConfigError(f"{path} is not valid TOML: {first_line(err)}") from err
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it nests too deep") from None
    return config_from_dict({"name": path.stem, **values}, source=str(path))
