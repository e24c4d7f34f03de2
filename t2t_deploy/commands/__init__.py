"""The commands: what each does, one file a command, without the command line."""

from __future__ import annotations

from t2t_deploy.commands._artifacts import artifact_values, workspace_of
from t2t_deploy.commands._bench import Bench, DocumentedBench, benchmark, check_streams
from t2t_deploy.commands._build_trt import SM, build_engine, build_values
from t2t_deploy.commands._calibrate import (
    CalibratedRanges,
    calibrate_onnx,
    calibrate_values,
    calibration_advice,
    calibration_images,
)
from t2t_deploy.commands._class_names import OwnLabels
from t2t_deploy.commands._compare import (
    ComparedStrategies,
    StrategyComparison,
    compare_exports,
    split_name,
)
from t2t_deploy.commands._decisions import Targets, Threshold, labelled_images
from t2t_deploy.commands._doctor import (
    backend_cells,
    bug_report,
    examine_machine,
    examine_workspace,
    prune_workspace,
)
from t2t_deploy.commands._evaluate import Evaluation, evaluate_artifacts, evaluate_values
from t2t_deploy.commands._export import (
    READ_AS,
    CheckpointFile,
    Classes,
    ConfigFile,
    GraphForm,
    IgnoreKeys,
    ImageSize,
    LoadedModel,
    QkScale,
    Variant,
    Weights,
    check_of_file,
    check_tail,
    export_onnx,
    export_values,
    load_model,
)
from t2t_deploy.commands._inspect import DrawnFeatures, draw_features, inspect_artifact
from t2t_deploy.commands._package import (
    Package,
    WebPackage,
    check_package_options,
    package_artifact,
    package_values,
)
from t2t_deploy.commands._package_web import check_page
from t2t_deploy.commands._predict import Prediction, load_session, predict_images
from t2t_deploy.commands._predict_across import ClusterPrediction, predict_across
from t2t_deploy.commands._preparation import (
    CropFraction,
    InterpolationName,
    Mean,
    PreparationName,
    ResizeRule,
    Std,
)
from t2t_deploy.commands._quantize import quantize_onnx, quantize_values
from t2t_deploy.commands._quantize_plan import (
    QuantizationMode,
    QuantizationRequest,
    quantization_target,
    settle_quantization,
)
from t2t_deploy.commands._verify import (
    MAX_IMAGES,
    VerifiedArtifact,
    verify_artifacts,
    verify_values,
    why_not_judged,
)

__all__ = [
    "MAX_IMAGES",
    "READ_AS",
    "SM",
    "Bench",
    "CalibratedRanges",
    "CheckpointFile",
    "Classes",
    "ClusterPrediction",
    "ComparedStrategies",
    "ConfigFile",
    "CropFraction",
    "DocumentedBench",
    "DrawnFeatures",
    "Evaluation",
    "GraphForm",
    "IgnoreKeys",
    "ImageSize",
    "InterpolationName",
    "LoadedModel",
    "Mean",
    "OwnLabels",
    "Package",
    "Prediction",
    "PreparationName",
    "QkScale",
    "QuantizationMode",
    "QuantizationRequest",
    "ResizeRule",
    "Std",
    "StrategyComparison",
    "Targets",
    "Threshold",
    "Variant",
    "VerifiedArtifact",
    "WebPackage",
    "Weights",
    "artifact_values",
    "backend_cells",
    "benchmark",
    "bug_report",
    "build_engine",
    "build_values",
    "calibrate_onnx",
    "calibrate_values",
    "calibration_advice",
    "calibration_images",
    "check_of_file",
    "check_package_options",
    "check_page",
    "check_streams",
    "check_tail",
    "compare_exports",
    "draw_features",
    "evaluate_artifacts",
    "evaluate_values",
    "examine_machine",
    "examine_workspace",
    "export_onnx",
    "export_values",
    "inspect_artifact",
    "labelled_images",
    "load_model",
    "load_session",
    "package_artifact",
    "package_values",
    "predict_across",
    "predict_images",
    "prune_workspace",
    "quantization_target",
    "quantize_onnx",
    "quantize_values",
    "settle_quantization",
    "split_name",
    "verify_artifacts",
    "verify_values",
    "why_not_judged",
    "workspace_of",
]
