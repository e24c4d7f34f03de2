"""PyTorch's threads around a fork."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from .program import finish

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are safe on Linux alone")

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json
import torch
from t2t_deploy import _forks
from t2t_deploy._optional import require
from tests.forks import answer, in_fork

def compute():
    torch = require("torch")
    return [float(torch.ones(1 << 20).relu().sum()), torch.get_num_threads()]

torch.set_num_threads(2)
compute()
"""


def printed(code: str) -> Any:
    return finish(code=PROGRAM + code, cwd=ROOT, status=0).json


def test_both_processes_compute_with_as_many_threads_as_before() -> None:
    found = printed("print(json.dumps([in_fork(compute), compute(), in_fork(compute)]))")
    assert found == [[float(1 << 20), 2]] * 3


def test_a_fork_whose_parent_could_not_end_its_threads_may_use_one() -> None:
    found = printed("""
_forks._pauses = lambda: iter([lambda kind: -1])

def work():
    refused = answer(lambda: require("torch"))
    torch.set_num_threads(1)
    return [refused, compute(), answer(lambda: _forks.check_torch(require("torch"), 2))]

print(json.dumps(in_fork(work)))
""")
    refused = (
        "BackendError: PyTorch was loaded before this process was forked, and its threads did not "
        "come along: start the process with spawn, or call torch.set_num_threads(1) in it"
    )
    assert found == [refused, [float(1 << 20), 1], refused]
