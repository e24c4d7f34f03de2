"""Comparison of artifacts with the reference, with a verdict; torch is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy._optional import lazy
from t2t_deploy.verify._accuracy import (
    Accuracy,
    AccuracyRunner,
    AccuracySum,
    labels_in_doubt,
    run_pictures,
)
from t2t_deploy.verify._compare import (
    NODEWISE_PICTURES,
    PixelSession,
    Verification,
    compare_logits,
    logits_of,
    not_verified,
    tail_fault,
    takes_pixels,
    typical_norm,
    verify_file,
    verify_session,
)
from t2t_deploy.verify._decisions import Decisions, DecisionSum, cut_of_logits
from t2t_deploy.verify._features import (
    PICTURE,
    FeatureColumn,
    Features,
    Stage,
    plot_features,
    see_stage,
)
from t2t_deploy.verify._layer_tensors import instrumented_graph
from t2t_deploy.verify._locate import Located, locate_file, not_located
from t2t_deploy.verify._nodewise import (
    NodewiseReport,
    float64_logits,
    nodewise_file,
    nodewise_not_run,
)
from t2t_deploy.verify._nodewise_session import NodewiseSession
from t2t_deploy.verify._pictures import (
    PictureSet,
    flat_pictures,
    pictures_for,
    standard_pictures,
)
from t2t_deploy.verify._plots import plot_confusion, plot_nodewise
from t2t_deploy.verify._typed_graph import bare_graph

if TYPE_CHECKING:
    from t2t_deploy.verify._stepwise import reference_layers, reference_tensors

__all__ = [
    "NODEWISE_PICTURES",
    "PICTURE",
    "Accuracy",
    "AccuracyRunner",
    "AccuracySum",
    "DecisionSum",
    "Decisions",
    "FeatureColumn",
    "Features",
    "Located",
    "NodewiseReport",
    "NodewiseSession",
    "PictureSet",
    "PixelSession",
    "Stage",
    "Verification",
    "bare_graph",
    "compare_logits",
    "cut_of_logits",
    "flat_pictures",
    "float64_logits",
    "instrumented_graph",
    "labels_in_doubt",
    "locate_file",
    "logits_of",
    "nodewise_file",
    "nodewise_not_run",
    "not_located",
    "not_verified",
    "pictures_for",
    "plot_confusion",
    "plot_features",
    "plot_nodewise",
    "reference_layers",
    "reference_tensors",
    "run_pictures",
    "see_stage",
    "standard_pictures",
    "tail_fault",
    "takes_pixels",
    "typical_norm",
    "verify_file",
    "verify_session",
]

__getattr__ = lazy(__name__, __all__, "_stepwise")
