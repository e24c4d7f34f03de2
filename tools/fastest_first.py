"""A pytest plugin for `make mutants`: the tests that took least time first.

mutmut stops at the first test that notices a mutant, and hands the tests over in no order. What
each took is in the statistics that it writes before; files stay whole, for their fixtures. What
exports load as they go is loaded here, once for all processes that are copies of this one.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

STATISTICS = Path("mutmut-stats.json")  # from the folder that mutmut runs the tests in

for name in ("hypothesis", "onnxruntime", "onnxsim", "sympy", "torch.onnx.utils"):
    importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order what was collected, in place."""
    if not STATISTICS.is_file():
        return  # it is being written
    seconds = json.loads(STATISTICS.read_text())["duration_by_test"]
    in_file: dict[Path, float] = defaultdict(float)
    for item in items:
        in_file[item.path] += seconds.get(item.nodeid, 0.0)
    items.sort(key=lambda item: (in_file[item.path], item.path, seconds.get(item.nodeid, 0.0)))
