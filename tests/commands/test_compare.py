"""`export --compare`: which combinations, what is told of each, and that nothing is kept."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy import export
from t2t_deploy._optional import is_installed
from t2t_deploy.bench import BenchCase, BenchReport, BenchStatus, CaseResult
from t2t_deploy.commands import ComparedStrategies, _compare, compare_exports
from t2t_deploy.commands._compare import strategies_to_compare, strategy_name
from t2t_deploy.engine import BuildOptions
from t2t_deploy.errors import CheckpointError, EngineError, ExportError, UsageError
from t2t_deploy.export import PerformerForm, SoftSplitForm, Strategies, choose_strategies
from t2t_deploy.types import Precision, Target

from ..program import called
from ..small import tiny_model

EXPORT = ("export", "--config")
Options = dict[str, Any]
Measured = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def empty_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, and one for temporary files that must be empty again at the end."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return scratch


@pytest.fixture
def tiny(tmp_path: Path) -> Options:
    return request_of(tmp_path, "performer")


def request_of(folder: Path, tokens: str) -> Options:
    path = folder / f"tiny_{tokens}.toml"
    path.write_text(tiny_model(tokens, depth=1))
    return {"config": path}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """What `run_bench` was asked, instead of its running: no case is measured, no engine built."""
    asked: Measured = []

    def fake(cases: Sequence[BenchCase], **options: Any) -> BenchReport:
        asked.append({"cases": list(cases), **options})
        assert all(case.request.path.is_file() for case in cases)
        ended = (BenchStatus.FAILED, "not today")
        results = (CaseResult(c.backend, c.artifact, c.precision, c.batch, *ended) for c in cases)
        return BenchReport(None, tuple(results))  # type: ignore[arg-type]  # unseen

    monkeypatch.setattr(_compare, "run_bench", fake)
    monkeypatch.setattr(_compare, "is_installed", lambda name: False)
    return asked


def compare_only(monkeypatch: pytest.MonkeyPatch, *splits: SoftSplitForm) -> None:
    """Compare the default, and it with three of each of the soft splits."""

    def few(default: Strategies, *, performer: bool) -> tuple[Strategies, ...]:
        return default, *(dataclasses.replace(default, soft_split=(form,) * 3) for form in splits)

    monkeypatch.setattr(_compare, "strategies_to_compare", few)


@pytest.fixture
def three(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    compare_only(monkeypatch, SoftSplitForm.CONV, SoftSplitForm.CENTRED)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default and the hazardous one."""
    compare_only(monkeypatch, SoftSplitForm.FOLDED)


