"""The command line within a container's limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from t2t_deploy._limits import THREAD_VARIABLES, read_limits

from ..cgroups import control_group
from ..program import environment, finish

# what libraries that a command loads will find
SHOWS = """
import os, sys
from t2t_deploy.cli import _machine, main
_machine.variants.callback = lambda **options: print(os.environ.get("OMP_NUM_THREADS"))
main()
"""


def shown(within: list[str], **variables: str) -> str:
    kept = {name: text for name, text in environment().items() if name not in THREAD_VARIABLES}
    return finish("variants", code=SHOWS, within=within, env=kept | variables).out.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_doctor_in_a_real_group_says_its_limits(tmp_path: Path) -> None:
    with control_group(processors=0.5, memory_bytes=2 << 30) as within:
        done = finish("doctor", "--json", within=within, cwd=tmp_path)
    assert done.json["limits"] == {
        "affinity": read_limits().affinity,
        "quota": 0.5,
        "memory_bytes": 2 << 30,
        "processors": 1,
    }


@pytest.mark.skipif(read_limits().affinity < 2, reason="one core: a quota narrows nothing")
def test_libraries_of_a_command_in_a_real_group_take_its_quota() -> None:
    assert shown([]) == "None"
    with control_group(processors=0.5) as within:
        assert shown(within) == "1"
        assert shown(within, OMP_NUM_THREADS="2") == "2"
