"""Benches of a workspace in which nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from t2t_deploy.bench import BenchCase, BenchReport, CaseResult
from t2t_deploy.commands import _artifacts, _baselines, _bench, benchmark
from t2t_deploy.types import Precision
from t2t_deploy.workspace import Workspace


class UnmeasuredBench:
    """What `run_bench` was asked is kept."""

    def __init__(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace = workspace
        self.cases: list[BenchCase] = []
        self.options: dict[str, Any] = {}
        self.interruption: BaseException | None = None
        self.devices: set[int | None] = set()
        self._patch = monkeypatch
        monkeypatch.setattr(_bench, "run_bench", self.run_bench)

    def __call__(self, **asked: Any) -> BenchReport:
        return benchmark(**asked, workspace=self.workspace).report

    def run_bench(self, cases: Sequence[BenchCase], **options: Any) -> BenchReport:
        self.cases, self.options = list(cases), options
        if self.interruption is not None:
            options["interrupted"](self.interruption)
        results = tuple(result for case in cases if (result := self.result(case)) is not None)
        return BenchReport(environment=None, results=results)  # type: ignore[arg-type]  # unseen

    def result(self, case: BenchCase) -> CaseResult | None:
        """What is said to be measured of a case; nothing."""
        return None

    def backends(self, *names: str) -> None:
        """Say which backends run here; none is all of them."""

        def why_not_runnable(name: str, device: int | None = None) -> str | None:
            self.devices.add(device)
            return None if name in names or not names else f"no {name} here"

        for module in (_bench, _baselines, _artifacts):
            self._patch.setattr(module, "why_not_runnable", why_not_runnable)

    def computes(self, bf16: str | None = None) -> None:
        """Say that every precision is computed in, or why bf16 is not."""
        for module in (_baselines, _artifacts):
            self._patch.setattr(
                module, "why_not_in", lambda name, kind: bf16 if kind is Precision.BF16 else None
            )
