"""The bench on a GPU: the order of its stages, what it goes on with, its table; run on the CPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import bench_gpu
import pytest
from bench_gpu import ALL, QUICK, SHORT, Measured, Stage, main, stages
from gpu_peers import AHEAD, MODES

from t2t_deploy.bench import BenchCase, BenchReport, BenchStatus, CaseResult, Latency, Round
from t2t_deploy.commands._bench import NO_GRAPH
from t2t_deploy.engine import device_capability

from .reports import HERE, SETTINGS

DEVICE = {"name": "Some GPU", "capability": [9, 0]}


def row(backend: str, ms: float, rel_l2: float | None = 1e-3, **changes: Any) -> CaseResult:
    rounds = tuple(Round(number, 1, (ms,) * 3) for number in range(1, 6))
    figures: dict[str, Any] = {
        "latency_ms": Latency(ms, ms, ms, ms, 0, (ms,)),
        "images_per_s": 8e3 / ms,
    }
    measured = CaseResult(backend, "14", "fp16", 8, BenchStatus.OK, rounds=rounds, rel_l2=rel_l2)
    return dataclasses.replace(measured, **(figures | changes))


def measured_of(**reports: BenchReport) -> Measured:
    return Measured(DEVICE, {"torch": "2.13.0"}, reports)


def report(*rows: CaseResult, cut_short: str | None = None) -> BenchReport:
    return BenchReport(HERE, rows, SETTINGS, cut_short)


def test_the_most_important_comes_first() -> None:
    assert stages(("14", "7"), (1, 8, 32)) == [
        Stage("14", (1, 8), QUICK),
        Stage("14", (1, 8), ALL, wide=True),
        Stage("7", (1, 8), SHORT),
        Stage("14", (32,), SHORT),
        Stage("7", (32,), SHORT),
    ]
    assert stages(("7",), (128,)) == [Stage("7", (128,), SHORT)]
    assert {*MODES, AHEAD} < {*ALL} and {*SHORT} < {*ALL}


def test_ours_are_compared_with_the_fastest_peer_that_is_right() -> None:
    peers = row("eager", 8.0), row("compile-default", 4.0), row("aot-inductor", 1.0, rel_l2=0.1)
    failed = row(
        "compile-max-autotune", 9.0, status=BenchStatus.FAILED, latency_ms=None, reason="x"
    )
    ours = row("ort-cuda", 2.0), row("ort-cuda", 3.0, artifact="14" + NO_GRAPH, rel_l2=None)
    text = measured_of(a=report(*peers, failed, *ours)).markdown()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {(one[0], one[2]): one for one in cells if len(one) == 12}
    assert found["14", "ort-cuda"][-1] == "2.00 [2.00, 2.00], compile-default"
    assert found["14" + NO_GRAPH, "ort-cuda"][-3:-1] == ["not finite", "-"]
    assert found["14", "eager"][-1] == "-"
    assert "- compile-max-autotune fp16, 14, batch 8: failed, x" in text


def test_a_later_stage_has_the_last_word() -> None:
    rows = measured_of(a=report(row("eager", 8.0)), b=report(row("eager", 6.0))).rows()
    assert [one.latency_ms.p50 for one, _ in rows.values() if one.latency_ms] == [6.0]


def test_complete_stages_are_taken_over_from_the_same_device_and_versions(tmp_path: Path) -> None:
    stem = tmp_path / "found"
    kept = measured_of(a=report(row("eager", 8.0)), b=report(row("eager", 6.0), cut_short="x"))
    kept.write(stem)
    for changes, found in (
        ({}, ["a"]),
        ({"device": DEVICE | {"name": "other"}}, []),
        ({"versions": {"torch": "2.14.0"}}, []),
    ):
        again = dataclasses.replace(measured_of(), **changes)
        again.resume(stem.with_suffix(".json"))
        assert [*again.done] == found
    again.resume(tmp_path / "none.json")


def test_a_stopped_run_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second stage, which has some complete rounds."""
    asked: list[list[str]] = []

    def bench(cases: list[BenchCase], *, interrupted: Any, **_: Any) -> BenchReport:
        asked.append([f"{case.backend} {case.precision} {case.batch}" for case in cases])
        rows = (row(case.backend, 2.0, batch=case.batch, artifact=case.artifact) for case in cases)
        stops = len(asked) == 2
        if stops:
            interrupted(SystemExit())
        return report(*rows, cut_short="interrupted" if stops else None)

    monkeypatch.setattr(bench_gpu, "run_bench", bench)
    arguments = ("--dry-run", "--workspace", str(tmp_path / "files"))
    assert main(arguments) == 0
    compiled = [f"{name} fp16 1" for name in (*MODES, AHEAD)]
    ours, eager = "ort-cpu fp16 1", ["eager fp32 1", "eager fp16 1"]
    assert asked == [[ours, *eager], [ours, ours, *eager, *compiled]]
    assert main(arguments) == 0
    assert len(asked) == 4 and asked[2] == asked[1]
    assert asked[3] == ["ort-cpu fp16 16", "eager fp32 16", "compile-reduce-overhead fp16 16"]
    assert main(arguments) == 0
    assert len(asked) == 4
    values = json.loads((tmp_path / "files" / "cpu-dry-run.json").read_text())
    assert len(values["stages"]) == len(values["reports"]) == 3


@pytest.mark.skipif(device_capability() is not None, reason="there is a device")
def test_without_a_device_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("--output", str(tmp_path / "out"), "--workspace", str(tmp_path))) == 1
    assert capsys.readouterr().err.startswith("error: nothing to bench on: no NVIDIA driver")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--dry-run", "--workspace", str(tmp_path))
    assert main(arguments) == 0
    values = json.loads((tmp_path / "cpu-dry-run.json").read_text())
    rows = [one for bench in values["reports"] for one in bench["results"]]
    assert {one["status"] for one in rows} == {"ok"}
    assert all(one["rel_l2"] < 5e-3 for one in rows)
    assert {one["backend"] for one in rows} == {"ort-cpu", "eager", AHEAD, *MODES}
    table = (tmp_path / "cpu-dry-run.md").read_text()
    assert table.count("| tiny | 1 | ort-cpu |") == 1
