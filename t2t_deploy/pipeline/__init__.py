"""The only place where stages meet: what each command does, without the command line."""

from __future__ import annotations

from t2t_deploy.bench import (
    DEFAULT_ROUNDS,
    BenchReport,
    BenchStatus,
    Comparison,
    bench_table,
    comparison_table,
    not_run_lines,
)
from t2t_deploy.calibration import RangeMethod
from t2t_deploy.model import VARIANTS
from t2t_deploy.pipeline._bench import NO_GRAPH, BenchRequest, CudaGraphs, bench_artifacts
from t2t_deploy.pipeline._bench_document import (
    BenchOutputs,
    DocumentedBench,
    document_bench,
    document_measured,
)
from t2t_deploy.pipeline._bug_report import bug_report
from t2t_deploy.pipeline._build import BuildRequest, build_trt, chosen_profiles
from t2t_deploy.pipeline._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    CalibratedRanges,
    CalibrateRequest,
    calibrate_artifact,
)
from t2t_deploy.pipeline._classifier import open_artifact
from t2t_deploy.pipeline._compare import compare_strategies
from t2t_deploy.pipeline._compare_choices import split_name
from t2t_deploy.pipeline._compare_values import ComparedStrategies, StrategyComparison
from t2t_deploy.pipeline._doctor import BackendState, examine_machine
from t2t_deploy.pipeline._evaluate import EvaluatedArtifact, Evaluation, evaluate_artifacts
from t2t_deploy.pipeline._evaluate_request import DEFAULT_BATCH, EvaluateAcross, EvaluateRequest
from t2t_deploy.pipeline._export import ExportRequest, export_model, read_model
from t2t_deploy.pipeline._features import DrawnFeatures, draw_features
from t2t_deploy.pipeline._inputs import (
    Machine,
    calibration_pictures,
    evaluation_pictures,
    read_machine,
    verification_pictures,
)
from t2t_deploy.pipeline._inspect import inspect_artifact
from t2t_deploy.pipeline._package import Package, PackageRequest, package_artifact
from t2t_deploy.pipeline._predict import Prediction, PredictRequest, predict_images
from t2t_deploy.pipeline._predict_ray import ClusterPrediction, RayRequest, predict_across
from t2t_deploy.pipeline._predicted import PredictedPicture, RankedClass
from t2t_deploy.pipeline._progress import Report, silent
from t2t_deploy.pipeline._quantize import quantize_artifact
from t2t_deploy.pipeline._quantize_plan import (
    QuantizationMode,
    QuantizeRequest,
    quantization_target,
)
from t2t_deploy.pipeline._values import (
    artifact_values,
    build_values,
    calibrate_values,
    evaluate_values,
    export_values,
    package_values,
    quantize_values,
    verify_values,
)
from t2t_deploy.pipeline._verify import VerifiedArtifact, verify_artifacts
from t2t_deploy.pipeline._workspace import examine_workspace, prune_workspace
from t2t_deploy.runtime import Session
from t2t_deploy.serving import DEFAULT_BLOCK
from t2t_deploy.serving.triton import Accelerator, ServingFormat
from t2t_deploy.workspace import Artifact, Patience, Workspace, WorkspaceCheck

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_BLOCK",
    "DEFAULT_COUNT",
    "DEFAULT_METHOD",
    "DEFAULT_ROUNDS",
    "NO_GRAPH",
    "VARIANTS",
    "Accelerator",
    "Artifact",
    "BackendState",
    "BenchOutputs",
    "BenchReport",
    "BenchRequest",
    "BenchStatus",
    "BuildRequest",
    "CalibrateRequest",
    "CalibratedRanges",
    "ClusterPrediction",
    "ComparedStrategies",
    "Comparison",
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
    "Patience",
    "PredictRequest",
    "PredictedPicture",
    "Prediction",
    "QuantizationMode",
    "QuantizeRequest",
    "RangeMethod",
    "RankedClass",
    "RayRequest",
    "Report",
    "ServingFormat",
    "Session",
    "StrategyComparison",
    "VerifiedArtifact",
    "Workspace",
    "WorkspaceCheck",
    "artifact_values",
    "bench_artifacts",
    "bench_table",
    "bug_report",
    "build_trt",
    "build_values",
    "calibrate_artifact",
    "calibrate_values",
    "calibration_pictures",
    "chosen_profiles",
    "compare_strategies",
    "comparison_table",
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
    "not_run_lines",
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
    "silent",
    "split_name",
    "verification_pictures",
    "verify_artifacts",
    "verify_values",
]
