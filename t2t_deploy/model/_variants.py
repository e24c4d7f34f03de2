"""The released models: their dimensions and published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2t_deploy._untrusted import did_you_mean, shortened
from t2t_deploy.errors import ConfigError
from t2t_deploy.model._config import Backbone, ModelConfig, TokensType


@dataclass(frozen=True, slots=True)
class Published:
    """Figures from the authors' page for one variant; None where there is none.

    top1 in percent on ImageNet at 224 px, macs_g in 10^9 multiply-adds for one image.
    """

    top1: float | None = None
    macs_g: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Variant:
    """A released model: its dimensions, number of parameters and published figures."""

    config: ModelConfig
    params: int
    published: Published

    @property
    def name(self) -> str:
        return self.config.name


def _variant(
    name: str,
    dims: tuple[int, int, int, float],
    params: int,
    published: Published = Published(),
    *,
    tokens_type: TokensType = TokensType.PERFORMER,
    **others: Any,
) -> Variant:
    return Variant(ModelConfig(name, tokens_type, *dims, **others), params, published)


_TRANSFORMER = TokensType.TRANSFORMER
# Source: the authors' released code with its model page, and the paper (ICCV 2021).
VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        _variant("7", (256, 7, 4, 2.0), 4_310_222, Published(71.7, 1.1)),
        _variant("10", (256, 10, 4, 2.0), 5_889_230, Published(75.2, 1.5)),
        _variant("12", (256, 12, 4, 2.0), 6_941_902, Published(76.5, 1.8)),
        _variant("14", (384, 14, 6, 3.0), 21_545_550, Published(81.5, 4.8, "83.3 at 384 px")),
        _variant("19", (448, 19, 7, 3.0), 39_177_422, Published(81.9, 8.5)),
        _variant(
            "24", (512, 24, 8, 3.0), 64_105_934, Published(82.3, 13.8, "84.2 with token labelling")
        ),
        _variant(
            "t_14", (384, 14, 6, 3.0), 21_541_070, Published(81.7, 6.1), tokens_type=_TRANSFORMER
        ),
        _variant(
            "t_19", (448, 19, 7, 3.0), 39_172_942, Published(82.4, 9.8), tokens_type=_TRANSFORMER
        ),
        _variant(
            "t_24", (512, 24, 8, 3.0), 64_101_454, Published(82.6, 15.0), tokens_type=_TRANSFORMER
        ),
        _variant("14_resnext", (384, 14, 32, 3.0), 21_545_550),
        _variant("14_wide", (768, 4, 12, 3.0), 25_156_302),
        _variant(
            "dense",
            (128, 19, 8, 2.0),
            23_647_062,
            backbone=Backbone.DENSE,
            stages=(3, 6, 6, 4),
            growth=64,
        ),
        _variant("14_se", (384, 14, 6, 3.0), 21_803_598, backbone=Backbone.SE),
        _variant("16_ghost", (384, 16, 6, 3.0), 16_253_262, backbone=Backbone.GHOST),
    )
}


def config_for_variant(name: str) -> ModelConfig:
    """Dimensions of a released variant at 224 px and 1000 classes.

    Raises ConfigError naming the nearest variant.
    """
    if name in VARIANTS:
        return VARIANTS[name].config
    near = did_you_mean(name, VARIANTS)
    hint = "" if near is None else f"{near} "
    raise ConfigError(
        f"there is no variant {shortened(name)}; {hint}The family: {', '.join(VARIANTS)}"
    )
