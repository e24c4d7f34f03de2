"""From a T2T-ViT checkpoint to a verified ONNX file, a TensorRT engine and a benchmark.

The functions are loaded on first use: importing the package loads no framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from t2t_deploy import _forks as _forks  # its hooks are there before any fork

__version__ = "0.1.0"

if TYPE_CHECKING:
    from t2t_deploy.commands import (
        benchmark,
        build_engine,
        calibrate_onnx,
        compare_exports,
        draw_features,
        evaluate_artifacts,
        examine_machine,
        export_onnx,
        inspect_artifact,
        load_session,
        package_artifact,
        predict_across,
        predict_images,
        quantize_onnx,
        verify_artifacts,
    )
    from t2t_deploy.model import VARIANTS
    from t2t_deploy.recipe import run_recipe
    from t2t_deploy.tuning import tune
    from t2t_deploy.workspace import Artifact, Workspace

__all__ = [
    "VARIANTS",
    "Artifact",
    "Workspace",
    "__version__",
    "benchmark",
    "build_engine",
    "calibrate_onnx",
    "compare_exports",
    "draw_features",
    "evaluate_artifacts",
    "examine_machine",
    "export_onnx",
    "inspect_artifact",
    "load_session",
    "package_artifact",
    "predict_across",
    "predict_images",
    "quantize_onnx",
    "run_recipe",
    "tune",
    "verify_artifacts",
]


if not TYPE_CHECKING:  # with it, any name would be right

    def __getattr__(name: str) -> Any:
        for home in (
            ("model", "workspace", "commands", "recipe", "tuning") if name in __all__ else ()
        ):
            value = getattr(importlib.import_module(f"t2t_deploy.{home}"), name, None)
            if value is not None:
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
