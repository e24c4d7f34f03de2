"""Which artifacts are measured on which backends; nothing is measured here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.bench import BenchCase, BenchReport, BenchStatus
from t2t_deploy.commands import _bench
from t2t_deploy.commands._bench import BenchRequest, CudaGraphs, bench_artifacts
from t2t_deploy.engine import engine_version
from t2t_deploy.errors import ArtifactError, BackendError, UsageError
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace

ENGINE = {
    "backend": "tensorrt-rtx",
    "backend_version": engine_version("tensorrt-rtx"),
    "sm": ["portable"],
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "artifacts")


@pytest.fixture
def add(workspace: Workspace) -> Callable[..., Artifact]:
    """Store an artifact of the given facts; its content is of no matter."""

    def write(path: Path) -> None:
        path.write_bytes(b"weights")

    weights = workspace.store_weights(write)
    count = iter(range(100))

    def store(config: Mapping[str, Any] | None = None, **fields: Any) -> Artifact:
        draft = Manifest(
            kind="onnx",
            file="",
            sha256="",
            size_bytes=0,
            variant="tiny",
            precision=Precision.FP32,
            config={"image_size": 32, "num_heads": 2, **(config or {})},
            batch=None,
            target=Target.PORTABLE.value,
            weights={"sha256": weights, "source": {"kind": "random"}},
        )
        draft = dataclasses.replace(draft, **fields)

        def write(path: Path) -> Mapping[str, Any]:
            path.write_bytes(bytes([next(count)]))
            return {}

        return workspace.store(draft, write, stem="tiny")

    return store


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_bench` was asked, instead of its running; eager and ort-cpu alone run here."""
    asked: dict[str, Any] = {}

    def fake(cases: Sequence[BenchCase], **options: Any) -> BenchReport:
        asked.update(cases=list(cases), **options)
        return BenchReport(environment=None, results=())  # type: ignore[arg-type]  # not looked at

    monkeypatch.setattr(_bench, "run_bench", fake)
    monkeypatch.setattr(
        _bench,
        "why_not_runnable",
        lambda name, device: None if name in ("eager", "ort-cpu") else f"no {name} here",
    )
    return asked


def rows(cases: Sequence[BenchCase]) -> list[tuple[str, str | None, int]]:
    return [(case.backend, case.artifact, case.batch) for case in cases]


def test_every_artifact_and_one_reference_of_each_model(
    workspace: Workspace, add: Callable[..., Artifact], measured: dict[str, Any]
) -> None:
    one, two = add().path.name, add(precision=Precision.FP16).path.name
    report = bench_artifacts(workspace, BenchRequest(batches=(1, 8), threads=3))
    cases = measured["cases"]
    assert rows(cases) == [
        *(("eager", "tiny 32px reference", 1), ("ort-cpu", one, 1), ("ort-cpu", two, 1)),
        *(("eager", "tiny 32px reference", 8), ("ort-cpu", one, 8), ("ort-cpu", two, 8)),
    ]
    assert [case.precision for case in cases[:3]] == ["fp32", "fp32", "fp16"]
    assert len({case.model for case in cases}) == 1
    assert {case.request.threads for case in cases} == {3}
    not_run = {(row.backend, row.reason) for row in report.results}
    others = ("compile", "ort-cuda", "ort-tensorrt", "openvino", "tensorrt", "tensorrt-rtx")
    assert not_run == {(name, f"no {name} here") for name in others}
    assert all(row.status is BenchStatus.NOT_RUN for row in report.results)
    # nothing was built, so they have no artifact; the others are told of each
    assert {row.backend for row in report.results if row.artifact is None} == {
        *("tensorrt", "tensorrt-rtx"),
    }


def test_the_same_weights_in_other_dimensions_are_another_model(
    workspace: Workspace, add: Callable[..., Artifact], measured: dict[str, Any]
) -> None:
    """As 14 and 14_resnext: same names and shapes, other heads."""
    add(variant="14")
    add({"num_heads": 4}, variant="14_resnext")
    bench_artifacts(workspace, BenchRequest())
    eager = [case for case in measured["cases"] if case.backend == "eager"]
    files = [case for case in measured["cases"] if case.backend == "ort-cpu"]
    assert [case.artifact for case in eager] == ["14 32px reference", "14_resnext 32px reference"]
    assert len({case.model for case in eager}) == 2
    assert [case.model for case in files] == [case.model for case in eager]


