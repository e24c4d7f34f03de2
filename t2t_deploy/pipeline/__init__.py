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
from t2t_deploy.pipeline._bench import BenchRequest, CudaGraphs, bench_artifacts
from t2t_deploy.pipeline._bench_document import BenchOutputs, DocumentedBench, document_bench
from t2t_deploy.pipeline._bug_report import bug_report
from t2t_deploy.pipeline._build import BuildRequest, build_trt
from t2t_deploy.pipeline._calibrate import (
    DEFAULT_COUNT,
    DEFAULT_METHOD,
    CalibratedRanges,
    CalibrateRequest,
    calibrate_artifact,
)
from t2t_deploy.pipeline._compare import (
    ComparedStrategies,
    StrategyComparison,
    compare_strategies,
    split_name,
)
from t2t_deploy.pipeline._doctor import BackendState, examine_machine
from t2t_deploy.pipeline._evaluate import (
    DEFAULT_BATCH,
    EvaluatedArtifact,
    EvaluateRequest,
    Evaluation,
    evaluate_artifacts,
)
from t2t_deploy.pipeline._evaluate_across import EvaluateAcross
from t2t_deploy.pipeline._export import ExportRequest, export_model
from t2t_deploy.pipeline._inspect import inspect_artifact
from t2t_deploy.pipeline._package import Package, PackageRequest, package_artifact
from t2t_deploy.pipeline._predict import (
    PredictedPicture,
    Prediction,
    PredictRequest,
    RankedClass,
    predict_images,
)
from t2t_deploy.pipeline._predict_ray import ClusterPrediction, RayRequest, predict_across
from t2t_deploy.pipeline._progress import Report, silent
from t2t_deploy.pipeline._quantize import QuantizationMode, QuantizeRequest, quantize_artifact
from t2t_deploy.pipeline._verify import VerifiedArtifact, verify_artifacts
from t2t_deploy.serving import DEFAULT_BLOCK
from t2t_deploy.serving.triton import Accelerator, ServingFormat
from t2t_deploy.workspace import Artifact, Workspace

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_BLOCK",
    "DEFAULT_COUNT",
    "DEFAULT_METHOD",
    "DEFAULT_ROUNDS",
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
    "EvaluateAcross",
    "EvaluateRequest",
    "EvaluatedArtifact",
    "Evaluation",
    "ExportRequest",
    "Package",
    "PackageRequest",
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
    "StrategyComparison",
    "VerifiedArtifact",
    "Workspace",
    "bench_artifacts",
    "bench_table",
    "bug_report",
    "build_trt",
    "calibrate_artifact",
    "compare_strategies",
    "comparison_table",
    "document_bench",
    "evaluate_artifacts",
    "examine_machine",
    "export_model",
    "inspect_artifact",
    "not_run_lines",
    "package_artifact",
    "predict_across",
    "predict_images",
    "quantize_artifact",
    "silent",
    "split_name",
    "verify_artifacts",
]
