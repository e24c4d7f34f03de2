"""Comparison of artifacts with the reference, with a verdict."""

from __future__ import annotations

from t2t_deploy.verify._compare import (
    Verification,
    compare_logits,
    logits_of,
    not_verified,
    verify_session,
)
from t2t_deploy.verify._pictures import PictureSet, flat_pictures, standard_pictures

__all__ = [
    "PictureSet",
    "Verification",
    "compare_logits",
    "flat_pictures",
    "logits_of",
    "not_verified",
    "standard_pictures",
    "verify_session",
]
