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
from t2t_deploy.verify._ends import (
    PixelSession,
    softmax,
    tail_fault,
    takes_pixels,
)
from t2t_deploy.verify._nodewise import (
    NodeFigures,
    NodewiseReport,
    evaluate_nodewise,
    nodewise_not_run,
    nodewise_pictures,
)
from t2t_deploy.verify._nodewise_graph import NodewiseSession
from t2t_deploy.verify._nodewise_plot import plot_nodewise
from t2t_deploy.verify._pictures import (
    PictureSet,
    flat_pictures,
    on_pixel_grid,
    standard_pictures,
)

__all__ = [
    "Accuracy",
    "AccuracySum",
    "ConfusionPanel",
    "NodeFigures",
    "NodewiseReport",
    "NodewiseSession",
    "PictureSet",
    "PixelSession",
    "Verification",
    "compare_logits",
    "evaluate_nodewise",
    "flat_pictures",
    "logits_of",
    "nodewise_not_run",
    "nodewise_pictures",
    "not_verified",
    "on_pixel_grid",
    "outputs_of",
    "plot_confusion",
    "plot_nodewise",
    "softmax",
    "standard_pictures",
    "tail_fault",
    "takes_pixels",
    "verify_session",
]
