"""The commands: what each does, one file a command, without the command line."""

from __future__ import annotations

from t2t_deploy.commands._bench import (
    NO_GRAPH,
    BenchOutputs,
    BenchRequest,
    CudaGraphs,
    DocumentedBench,
    bench_artifacts,
    document_bench,
    document_measured,
)
from t2t_deploy.commands._build_trt import BuildRequest, build_trt, chosen_profiles
from t2t_deploy.commands._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    CalibratedRanges,
    CalibrateRequest,
    calibrate_artifact,
)
from t2t_deploy.commands._classifier import open_artifact
from t2t_deploy.commands._compare import compare_strategies
from t2t_deploy.commands._doctor import BackendState, bug_report, examine_machine
from t2t_deploy.commands._evaluate import EvaluatedArtifact, Evaluation, evaluate_artifacts
from t2t_deploy.commands._evaluate_sessions import DEFAULT_BATCH, EvaluateAcross, EvaluateRequest
from t2t_deploy.commands._export import ExportRequest, export_model, read_model
from t2t_deploy.commands._features import DrawnFeatures, draw_features
from t2t_deploy.commands._inputs import (
    Machine,
    calibration_pictures,
    evaluation_pictures,
    read_machine,
    verification_pictures,
)
from t2t_deploy.commands._inspect import inspect_artifact
from t2t_deploy.commands._package import Package, PackageRequest, package_artifact
from t2t_deploy.commands._predict import (
    PredictedPicture,
    Prediction,
    PredictRequest,
    RankedClass,
    predict_images,
)
from t2t_deploy.commands._predict_across import ClusterPrediction, RayRequest, predict_across
from t2t_deploy.commands._quantize import quantize_artifact
from t2t_deploy.commands._quantize_plan import (
    QuantizationMode,
    QuantizeRequest,
    quantization_target,
)
from t2t_deploy.commands._strategy_grid import ComparedStrategies, StrategyComparison, split_name
from t2t_deploy.commands._values import (
    artifact_values,
    build_values,
    calibrate_values,
    evaluate_values,
    export_values,
    package_values,
    quantize_values,
    verify_values,
)
from t2t_deploy.commands._verify import VerifiedArtifact, verify_artifacts
from t2t_deploy.commands._workspace import examine_workspace, prune_workspace

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_COUNT",
    "DEFAULT_METHOD",
    "NO_GRAPH",
    "BackendState",
    "BenchOutputs",
    "BenchRequest",
    "BuildRequest",
    "CalibrateRequest",
    "CalibratedRanges",
    "ClusterPrediction",
    "ComparedStrategies",
    "CudaGraphs",
    "DocumentedBench",
    "DrawnFeatures",
    "EvaluateAcross",
    "EvaluateRequest",
    "EvaluatedArtifact",
    "Evaluation",
    "ExportRequest",
    "Machine",
    "Package",
    "PackageRequest",
    "PredictRequest",
    "PredictedPicture",
    "Prediction",
    "QuantizationMode",
    "QuantizeRequest",
    "RankedClass",
    "RayRequest",
    "StrategyComparison",
    "VerifiedArtifact",
    "artifact_values",
    "bench_artifacts",
    "bug_report",
    "build_trt",
    "build_values",
    "calibrate_artifact",
    "calibrate_values",
    "calibration_pictures",
    "chosen_profiles",
    "compare_strategies",
    "document_bench",
    "document_measured",
    "draw_features",
    "evaluate_artifacts",
    "evaluate_values",
    "evaluation_pictures",
    "examine_machine",
    "examine_workspace",
    "export_model",
    "export_values",
    "inspect_artifact",
    "open_artifact",
    "package_artifact",
    "package_values",
    "predict_across",
    "predict_images",
    "prune_workspace",
    "quantization_target",
    "quantize_artifact",
    "quantize_values",
    "read_machine",
    "read_model",
    "split_name",
    "verification_pictures",
    "verify_artifacts",
    "verify_values",
]