def test_dynamic_ranges_are_for_onnx_runtime(
    workspace: Workspace,
    add: Callable[..., Artifact],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenVINO would compute such a graph in float32, and its session refuses to."""
    for name in ("why_not_runnable", "why_not_in"):
        monkeypatch.setattr(_bench, name, lambda *asked: None)
    details = {"quantization": {"mode": "dynamic"}}
    dynamic = add(precision=Precision.INT8, details=details).path.name
    static = add(precision=Precision.INT8).path.name
    request = BenchRequest(backends=("ort-cpu", "openvino"))
    report = bench_artifacts(workspace, request)
    assert rows(measured["cases"]) == [
        *(("ort-cpu", dynamic, 1), ("ort-cpu", static, 1), ("openvino", static, 1))
    ]
    assert [(row.backend, row.artifact, row.status) for row in report.results] == [
        ("openvino", dynamic, BenchStatus.NOT_RUN)
    ]


def test_what_the_cpu_does_not_run(
    workspace: Workspace, add: Callable[..., Artifact], measured: dict[str, Any]
) -> None:
    made = {
        "made for TensorRT; name it to run it on the CPU all the same": add(target="tensorrt"),
        "ONNX Runtime's CPU kernels have no bf16 matrix product": add(precision=Precision.BF16),
        "its batch is fixed at 4": add(batch=4),
    }
    report = bench_artifacts(workspace, BenchRequest())
    assert [case.backend for case in measured["cases"]] == ["eager"]
    found = {row.reason: row.artifact for row in report.results if row.backend == "ort-cpu"}
    assert found == {reason: artifact.path.name for reason, artifact in made.items()}

    for_tensorrt, bf16, fixed = made.values()
    bench_artifacts(workspace, BenchRequest(artifacts=(for_tensorrt.path,)))
    assert [case.artifact for case in measured["cases"]][1:] == [for_tensorrt.path.name]
    bench_artifacts(workspace, BenchRequest(artifacts=(fixed.path,), batches=(4,)))
    assert [case.artifact for case in measured["cases"]][1:] == [fixed.path.name]
    only = BenchRequest(artifacts=(bf16.path,), backends=("ort-cpu",))
    with pytest.raises(BackendError, match=r"nothing here can be measured: .*no bf16"):
        bench_artifacts(workspace, only)


def test_named_backends(
    workspace: Workspace, add: Callable[..., Artifact], measured: dict[str, Any]
) -> None:
    name = add().path.name
    report = bench_artifacts(workspace, BenchRequest(backends=("ort-cpu",)))
    assert rows(measured["cases"]) == [("ort-cpu", name, 1)]
    assert report.results == ()
    with pytest.raises(BackendError, match="backend openvino cannot run here: no openvino here"):
        bench_artifacts(workspace, BenchRequest(backends=("ort-cpu", "openvino")))


def test_a_batch_that_an_engine_does_not_take(
    workspace: Workspace,
    add: Callable[..., Artifact],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_bench, "why_not_runnable", lambda name, device: None)
    built = {"engine": {**ENGINE, "profiles": ["1:1:4", "8:8:16"]}}
    name = add(kind="engine", target="tensorrt", details=built).path.name
    report = bench_artifacts(
        workspace, BenchRequest(backends=("tensorrt-rtx",), batches=(4, 5, 16, 32))
    )
    assert rows(measured["cases"]) == [("tensorrt-rtx", name, 4), ("tensorrt-rtx", name, 16)]
    assert [(row.batch, row.reason) for row in report.results] == [
        (batch, "its profiles take 1:1:4, 8:8:16") for batch in (5, 32)
    ]


def test_what_a_session_is_told(
    workspace: Workspace,
    add: Callable[..., Artifact],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: set[int | None] = set()
    monkeypatch.setattr(_bench, "why_not_runnable", lambda name, device: asked.add(device))
    add(precision=Precision.FP16)
    bench_artifacts(workspace, BenchRequest(backends=("eager", "ort-tensorrt"), device=1))
    eager, tensorrt = (case.request for case in measured["cases"])
    assert asked == {1} and eager.device == tensorrt.device == 1
    assert (eager.precision, tensorrt.precision) == (None, Precision.FP16)
    assert tensorrt.cache == workspace.root / "cache" / "ort-tensorrt"


def test_a_backend_that_does_not_exist(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="there is no backend 'gpu'; known: eager, compile"):
        bench_artifacts(workspace, BenchRequest(backends=("gpu",)))


@pytest.mark.parametrize("known", [True, False], ids=["of an export", "of a foreign file"])
def test_an_engine_runs_on_the_backend_that_built_it(
    workspace: Workspace,
    add: Callable[..., Artifact],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    monkeypatch.setattr(_bench, "why_not_runnable", lambda name, device: None)
    unknown: dict[str, Any] = {} if known else {"weights": {}}
    built = {"engine": ENGINE}
    name = add(kind="engine", target="tensorrt", details=built, **unknown).path.name
    bench_artifacts(workspace, BenchRequest())
    expected = [("tensorrt-rtx", name, 1)]
    if known:
        reference = "tiny 32px reference"
        expected = [("eager", reference, 1), *expected]
    assert rows(measured["cases"]) == expected
    assert (measured["cases"][-1].model is not None) is known


def test_cuda_graphs_of_onnx_runtime(
    workspace: Workspace,
    add: Callable[..., Artifact],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_bench, "why_not_runnable", lambda name, device: None)
    add(target="tensorrt")
    bench_artifacts(
        workspace, BenchRequest(backends=["ort-cuda", "ort-tensorrt"], cuda_graphs=CudaGraphs.BOTH)
    )
    ways = [(case.backend, case.request.cuda_graph) for case in measured["cases"]]
    assert ways[-3:] == [("ort-cuda", True), ("ort-cuda", False), ("ort-tensorrt", True)]


@pytest.mark.parametrize(
    ("asked", "graphs"),
    [(CudaGraphs.ON, [True]), (CudaGraphs.OFF, [False]), (CudaGraphs.BOTH, [True, False])],
)
def test_engines_with_and_without_cuda_graphs(
    workspace: Workspace,
    add: Callable[..., Artifact],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: CudaGraphs,
    graphs: list[bool],
) -> None:
    monkeypatch.setattr(_bench, "why_not_runnable", lambda name, device: None)
    name = add(kind="engine", target="tensorrt", details={"engine": ENGINE}).path.name
    bench_artifacts(workspace, BenchRequest(cuda_graphs=asked))
    eager, *engines = measured["cases"]
    assert eager.backend == "eager"
    assert [case.request.cuda_graph for case in engines] == graphs
    names = {True: name, False: f"{name}, no CUDA graph"}
    assert [case.artifact for case in engines] == [names[graph] for graph in graphs]


def test_a_full_workspace_takes_no_longer(
    workspace: Workspace, add: Callable[..., Artifact], measured: dict[str, Any]
) -> None:
    add()
    bench_artifacts(workspace, BenchRequest(rounds=7))
    usual = measured["round_seconds"]
    for _ in range(60):
        add()
    bench_artifacts(workspace, BenchRequest(rounds=7))
    assert measured["round_seconds"] < usual
    assert len(measured["cases"]) * 7 * measured["round_seconds"] <= 100.1


def test_nothing_to_measure(
    workspace: Workspace, add: Callable[..., Artifact], measured: dict[str, Any]
) -> None:
    failed = add(verification={"status": "failed", "reason": "far off"})
    with pytest.raises(ArtifactError, match="nothing to bench; make an artifact first"):
        bench_artifacts(workspace, BenchRequest())
    with pytest.raises(ArtifactError, match=r"failed its check \(far off\).*--force"):
        bench_artifacts(workspace, BenchRequest(artifacts=(failed.path,)))
    bench_artifacts(workspace, BenchRequest(force=True))
    assert [case.backend for case in measured["cases"]] == ["eager", "ort-cpu"]
