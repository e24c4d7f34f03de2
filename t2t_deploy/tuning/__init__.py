"""The best file for a machine and a budget: every way is tried, and what leads is named."""

from __future__ import annotations

from t2t_deploy.tuning._results import Goal, TunedFile, Tuning, Verdict
from t2t_deploy.tuning._tune import tune

__all__ = ["Goal", "TunedFile", "Tuning", "Verdict", "tune"]
