"""The commands as functions that have not moved to `commands` yet."""

from __future__ import annotations

from t2t_deploy.api._use import (
    examine_machine,
)

__all__ = [
    "examine_machine",
]
