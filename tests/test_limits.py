"""The limits of control groups: real ones, and the files of arrangements that are not at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy import _limits
from t2t_deploy._limits import Limits, Throttling, limit_threads, read_limits, read_throttling

from .cgroups import control_group

UNLIMITED = str(2**63 - 4096)
V1_CPU = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "41 31 0:38 {root} {point} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def machine(
    root: Path, own: list[str], mounts: list[str], files: dict[str, dict[str, str]] | None = None
) -> Path:
    """The files of a machine: the process's groups, mounts, and each group's limits."""
    for name, lines in {"cgroup": own, "mountinfo": mounts}.items():
        (root / "proc/self").mkdir(parents=True, exist_ok=True)
        (root / "proc/self" / name).write_text("\n".join([*lines, ""]))
    for group, limits in (files or {}).items():
        (root / "sys/fs/cgroup" / group).mkdir(parents=True, exist_ok=True)
        for name, text in limits.items():
            (root / "sys/fs/cgroup" / group / name).write_text(text + "\n")
    return root


def v1_cpu(quota: int, throttled: int = 0) -> dict[str, str]:
    stat = f"nr_periods 40\nnr_throttled {throttled}\nthrottled_time {throttled * 250_000_000}"
    return {"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": "100000", "cpu.stat": stat}


def v1_memory(limit: str, above: object = UNLIMITED) -> dict[str, str]:
    stat = f"cache 0\nhierarchical_memory_limit {above}"
    return {"memory.limit_in_bytes": limit, "memory.stat": stat}


def v2(point: str = "/sys/fs/cgroup", root: str = "/") -> str:
    return V2.format(root=root, point=point)


def v2_cpu(limit: str, throttled: int) -> dict[str, str]:
    times = f"throttled_usec {throttled * 250_000}\nnr_bursts 0"
    stat = f"usage_usec 9\nnr_periods 10\nnr_throttled {throttled}\n{times}"
    return {"cpu.max": limit, "cpu.stat": stat}


HALF_V2 = {"cpu.max": "50000 100000"}
# the process's groups, the mounts, each group's limits; quota, memory and throttling that are read
MACHINES: dict[str, tuple[Any, ...]] = {
    "version 1 in a container, read at the mount": (
        ["4:memory:/docker/abc", "2:cpu,cpuacct:/docker/abc", "1:name=systemd:/docker/abc"],
        [V1_CPU.format(root="/docker/abc"), V1_MEMORY.format(root="/docker/abc")],
        {"cpu,cpuacct": v1_cpu(150_000, 3), "memory": {"memory.limit_in_bytes": "536870912"}},
        *(1.5, 536870912, Throttling(40, 3, 0.75)),
    ),
    "version 1 without limits": (
        ["4:memory:/", "2:cpu,cpuacct:/"],
        [V1_CPU.format(root="/"), V1_MEMORY.format(root="/")],
        {"cpu,cpuacct": v1_cpu(-1), "memory": v1_memory(UNLIMITED)},
        *(None, None, Throttling(40, 0, 0)),
    ),
    "version 1, memory limited above the visible groups": (
        ["4:memory:/pod/abc"],
        [V1_MEMORY.format(root="/pod/abc")],
        {"memory": v1_memory(UNLIMITED, 1073741824)},
        *(None, 1073741824, None),
    ),
    "version 2, the smallest of the group and those above": (
        ["0::/pods/pod/app"],
        [v2()],
        {
            "": {"cpu.stat": "usage_usec 5"},
            "pods": {"cpu.max": "400000 100000", "memory.max": "max"},
            "pods/pod": {"memory.max": "3000", **v2_cpu("20000 20000", 2)},
            "pods/pod/app": {"memory.max": "4000", **v2_cpu("max 100000", 3)},
        },
        *(1.0, 3000, Throttling(20, 5, 1.25)),
    ),
    "a mount that holds the group is preferred": (
        ["0::/a"],
        [v2("/sys/fs/cgroup/b", "/b"), v2("/sys/fs/cgroup/all")],
        {"b": {"cpu.max": "1000 100000"}, "all/a": HALF_V2},
        *(0.5, None, None),
    ),
    "hybrid: each controller where it is": (
        ["3:cpu,cpuacct:/app", "0::/user/app"],
        [V1_CPU.format(root="/"), v2("/sys/fs/cgroup/unified")],
        {
            "cpu,cpuacct/app": v1_cpu(200_000),
            "unified/user/app": {"memory.max": "7000", "cpu.max": "1000 100000"},
        },
        *(2.0, 7000, Throttling(40, 0, 0)),
    ),
    "a mount point with a space": (
        ["0::/"],
        [v2("/sys/fs/cgroup/my\\040groups")],
        {"my groups": HALF_V2},
        *(0.5, None, None),
    ),
}


@pytest.mark.parametrize(
    ("affinity", "quota", "processors", "narrowed"),
    [
        (8, None, 8, False),
        (8, 0.5, 1, True),
        (8, 1.0, 1, True),
        (8, 1.5, 2, True),
        (2, 6.0, 2, False),
        (2, 1.01, 2, False),
        (1, 0.01, 1, False),
    ],
)
def test_processors_are_the_smaller_of_affinity_and_whole_quota(
    affinity: int, quota: float | None, processors: int, narrowed: bool
) -> None:
    limits = Limits(affinity, quota)
    assert (limits.processors, limits.narrowed) == (processors, narrowed)


@pytest.mark.parametrize("name", MACHINES)
def test_limits_of(tmp_path: Path, name: str) -> None:
    own, mounts, files, quota, memory_bytes, throttling = MACHINES[name]
    root = machine(tmp_path, own, mounts, files)
    assert read_limits(root) == Limits(read_limits().affinity, quota, memory_bytes)
    assert read_throttling(root) == throttling


@pytest.mark.parametrize(
    ("own", "top"),
    [
        ("/", "/"),  # a namespace of its own
        ("/", "/.."),  # the mount was made outside the namespace
        ("/../other", "/"),  # the process was moved out of its namespace
        ("/docker/abc", "/docker/abc"),  # the host's namespace, the container's mount
        ("/elsewhere", "/docker/abc"),
        ("/docker/abcdef", "/docker/abc"),
        ("/gone", "/"),
    ],
)
def test_version_2_in_a_namespace_reads_the_mount(tmp_path: Path, own: str, top: str) -> None:
    root = machine(tmp_path, [f"0::{own}"], [v2(root=top)], {"": HALF_V2})
    (root / "sys/fs/other").mkdir()
    (root / "sys/fs/other/cpu.max").write_text("1 100000\n")
    assert read_limits(root).quota == 0.5


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu.max": "", "memory.max": ""},
        {"cpu.max": "half 100000", "memory.max": "lots"},
        {"cpu.max": "50000", "memory.max": "-1"},
        {"cpu.max": "50000 0"},
        {"cpu.max": "0 100000"},
        {"cpu.stat": "nr_periods many"},
    ],
)
def test_files_of_no_meaning_are_no_limit(tmp_path: Path, limits: dict[str, str]) -> None:
    root = machine(tmp_path, ["0::/", "nonsense"], [v2(), "short - line"], {"": limits})
    assert read_limits(root) == Limits(read_limits().affinity)
    assert read_throttling(root) is None


def test_a_system_without_control_groups_has_its_cores(tmp_path: Path) -> None:
    limits = read_limits(tmp_path)
    assert limits == Limits(limits.affinity)
    assert limits.processors == limits.affinity >= 1
    assert read_throttling(tmp_path) is None


def test_affinity_elsewhere_is_the_count_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert read_limits(tmp_path).affinity == 6


def test_throttling_since_is_the_difference() -> None:
    later = Throttling(50, 7, 2.5).since(Throttling(40, 3, 1.0))
    assert later == Throttling(10, 4, 1.5)


@pytest.mark.parametrize(("limits", "set_by_us"), [(Limits(4, 1.5), "2"), (Limits(4), None)])
def test_limit_threads_sets_what_the_environment_leaves_open(
    monkeypatch: pytest.MonkeyPatch, limits: Limits, set_by_us: str | None
) -> None:
    environment = {"MKL_NUM_THREADS": "3"}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(_limits, "read_limits", lambda: limits)
    limit_threads()
    found = [environment.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
    assert found == [set_by_us, "3"]


PRINT_LIMITS = "from t2t_deploy._limits import *; print(read_limits())"
PRINT_THROTTLING = """
import time
from t2t_deploy._limits import *
before, end = read_throttling(), time.monotonic() + 0.6
while time.monotonic() < end:
    pass
print(read_throttling().since(before).throttled_periods > 0)
"""


def printed(within: list[str], script: str) -> str:
    words = [*within, sys.executable, "-c", script]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_real_group_is_read() -> None:
    affinity = read_limits().affinity
    with control_group(processors=0.5, memory_bytes=2**28) as within:
        assert printed(within, PRINT_LIMITS) == str(Limits(affinity, 0.5, 2**28))


def test_real_throttling_is_counted() -> None:
    with control_group(processors=0.1) as within:
        assert printed(within, PRINT_THROTTLING) == "True"
