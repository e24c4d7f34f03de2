"""The command line: parse, call the pipeline, print."""

from __future__ import annotations

from t2t_deploy.cli._main import main

__all__ = [
    "main",
]