def breaking(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the export of three convolutions fail."""
    deploy = export.DeployT2TViT

    def construct(reference: Any, strategies: Strategies, precision: Precision) -> Any:
        if strategies.soft_split == (SoftSplitForm.CONV,) * 3:
            raise error
        return deploy(reference, strategies, precision)

    monkeypatch.setattr(export, "DeployT2TViT", construct, raising=False)


def rows_of(**request: Any) -> list[Any]:
    return list(compare_exports(**request).rows)


def test_all_are_compared(tiny: Options, measured: Measured, empty_folders: Path) -> None:
    rows = rows_of(**tiny)
    assert (len(rows), [row.default for row in rows].count(True)) == (11, 1)
    (default,) = (row for row in rows if row.default)
    assert default.strategies == choose_strategies(Target.PORTABLE)
    for row in rows:
        assert row.exported and row.nodes > 50 and row.rel_l2 < 1e-5
        assert row.rel_l2_flat is not None and row.engine is None
        assert row.reason == "no latency: not today"
        hazardous = row.strategies.soft_split[0] is SoftSplitForm.FOLDED
        assert any("on the picture" in hazard for hazard in row.hazards) == hazardous
    named = {row.name: row for row in rows}
    assert named["folded, stable"].rel_l2_flat > 20 * named["centred, stable"].rel_l2_flat
    assert not list(empty_folders.iterdir())
    assert not list(Path.cwd().iterdir())

    (asked,) = measured
    *cases, eager = asked["cases"]
    assert [case.artifact for case in cases] == list(named)
    assert (eager.backend, eager.precision, eager.batch) == ("eager", "fp32", 1)
    assert len({case.model for case in asked["cases"]}) == 1
    assert asked["rounds"] == 5 and 0 < asked["round_seconds"] <= 0.5


def test_openvino_is_timed_where_it_is(
    tiny: Options, measured: Measured, two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compare, "is_installed", lambda module: module == "openvino")
    monkeypatch.setattr(_compare, "why_not_runnable", lambda name: None)
    monkeypatch.setattr(
        _compare,
        "why_not_in",
        lambda name, kind: f"no {kind.value}" if kind != "fp32" else None,
    )
    rows = rows_of(**tiny)
    *cases, eager = measured[0]["cases"]
    assert [(case.artifact, case.backend) for case in cases] == [
        (row.name, runtime) for row in rows for runtime in ("ort-cpu", "openvino")
    ]
    assert eager.backend == "eager" and {case.request.precision for case in cases} == {"fp32"}
    for row in rows:
        assert row.reason == "no latency: not today; no OpenVINO latency: not today"
    for row in rows_of(**tiny, precision=Precision.FP16):
        assert row.reason.endswith("no latency: no fp16; no OpenVINO latency: no fp16")
    assert len(measured) == 1


def test_little_time_left_is_shared(
    tiny: Options, measured: Measured, two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compare, "_TOTAL_SECONDS", 0.0)
    compare_exports(**tiny)
    assert measured[0]["round_seconds"] == _compare._MIN_ROUND_SECONDS


def test_the_json(tiny: Options, measured: Measured, two: None) -> None:
    comparison = compare_exports(**tiny, batch=2, target=Target.TENSORRT)
    values = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    rows = values.pop("rows")
    assert values == {
        "variant": "tiny_performer",
        "precision": "fp32",
        "target": "tensorrt",
        "batch": 2,
        "token_attention": "performer",
        "engine_sm": "86",
    }
    assert measured[0]["cases"][0].batch == 2
    default, folded = rows
    figures = {field.name for field in dataclasses.fields(ComparedStrategies)} - {"strategies"}
    assert set(default) == figures | {field.name for field in dataclasses.fields(Strategies)}
    assert default["soft_split"] == ["normalised", "unfold", "unfold"]
    assert (default["performer"], default["default"], default["hazards"]) == ("stable", True, [])
    assert default["latency_ms"] is default["speedup_vs_eager"] is default["engine"] is None
    assert folded["default"] is False and len(folded["hazards"]) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ExportError("it has an If"), "not exported: it has an If"),
        (RuntimeError("torch gave up\nin line 3"), "not exported: RuntimeError: torch gave up"),
        (OSError(28, "disk full"), "not exported: OSError: [Errno 28] disk full"),
    ],
)
def test_one_that_fails_is_a_row(
    tiny: Options,
    measured: Measured,
    three: None,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    reason: str,
) -> None:
    breaking(monkeypatch, error)
    rows = {row.name: row for row in rows_of(**tiny)}
    failed = rows.pop("conv, stable")
    assert not failed.exported and failed.reason == reason
    assert (failed.nodes, failed.rel_l2, failed.latency_ms, failed.engine) == (None,) * 4
    assert len(rows) == 2 and all(row.exported for row in rows.values())
    assert len(measured[0]["cases"]) == 3


def test_a_bug_is_not_a_row(
    tiny: Options, three: None, monkeypatch: pytest.MonkeyPatch, empty_folders: Path
) -> None:
    breaking(monkeypatch, KeyError("of ours"))
    with pytest.raises(KeyError):
        compare_exports(**tiny)
    assert not list(empty_folders.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": 3}, "opset is 3"),
        ({"config": None}, "nothing says which model to export"),
        ({"variant": "7"}, "both describe the model"),
        ({"checkpoint": "absent.pth"}, "there is no file absent.pth"),
    ],
)
def test_a_wrong_request_is_said_once(
    tiny: Options, measured: Measured, two: None, change: Options, message: str
) -> None:
    with pytest.raises((UsageError, CheckpointError), match=message):
        compare_exports(**(tiny | change))
    assert not measured


def test_what_is_asked_is_one_more_row(tiny: Options, measured: Measured, two: None) -> None:
    forms: Options = {"soft_split": "unfold,conv,auto", "performer": "plain"}
    *_, asked = rows_of(**tiny, **forms)
    assert asked.name == "unfold,conv,unfold, plain"
    assert not asked.default and asked.exported and len(asked.hazards) == 1


def test_query_groups(tmp_path: Path, measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    default = choose_strategies(Target.TENSORRT)
    only = (default, dataclasses.replace(default, query_groups=1))
    monkeypatch.setattr(_compare, "strategies_to_compare", lambda default, performer: only)
    request = request_of(tmp_path, "transformer")
    # the form of a performer is no other combination here
    request = dict(request, target=Target.TENSORRT, performer="plain")
    comparison = compare_exports(**request)
    assert comparison.token_attention == "transformer"
    assert [(row.name, row.default) for row in comparison.rows] == [
        ("normalised,unfold,unfold, 2 query groups", True),
        ("normalised,unfold,unfold, 1 query group", False),
    ]
    two, one = comparison.rows
    assert two.strategies == default and two.nodes != one.nodes
    assert two.reason == one.reason == "no latency: not today"


def test_query_groups_that_do_not_divide(tmp_path: Path, measured: Measured, two: None) -> None:
    request = request_of(tmp_path, "transformer")
    with request["config"].open("a") as file:
        file.write("splits = [[7, 3, 2], [3, 2, 1], [3, 2, 1]]\n")  # at 20 px, maps of 5 x 5 tokens
    default, _ = rows_of(**request, target=Target.TENSORRT, image_size=20)
    assert "25 tokens do not divide into 2 groups of queries" in default.reason


def test_bf16_is_evaluated_node_by_node(tiny: Options, measured: Measured, two: None) -> None:
    default, folded = rows_of(**tiny, precision=Precision.BF16)
    assert 1e-4 < default.rel_l2 < 4e-2
    assert default.rel_l2_flat is not None and default.latency_ms is None
    assert "node by node, on noise 0" in default.reason and "no bf16" in default.reason
    # ONNX has no bf16 convolution at this opset
    assert folded.reason.startswith("not exported: ")
    assert not measured


def test_an_engine_that_is_refused(
    tiny: Options, measured: Measured, two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, options: BuildOptions, **_: Any) -> Any:
        assert (options.sm, [str(p) for p in options.profiles]) == (("86",), ["1:1:1"])
        raise EngineError("too large")

    monkeypatch.setattr(_compare, "is_installed", lambda module: module == "tensorrt_rtx")
    monkeypatch.setattr(_compare, "build_engine", refuse)
    for row in rows_of(**tiny):
        assert row.engine is None and row.rel_l2 is not None
        assert row.reason == "no engine: too large; no latency: not today"


@pytest.mark.slow
def test_latencies_and_engines_for_real(
    tiny: Options, two: None, short_bench: None, empty_folders: Path
) -> None:
    default, folded = called(*EXPORT, tiny["config"], "--compare", "--json").json["rows"]
    for row in (default, folded):
        assert row["latency_ms"]["p50"] > 0 and len(row["latency_ms"]["samples"]) >= 15
        speedup = row["speedup_vs_eager"]
        assert speedup["low"] <= speedup["ratio"] <= speedup["high"]
        openvino = row["openvino_latency_ms"]
        assert (openvino is not None) is is_installed("openvino")
        assert openvino is None or (openvino["p50"] > 0 and row["openvino_speedup_vs_eager"])
        assert (row["engine"] is not None) is is_installed("tensorrt_rtx")
        if row["engine"] is not None:
            assert row["engine"].pop("fused_attention") >= 0 and min(row["engine"].values()) > 0
    assert not list(empty_folders.iterdir()) and not list(Path.cwd().iterdir())


def test_the_table(tiny: Options, measured: Measured, two: None) -> None:
    done = called(*EXPORT, tiny["config"], "--compare")
    assert done.status == 0
    default, folded = (line for line in done.out.splitlines() if line.startswith("│"))
    assert [cell.strip() for cell in default.split("│")[1:4]] == [
        *("*", "centred,unfold,unfold", "stable")
    ]
    assert [cell.strip() for cell in folded.split("│")[1:4]] == ["!", "folded", "stable"]
    assert "folded, stable: hazard: soft split 'folded' on the picture" in done.out
    assert "all: no latency: not today" in done.out
    # of runtimes that measured nothing there is no column, and no word
    assert "p50" not in done.out and "kernels" not in done.out and "vs eager" not in done.out
    assert "(2 of 2) ..." in done.err


def test_where_none_can_be_exported(
    tiny: Options, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = Strategies((SoftSplitForm.CONV,) * 3, PerformerForm.STABLE)
    monkeypatch.setattr(_compare, "strategies_to_compare", lambda default, performer: (conv,))
    breaking(monkeypatch, ExportError("no"))
    done = called(*EXPORT, tiny["config"], "--soft-split", "conv", "--compare")
    assert done.status == 1 and "all: not exported: no" in done.out
    assert not measured


def test_no_output(tiny: Options, measured: Measured) -> None:
    done = called(*EXPORT, tiny["config"], "--compare", "-o", "x.onnx")
    assert done.status == 2
    assert "error: --compare writes no artifact and -o names a file" in done.err
    assert not list(Path.cwd().iterdir()) and not measured


# the forms that are for the first split alone are not among them
FIRST_ONLY = (SoftSplitForm.SHIFTED, SoftSplitForm.NORMALISED)
UNIFORM = {(form,) * 3 for form in SoftSplitForm if form not in FIRST_ONLY}
# Each is one of the eight soft splits to see, so that no default makes a ninth, save TensorRT's.
DEFAULTS = [choose_strategies(target) for target in Target]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("performer", [True, False])
def test_the_combinations(default: Strategies, performer: bool) -> None:
    found = strategies_to_compare(default, performer=performer)
    splits = 9 if default.soft_split[0] is SoftSplitForm.NORMALISED else 8
    assert len(found) == len(set(found)) == splits + (3 if performer else 1)
    assert found.count(default) == 1
    same = [s for s in found if dataclasses.replace(s, soft_split=default.soft_split) == default]
    assert {s.soft_split for s in same} > UNIFORM and len(same) == splits
    others = set(found) - set(same)
    assert {other.soft_split for other in others} == {default.soft_split}
    if performer:
        forms = {other.performer for other in others}
        assert forms == set(PerformerForm) - {default.performer}
    else:
        (other,) = others
        assert {other.query_groups, default.query_groups} == {1, 2}


def test_a_default_that_is_no_other_row_is_one_more() -> None:
    odd = (SoftSplitForm.CONV, SoftSplitForm.UNFOLD, SoftSplitForm.CONV)
    default = Strategies(odd, PerformerForm.STABLE)
    assert strategies_to_compare(default, performer=True).count(default) == 1


def test_a_combination_in_words() -> None:
    unfold, conv = SoftSplitForm.UNFOLD, SoftSplitForm.CONV
    one = Strategies((unfold,) * 3, PerformerForm.PLAIN)
    assert strategy_name(one, performer=True) == "unfold, plain"
    assert strategy_name(one, performer=False) == "unfold, 1 query group"
    mixed = Strategies((conv, unfold, conv), PerformerForm.STABLE, query_groups=2)
    assert strategy_name(mixed, performer=True) == "conv,unfold,conv, stable"
    assert strategy_name(mixed, performer=False) == "conv,unfold,conv, 2 query groups"
