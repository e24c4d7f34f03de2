"""The command line: options made of signatures, results printed."""

from __future__ import annotations

from t2t_deploy.cli._main import main

__all__ = [
    "main",
]
