"""Comparison of artifacts with the reference, with a verdict."""

from __future__ import annotations

from t2t_deploy.verify._accuracy import Accuracy, AccuracySum
from t2t_deploy.verify._compare import (
    Verification,
    compare_logits,
    logits_of,
    not_verified,
    outputs_of,
    verify_session,
)
from t2t_deploy.verify._confusion_plot import ConfusionPanel, plot_confusion
from t2t_deploy.verify._features import (
    PICTURE,
    FeatureColumn,
    Features,
    SeenStage,
    Stage,
    TokenColours,
    see_stage,
    token_errors,
    top_classes,
)
from t2t_deploy.verify._features_plot import features_size, plot_features
from t2t_deploy.verify._graph_io import TAIL_TOLERANCE, PixelSession, tail_fault, takes_pixels
from t2t_deploy.verify._instrumented import InstrumentedGraph, LayerValues, instrumented_graph
from t2t_deploy.verify._locate import (
    ComparedLayer,
    Located,
    compared_layer,
    located,
    not_located,
    rounding_of,
)
from t2t_deploy.verify._nodewise import (
    NodeFigures,
    NodewiseReport,
    evaluate_nodewise,
    nodewise_not_run,
    nodewise_pictures,
)
from t2t_deploy.verify._nodewise_plot import plot_nodewise
from t2t_deploy.verify._nodewise_session import NodewiseSession
from t2t_deploy.verify._non_finite import stored_non_finite, why_non_finite
from t2t_deploy.verify._pictures import PictureSet, flat_pictures, on_pixel_grid, standard_pictures

__all__ = [
    "PICTURE",
    "TAIL_TOLERANCE",
    "Accuracy",
    "AccuracySum",
    "ComparedLayer",
    "ConfusionPanel",
    "FeatureColumn",
    "Features",
    "InstrumentedGraph",
    "LayerValues",
    "Located",
    "NodeFigures",
    "NodewiseReport",
    "NodewiseSession",
    "PictureSet",
    "PixelSession",
    "SeenStage",
    "Stage",
    "TokenColours",
    "Verification",
    "compare_logits",
    "compared_layer",
    "evaluate_nodewise",
    "features_size",
    "flat_pictures",
    "instrumented_graph",
    "located",
    "logits_of",
    "nodewise_not_run",
    "nodewise_pictures",
    "not_located",
    "not_verified",
    "on_pixel_grid",
    "outputs_of",
    "plot_confusion",
    "plot_features",
    "plot_nodewise",
    "rounding_of",
    "see_stage",
    "standard_pictures",
    "stored_non_finite",
    "tail_fault",
    "takes_pixels",
    "token_errors",
    "top_classes",
    "verify_session",
    "why_non_finite",
]
