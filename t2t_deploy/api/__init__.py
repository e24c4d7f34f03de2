"""The commands as functions: the same words, frozen results instead of printed ones.

They are imported from `t2t_deploy` itself, which loads this package when one of them is asked for.
"""

from __future__ import annotations

from t2t_deploy.api._make import (
    build_engine,
    calibrate_onnx,
    compare_exports,
    export_onnx,
    package_artifact,
    quantize_onnx,
    run_recipe,
)
from t2t_deploy.api._use import (
    benchmark,
    draw_features,
    evaluate_artifacts,
    examine_machine,
    inspect_artifact,
    load_session,
    predict_across,
    predict_images,
    verify_artifacts,
)

__all__ = [
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
    "verify_artifacts",
]
