"""A folder of static files that classifies pictures in a browser."""

from __future__ import annotations

from t2t_deploy.serving.web._runtime import DEFAULT_FOLDER, WebRuntime, read_runtime
from t2t_deploy.serving.web._site import (
    LARGE_BYTES,
    WebModel,
    WebPage,
    browser_steps,
    page_files,
)

__all__ = [
    "DEFAULT_FOLDER",
    "LARGE_BYTES",
    "WebModel",
    "WebPage",
    "WebRuntime",
    "browser_steps",
    "page_files",
    "read_runtime",
]
