"""The commands as functions that have not moved to `commands` yet."""

from __future__ import annotations

from t2t_deploy.api._use import (
    draw_features,
    examine_machine,
    inspect_artifact,
)

__all__ = [
    "draw_features",
    "examine_machine",
    "inspect_artifact",
]
