"""What is said of two reports; the reports are made here, nothing is measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from t2t_deploy._limits import Limits
from t2t_deploy.bench import (
    BenchReport,
    BenchStatus,
    CaseResult,
    Environment,
    Round,
    Speedup,
    Verdict,
    check_comparable,
    compare_reports,
    comparison_table,
)
from t2t_deploy.bench._comparison import MIN_DIFFERENCE, verdict_of
from t2t_deploy.errors import ComparisonError

from ..reports import HERE, SETTINGS, cells

ROUNDS = (10.0, 10.1, 10.2, 9.9, 10.0)


def row(artifact: str | None, medians: tuple[float, ...] = ROUNDS, **fields: Any) -> CaseResult:
    rounds = tuple(Round(n, 1, (ms,)) for n, ms in enumerate(medians, start=1))
    made = CaseResult("ort-cpu", artifact, "fp32", 1, BenchStatus.OK, rounds=rounds)
    return dataclasses.replace(made, **fields)


def report(*rows: CaseResult, environment: Environment = HERE) -> BenchReport:
    return BenchReport(environment, rows, SETTINGS)


def compared(old: BenchReport, new: BenchReport) -> Any:
    """The one case that is compared."""
    (case,) = compare_reports(old, new, name="old.json").cases
    return case


def verdicts(old: BenchReport, new: BenchReport) -> list[tuple[str, str | None]]:
    cases = compare_reports(old, new, name="old.json").cases
    return [(case.verdict.value, case.reason) for case in cases]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(0.5, "faster"), (2.0, "slower"), (1.0, "not distinguishable"), (1.02, "not distinguishable")],
)
def test_verdicts(factor: float, verdict: str) -> None:
    now = row("a", tuple(ms * factor for ms in ROUNDS))
    case = compared(report(row("a")), report(now))
    assert (case.verdict.value, case.reason) == (verdict, None)
    assert case.ratio.low <= case.ratio.ratio <= case.ratio.high
    assert case.ratio.ratio == pytest.approx(1 / factor)


def test_rounds_that_differ_widen_the_interval_until_nothing_can_be_said() -> None:
    """Twice as fast in most rounds, but a hog ran in the others."""
    now = row("a", (5.0, 5.0, 5.0, 12.0, 12.0), unstable=True)
    case = compared(report(row("a")), report(now))
    assert case.ratio.ratio == 2.0
    assert case.ratio.low < 1 < case.ratio.high
    assert (case.verdict, case.reason) == (Verdict.NOT_DISTINGUISHABLE, "unstable now")


def test_the_number_of_rounds_may_differ() -> None:
    assert verdicts(report(row("a", ROUNDS * 3)), report(row("a", (5.0,) * 5))) == [
        ("faster", None)
    ]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.04, 1.2, Verdict.FASTER),
        (1.02, 1.2, Verdict.NOT_DISTINGUISHABLE),
        (0.8, 0.96, Verdict.SLOWER),
        (0.8, 0.98, Verdict.NOT_DISTINGUISHABLE),
        (0.8, 1.2, Verdict.NOT_DISTINGUISHABLE),
    ],
)
def test_the_whole_interval_lies_beyond_the_least_difference(
    low: float, high: float, verdict: Verdict
) -> None:
    assert MIN_DIFFERENCE == 0.03
    assert verdict_of(Speedup(1.0, low, high)) is verdict


def test_the_same_case_is_found() -> None:
    old = report(row("a.onnx"), row("a.onnx", batch=8), row("a.onnx", backend="openvino"))
    new = report(row("a.onnx", batch=8, rounds=row("a", (1.0,) * 5).rounds))
    gone = ("not compared", "not among the new results")
    assert verdicts(old, new) == [("faster", None), gone, gone]
    for other in (
        row("a.onnx", batch=4),
        row("a.onnx", precision="int8"),
        row("b.onnx"),
        row("a.onnx", streams=2),
    ):
        assert verdicts(old, report(other))[0] == ("not compared", "not among the old results")


def test_a_file_made_anew_is_found_where_it_is_the_only_one() -> None:
    old, new = "14-224-fp32-cpu-0123abcd.onnx", "14-224-fp32-cpu-89efcdab.onnx"
    assert verdicts(report(row(old)), report(row(new))) == [("not distinguishable", f"then {old}")]
    two = report(row(old), row("14-224-fp32-cpu-00000000.onnx"))
    gone = ("not compared", "not among the new results")
    assert verdicts(two, report(row(new))) == [
        ("not compared", "not among the old results"),
        gone,
        gone,
    ]
    # of two new ones, the one that was there then is the same, the other is new
    assert verdicts(report(row(old)), report(row(old), row(new))) == [
        ("not distinguishable", None),
        ("not compared", "not among the old results"),
    ]


def test_what_was_not_measured_is_not_compared() -> None:
    not_run = CaseResult("ort-cpu", "a", "fp32", 1, BenchStatus.NOT_RUN, "no device")
    failed = row("a", status=BenchStatus.FAILED, rounds=())
    measured = row("a")
    pairs = {
        "not run now": (measured, not_run),
        "failed now": (measured, failed),
        "not run then": (not_run, measured),
        "failed then": (failed, measured),
    }
    for reason, (then, now) in pairs.items():
        assert verdicts(report(then), report(now)) == [("not compared", reason)]
    assert verdicts(report(not_run, failed), report(not_run)) == []


def test_a_bench_that_was_cut_short_is_not_compared() -> None:
    """The interval of one round is a point: all that differs would be faster or slower."""
    assert verdicts(report(row("a")), report(row("a", (5.0,)))) == [
        ("not compared", "cut short now: 1 round")
    ]
    assert verdicts(report(row("a", ROUNDS[:4])), report(row("a"))) == [
        ("not compared", "cut short then: 4 rounds")
    ]


def test_versions_are_told_and_stop_nothing() -> None:
    versions = {"numpy": "2.4.6", "openvino": "2026.1", "torch": "2.14.0"}
    now = dataclasses.replace(HERE, versions=versions, python="3.12.1")
    found = compare_reports(report(row("a")), report(row("a"), environment=now), name="old.json")
    assert found.notes == (
        "openvino: absent then, 2026.1 now",
        "python: 3.11.2 then, 3.12.1 now",
        "torch: 2.13.0 then, 2.14.0 now",
    )
    check_comparable(report(), now, devices=(None,), name="old.json")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"cpu_model": "Other CPU"}, "processor Some CPU there, Other CPU here"),
        ({"cpu_flags": ("avx2",)}, "processor flags avx2, avx512_vnni there, avx2 here"),
        ({"cpu_flags": None}, "processor flags avx2, avx512_vnni there, unknown here"),
        ({"logical_cores": 8}, "logical cores 4 there, 8 here"),
        ({"usable_cores": 1}, "usable cores 2 there, 1 here"),
        ({"memory_bytes": 16 << 30}, "memory 15 GiB there, 16 GiB here"),
        ({"limits": Limits(2, 0.5)}, "processor limit none there, 0.5 processors here"),
        ({"limits": Limits(2, None, 512 << 20)}, "memory limit none there, 0.5 GiB here"),
        ({"governor": None}, "governor performance there, unknown here"),
        ({"threads": (1,)}, "threads 2 there, 1 here"),
        ({"threads": (None,)}, "threads 2 there, default here"),
    ],
)
def test_another_machine_or_setting_is_refused_with_what_differs(
    change: dict[str, Any], difference: str
) -> None:
    check_comparable(report(), HERE, devices=(None,), name="old.json")
    now = dataclasses.replace(HERE, **change)
    with pytest.raises(ComparisonError) as refused:
        check_comparable(report(), now, devices=(None,), name="old.json")
    assert str(refused.value) == (
        f"old.json was measured on another machine or with other settings: {difference}; only the "
        "same can be compared: bench both on one machine with the same threads and device"
    )


def test_all_differences_stand_in_one_line() -> None:
    now = dataclasses.replace(HERE, cpu_model="Other CPU", threads=(1,))
    with pytest.raises(ComparisonError, match=r"processor .*; threads .*; device default .*0 here"):
        check_comparable(report(), now, devices=(0,), name="old.json")


def test_table() -> None:
    old = report(row("[a].onnx"), row("b.onnx", unstable=True, stalled=True))
    new = report(row("[a].onnx", (5.0,) * 5), row("b.onnx"), row("c.onnx"))
    table = comparison_table(compare_reports(old, new, name="old.json"))
    assert "against old.json of 2026-01-02T03:04:05+00:00" in str(table.title)
    ours = ["fp32", "1"]
    assert cells(table)[-3:] == [
        ["ort-cpu", "[a].onnx", *ours, "faster", "2.000 [1.980, 2.040]", ""],
        [
            *("ort-cpu", "b.onnx", *ours, "not distinguishable", "1.000 [0.980, 1.020]"),
            "unstable then; stalled then",
        ],
        ["ort-cpu", "c.onnx", *ours, "not compared", "-", "not among the old results"],
    ]


def test_streams_are_told_where_one_has_several() -> None:
    rows = (row("a.onnx"), row("a.onnx", streams=2))
    table = comparison_table(compare_reports(report(*rows), report(*rows), name="old.json"))
    assert [line[3:6] for line in cells(table)] == [
        ["batch", "streams", "now"],
        *(["1", streams, "not distinguishable"] for streams in ("1", "2")),
    ]
    exported = (row("a-0123abcd.onnx"), row("a-0123abcd.onnx", streams=2))
    found = verdicts(report(*rows), report(*exported))
    assert found == [("not distinguishable", "then a.onnx")] * 2
