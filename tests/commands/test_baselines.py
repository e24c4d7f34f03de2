"""`bench --baselines`: plain exports of the reference beside the artifacts, and every error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from t2t_deploy.bench import BenchCase, BenchStatus, CaseResult, Latency, Round
from t2t_deploy.commands import benchmark
from t2t_deploy.commands._baselines import EXPORTERS, with_speedup_vs_plain
from t2t_deploy.runtime import SessionRequest
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Workspace

from ..needs import needs_openvino
from ..small import tiny_exports, tiny_model
from .benches import UnmeasuredBench

TORCHSCRIPT, DEFAULT = EXPORTERS
BACKENDS = ("eager", "ort-cpu", "openvino")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("baselines")
    return tiny_exports(folder, {"target": Target.CPU}, model=tiny_model(depth=1))


def result_of(case: BenchCase, ms: float, status: BenchStatus = BenchStatus.OK) -> CaseResult:
    ok = status is BenchStatus.OK
    return CaseResult(
        case.backend,
        case.artifact,
        case.precision,
        case.batch,
        status,
        latency_ms=Latency(ms, ms, ms, ms, 0.0, (ms,)) if ok else None,
        rounds=tuple(Round(n, 1, (ms * n,)) for n in range(1, 6)) if ok else (),
    )


class Bench(UnmeasuredBench):
    """All take one millisecond."""

    def result(self, case: BenchCase) -> CaseResult:
        assert case.request.path.is_file() and self.options["seed"] == 0
        if case.artifact in EXPORTERS:
            graph = onnx.load(case.request.path).graph
            assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == case.batch
        return result_of(case, 1.0)

    def rows(self) -> list[tuple[str, str | None, str, int]]:
        return [(case.backend, case.artifact, case.precision, case.batch) for case in self.cases]


@pytest.fixture
def bench(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(workspace, monkeypatch)
    made.computes()
    return made


def test_what_is_added(bench: Bench) -> None:
    bench.backends("eager", "compile", "ort-cpu", "openvino")
    report = bench(batch=(1, 2), baselines=True)
    (name,) = (artifact.path.name for artifact in bench.workspace.artifacts())
    reference = "tiny 32px reference"

    def plain(batch: int) -> list[tuple[str, str | None, str, int]]:
        runs = (("ort-cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))
        return [(b, exporter, p, batch) for exporter in EXPORTERS for b, p in runs]

    assert bench.rows() == [
        *((b, a, "fp32", n) for n in (1, 2) for b, a in (
            ("eager", reference), ("compile", reference), ("ort-cpu", name), ("openvino", name)
        )),
        *plain(1),
        *plain(2),
    ]  # fmt: skip
    assert len({case.model for case in bench.cases}) == 1
    # the precision is told, or OpenVINO would choose it
    asked = {case.request.precision for case in bench.cases if case.artifact in EXPORTERS}
    assert asked == {Precision.FP32, Precision.BF16}
    wanted = {case.batch: case.reference_logits for case in bench.cases}
    for case in bench.cases:
        assert case.reference_logits is not None and len(case.reference_logits) == 10
        assert case.reference_logits == wanted[case.batch]
    assert wanted[1] != wanted[2]  # another shape, other pictures
    plain_files = [c.request.path for c in bench.cases if c.artifact in EXPORTERS]
    assert not any(path.is_file() for path in plain_files)
    assert {row.backend for row in report.results if row.status is BenchStatus.NOT_RUN} == {
        *("ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"),
    }


def test_without_it_nothing_is_added(bench: Bench) -> None:
    bench.backends("eager", "compile", "ort-cpu", "openvino")
    report = bench()
    assert [case.backend for case in bench.cases] == ["eager", "ort-cpu", "openvino"]
    assert {case.reference_logits for case in bench.cases} == {None}
    (row,) = (row for row in report.results if row.backend == "compile")
    assert row.reason == (
        "compiles for a minute or more on a CPU; ask for it: --baselines or --backend compile"
    )
    bench(backend=("compile",))
    assert [case.backend for case in bench.cases] == ["compile"]
    assert bench.cases[0].request.cache == bench.workspace.root / "cache" / "compile"


def test_named_backends_only(bench: Bench) -> None:
    bench.backends("eager", "compile", "ort-cpu", "openvino")
    bench(backend=("ort-cpu",), baselines=True)
    assert [(c.backend, c.artifact) for c in bench.cases[1:]] == [("ort-cpu", e) for e in EXPORTERS]
    assert bench.cases[0].artifact not in EXPORTERS


def test_as_many_streams_as_asked(bench: Bench) -> None:
    bench.backends("eager", "ort-cpu", "openvino")
    bench.computes(bf16="no bf16 here")
    report = bench(baselines=True, backend=("ort-cpu", "openvino"), threads=2, streams=(1, 2))
    plain = [(case.artifact, case.backend, case.request.streams) for case in bench.cases]
    assert [one for one in plain if one[0] in EXPORTERS] == [
        (exporter, backend, streams)
        for exporter in EXPORTERS
        for backend in ("ort-cpu", "openvino")
        for streams in (1, 2)
    ]
    skipped = [(row.artifact, row.streams) for row in report.results if row.artifact in EXPORTERS]
    assert skipped[-4:] == [(exporter, streams) for exporter in EXPORTERS for streams in (1, 2)]


def test_what_cannot_run_here_is_a_row(bench: Bench) -> None:
    bench.backends("eager", "ort-cpu", "openvino")
    bench.computes(bf16="no bf16 here")
    report = bench(baselines=True)
    skipped = [row for row in report.results if row.artifact in EXPORTERS and row.reason]
    assert [(row.backend, row.precision, row.status, row.reason) for row in skipped] == [
        ("openvino", "bf16", BenchStatus.NOT_RUN, "no bf16 here")
    ] * 2
    bench.backends("eager", "ort-cpu")
    report = bench(baselines=True)
    skipped = [row for row in report.results if row.artifact in EXPORTERS and row.reason]
    assert {row.reason for row in skipped} == {"no openvino here"} and len(skipped) == 4


def test_an_exporter_that_fails_is_a_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    right = torch.onnx.export

    def export(*arguments: Any, dynamo: bool, **options: Any) -> Any:
        if dynamo:
            raise ValueError("no decomposition\n  for it")
        return right(*arguments, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", export)
    bench.backends("eager", "ort-cpu", "openvino")
    report = bench(baselines=True)
    failed = [row for row in report.results if row.status is BenchStatus.FAILED]
    assert [(row.backend, row.artifact, row.precision) for row in failed] == [
        *(("ort-cpu", DEFAULT, "fp32"), ("openvino", DEFAULT, "fp32")),
        ("openvino", DEFAULT, "bf16"),
    ]
    assert {row.reason for row in failed} == {
        "not exported: ValueError: no decomposition for it",
    }
    assert [case.artifact for case in bench.cases].count(TORCHSCRIPT) == 3


def test_speed_against_the_fastest_plain_export() -> None:
    def case(
        name: str, precision: str = "fp32", backend: str = "ort-cpu", **more: Any
    ) -> BenchCase:
        request = SessionRequest(backend, Path(name), streams=more.pop("streams", 1))
        return dataclasses.replace(BenchCase(request, name, precision, 1, "m"), **more)

    timed = [
        (case(TORCHSCRIPT), 6.0),
        (case(DEFAULT), 4.0),
        (case(DEFAULT, "bf16"), 3.0),
        (case("a.onnx"), 2.0),
        (case("b.onnx", "bf16"), 2.0),
        (case("c.onnx", "int8"), 1.0),
        (case("a.onnx", backend="openvino"), 2.0),
        (case("a.onnx", batch=8), 2.0),
        (case("a.onnx", model="other"), 2.0),
        (case("a.onnx", streams=2), 2.0),
    ]
    cases = [each for each, _ in timed]
    results = [result_of(each, ms) for each, ms in timed]
    found = [r.speedup_vs_plain and r.speedup_vs_plain.ratio for r in
             with_speedup_vs_plain(cases, results)]  # fmt: skip
    assert found == [None, None, None, 2.0, 1.5, 4.0, None, None, None, None]
    # one that was not measured has no speed, and is no base
    results[1] = result_of(cases[1], 0.0, BenchStatus.FAILED)
    results[3] = result_of(cases[3], 0.0, BenchStatus.FAILED)
    again = with_speedup_vs_plain(cases, results)
    assert again[3].speedup_vs_plain is None
    assert again[5].speedup_vs_plain is not None and again[5].speedup_vs_plain.ratio == 6.0
    # a bench that was cut short has no intervals
    short = [dataclasses.replace(row, rounds=row.rounds[:4]) for row in results]
    assert all(row.speedup_vs_plain is None for row in with_speedup_vs_plain(cases, short))


@pytest.mark.slow
@needs_openvino
def test_for_real(workspace: Workspace, short_bench: None) -> None:
    asked: dict[str, Any] = {"threads": 1, "rounds": 5, "baselines": True}
    report = benchmark(backend=BACKENDS, workspace=workspace, **asked).report
    json.dumps(report.to_dict()["results"], allow_nan=False)
    ok = [row for row in report.results if row.status is BenchStatus.OK]
    fp32 = [(row.backend, row.artifact in EXPORTERS) for row in ok if row.precision == "fp32"]
    assert fp32 == [
        *(("eager", False), ("ort-cpu", False), ("openvino", False)),
        *[("ort-cpu", True), ("openvino", True)] * 2,
    ]
    for row in ok:
        assert row.rel_l2 is not None
        assert 1e-8 < row.rel_l2 < (1e-5 if row.precision == "fp32" else 4e-2)
        plain = row.artifact in EXPORTERS or row.backend == "eager"
        assert (row.speedup_vs_plain is None) is plain
    rest = {(row.artifact, row.status) for row in report.results if row not in ok}
    assert rest <= {(name, BenchStatus.NOT_RUN) for name in EXPORTERS}  # bf16 where there is none


def test_the_first_pictures_logits_are_compared() -> None:
    from t2t_deploy.bench._worker import relative_l2

    outputs = {"logits": np.array([[3.0, 4.0], [9.0, 9.0]], np.float32)}
    assert relative_l2(outputs, [3.0, 4.0]) == 0
    assert relative_l2(outputs, [0.0, 4.0]) == 0.75
    assert relative_l2(outputs, [0.0, 4.0], 6.0) == 0.5
    assert relative_l2({"logits": np.full((1, 2), np.nan, np.float32)}, [3.0, 4.0]) is None
    with pytest.raises(ValueError, match=r"is \(2,\) a picture; expected \(3,\)"):
        relative_l2(outputs, [1.0, 2.0, 3.0])


@pytest.mark.slow
def test_compiling_for_the_cpu(workspace: Workspace, short_bench: None) -> None:
    asked: dict[str, Any] = {"threads": 1, "rounds": 5, "baselines": True}
    done = benchmark(backend=("eager", "compile"), workspace=workspace, **asked)
    eager, compiled = done.report.results
    assert (compiled.backend, compiled.status, compiled.reason) == ("compile", BenchStatus.OK, None)
    for row in (eager, compiled):
        assert row.rel_l2 is not None and 1e-8 < row.rel_l2 < 1e-5
    assert any((workspace.root / "cache" / "compile").iterdir())
