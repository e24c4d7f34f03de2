"""A bench as a page: one self-contained HTML file."""

from __future__ import annotations

from t2t_deploy.report._charts import VERIFIED
from t2t_deploy.report._document import BenchDocument, TuneSummary
from t2t_deploy.report._page import bench_page

__all__ = [
    "VERIFIED",
    "BenchDocument",
    "TuneSummary",
    "bench_page",
]
