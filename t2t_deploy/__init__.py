"""From a T2T-ViT checkpoint to a verified ONNX file, a TensorRT engine and a benchmark.

The functions are loaded on first use: importing the package loads no framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy import _forks as _forks  # its hooks are there before any fork
from t2t_deploy._optional import lazy

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
    __getattr__ = lazy(__name__, __all__, "model", "workspace", "commands", "recipe", "tuning")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
