"""Which artifacts are measured on which backends; nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.bench import BenchStatus
from t2t_deploy.commands import DocumentedBench
from t2t_deploy.commands._bench import CudaGraphs
from t2t_deploy.engine import engine_version
from t2t_deploy.errors import (
    ArtifactError,
    BackendError,
    MisfitError,
    UnavailableError,
    UsageError,
)
from t2t_deploy.types import Precision
from t2t_deploy.workspace import Artifact, Workspace

from ..manifests import store
from .benches import UnmeasuredBench


def _write_weights(path: Path) -> None:
    path.write_bytes(b"weights")


class Bench(UnmeasuredBench):
    """Of artifacts whose content is of no matter."""

    def rows(self) -> list[tuple[str, str | None, int]]:
        return [(case.backend, case.artifact, case.batch) for case in self.cases]

    def add(self, config: Mapping[str, Any] | None = None, **fields: Any) -> Artifact:
        """Store an artifact of the given facts; its content is of no matter."""
        weights = self.workspace.store_weights(_write_weights)
        usual: dict[str, Any] = {
            "config": {"image_size": 32, "num_heads": 2, **(config or {})},
            "weights": {"sha256": weights, "source": {"kind": "random"}},
        }
        content = bytes([len(self.workspace.artifacts())])
        return store(self.workspace, content, **(usual | fields))

    def add_engine(self, profiles: Sequence[str] = (), **fields: Any) -> str:
        """The file name of a portable engine that TensorRT-RTX built."""
        engine = {
            "backend": "tensorrt-rtx",
            "backend_version": engine_version("tensorrt-rtx"),
            "sm": ["portable"],
            "profiles": list(profiles),
        }
        built: dict[str, Any] = {"kind": "engine", "target": "tensorrt"}
        return self.add(**built, details={"engine": engine}, **fields).path.name


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Eager and ort-cpu alone run here."""
    made = Bench(Workspace(tmp_path / "artifacts"), monkeypatch)
    made.backends("eager", "ort-cpu")
    return made


@pytest.fixture
def all_run(bench: Bench) -> None:
    """Every backend runs here."""
    bench.backends()


def test_every_artifact_and_one_reference_of_each_model(bench: Bench) -> None:
    one, two = bench.add().path.name, bench.add(precision=Precision.FP16).path.name
    report = bench(batch=(1, 8), threads=3)
    cases = bench.cases
    rows = (("eager", "tiny 32px reference"), ("ort-cpu", one), ("ort-cpu", two))
    assert bench.rows() == [(*row, batch) for batch in (1, 8) for row in rows]
    assert [case.precision for case in cases[:3]] == ["fp32", "fp32", "fp16"]
    assert len({case.model for case in cases}) == 1
    assert {case.request.threads for case in cases} == {3}
    not_run = {(row.backend, row.reason) for row in report.results}
    others = ("compile", "ort-cuda", "ort-tensorrt", "openvino", "tensorrt", "tensorrt-rtx")
    assert not_run == {(name, f"no {name} here") for name in others}
    assert all(row.status is BenchStatus.NOT_RUN for row in report.results)
    # nothing was built, so they have no artifact; the others are told of each
    no_artifact = {row.backend for row in report.results if row.artifact is None}
    assert no_artifact == {"tensorrt", "tensorrt-rtx"}


def test_the_same_weights_in_other_dimensions_are_another_model(bench: Bench) -> None:
    """As 14 and 14_resnext: same names and shapes, other heads."""
    bench.add(variant="14")
    bench.add({"num_heads": 4}, variant="14_resnext")
    bench()
    eager = [case for case in bench.cases if case.backend == "eager"]
    files = [case for case in bench.cases if case.backend == "ort-cpu"]
    assert [case.artifact for case in eager] == ["14 32px reference", "14_resnext 32px reference"]
    assert len({case.model for case in eager}) == 2
    assert [case.model for case in files] == [case.model for case in eager]


def test_dynamic_ranges_are_for_onnx_runtime(bench: Bench, all_run: None) -> None:
    """OpenVINO would compute such a graph in float32, and its session refuses to."""
    bench.computes()
    details = {"quantization": {"mode": "dynamic"}}
    dynamic = bench.add(precision=Precision.INT8, details=details).path.name
    static = bench.add(precision=Precision.INT8).path.name
    report = bench(backend=("ort-cpu", "openvino"))
    assert bench.rows() == [
        *(("ort-cpu", dynamic, 1), ("ort-cpu", static, 1), ("openvino", static, 1))
    ]
    assert [(row.backend, row.artifact, row.status) for row in report.results] == [
        ("openvino", dynamic, BenchStatus.NOT_RUN)
    ]


def test_what_the_cpu_does_not_run(bench: Bench) -> None:
    made = {name: bench.add(target=name.lower()) for name in ("TensorRT", "CUDA", "ncnn")}
    bf16, fixed = bench.add(precision=Precision.BF16), bench.add(batch=4)
    reasons = {
        **{
            f"made for {name}; name it to run it on the CPU all the same": artifact.path.name
            for name, artifact in made.items()
        },
        "ONNX Runtime's CPU kernels have no bf16 matrix product": bf16.path.name,
        "its batch is fixed at 4: measure that, or export with batch dynamic": fixed.path.name,
    }
    with pytest.raises(MisfitError, match="nothing here can be measured: its batch is fixed at 4"):
        bench()
    assert bench.cases == []
    bench.add()
    report = bench()
    assert [case.backend for case in bench.cases] == ["eager", "ort-cpu"]
    found = {row.reason: row.artifact for row in report.results if row.backend == "ort-cpu"}
    assert found == reasons

    bench(artifacts=(made["TensorRT"].path,))
    assert [case.artifact for case in bench.cases][1:] == [made["TensorRT"].path.name]
    bench(artifacts=(fixed.path,), batch=(4,))
    assert [case.artifact for case in bench.cases][1:] == [fixed.path.name]
    with pytest.raises(UnavailableError, match=r"nothing here can be measured: .*no bf16"):
        bench(artifacts=(bf16.path,), backend=("ort-cpu",))


@pytest.mark.parametrize(
    ("batch", "backend", "error"),
    [
        (1, (), UnavailableError),
        (1, ("ort-cpu",), MisfitError),
        (8, (), MisfitError),
        (8, ("ort-cpu",), MisfitError),
        (8, ("eager",), None),
    ],
)
def test_no_artifact_to_measure_is_a_misfit_unless_a_tool_lacks(
    bench: Bench, batch: int, backend: tuple[str, ...], error: type[Exception] | None
) -> None:
    """A graph of batch 1 that is made for TensorRT, which is not here."""
    bench.add(target="tensorrt", batch=1)
    refused = nullcontext() if error is None else pytest.raises(error)
    with refused:
        bench(batch=batch, backend=backend)
    assert [case.backend for case in bench.cases] == [*backend][error is not None :]


def test_named_backends(bench: Bench) -> None:
    name = bench.add().path.name
    report = bench(backend=("ort-cpu",))
    assert bench.rows() == [("ort-cpu", name, 1)]
    assert report.results == ()
    with pytest.raises(BackendError, match="backend openvino cannot run here: no openvino here"):
        bench(backend=("ort-cpu", "openvino"))


def test_every_case_in_as_many_streams_as_asked(bench: Bench) -> None:
    name = bench.add().path.name
    report = bench(batch=(1, 8), threads=4, streams=[1, 2, 4])
    ways = [(batch, streams) for batch in (1, 8) for streams in (1, 2, 4)]
    for backend, artifact in (("eager", "tiny 32px reference"), ("ort-cpu", name)):
        cases = [case for case in bench.cases if case.backend == backend]
        assert [(case.batch, case.request.streams) for case in cases] == ways
        assert {case.artifact for case in cases} == {artifact}
        assert {case.request.threads for case in cases} == {4}
    for backend in ("openvino", "tensorrt"):  # what cannot run says so of each
        rows = [row for row in report.results if row.backend == backend]
        assert [(row.batch, row.streams) for row in rows] == ways
    bench(threads=4)
    assert {case.request.streams for case in bench.cases} == {1}


def test_more_streams_than_threads_are_refused(bench: Bench) -> None:
    bench.add()
    message = (
        "streams is 3, threads 2; each stream takes a thread at least: ask for 2 or fewer, or for "
        "3 threads"
    )
    with pytest.raises(UsageError, match=f"^{message}$"):
        bench(threads=2, streams=(1, 3))
    assert bench.cases == []


def test_streams_on_a_gpu_are_rows_that_say_why_not(bench: Bench, all_run: None) -> None:
    name = bench.add(target="tensorrt").path.name
    report = bench(backend=("eager", "ort-cuda"), device=0, threads=2, streams=(1, 2))
    assert [case.request.streams for case in bench.cases] == [1, 1]
    assert [(row.backend, row.artifact, row.streams, row.reason) for row in report.results] == [
        (backend, artifact, 2, "streams share the threads of a CPU; measure it with --streams 1")
        for backend, artifact in (("eager", "tiny 32px reference"), ("ort-cuda", name))
    ]


def test_a_batch_that_an_engine_does_not_take(bench: Bench, all_run: None) -> None:
    name = bench.add_engine(profiles=["1:1:4", "8:8:16"])
    report = bench(backend=("tensorrt-rtx",), batch=(4, 5, 16, 32))
    assert bench.rows() == [("tensorrt-rtx", name, 4), ("tensorrt-rtx", name, 16)]
    assert [(row.batch, row.reason) for row in report.results] == [
        (batch, "its profiles take 1:1:4, 8:8:16") for batch in (5, 32)
    ]


def test_what_a_session_is_told(bench: Bench, all_run: None) -> None:
    bench.add(precision=Precision.FP16)
    bench(backend=("eager", "ort-tensorrt"), device=1)
    eager, tensorrt = (case.request for case in bench.cases)
    assert bench.devices == {1} and eager.device == tensorrt.device == 1
    assert (eager.precision, tensorrt.precision) == (None, Precision.FP16)
    assert tensorrt.cache == bench.workspace.root / "cache" / "ort-tensorrt"


def test_a_backend_that_does_not_exist(bench: Bench) -> None:
    with pytest.raises(UsageError, match="backend is 'gpu'; expected one of 'eager', 'compile'"):
        bench(backend="gpu")


@pytest.mark.parametrize("known", [True, False], ids=["of an export", "of a foreign file"])
def test_an_engine_runs_on_its_builder(bench: Bench, all_run: None, known: bool) -> None:
    unknown: dict[str, Any] = {} if known else {"weights": {}}
    name = bench.add_engine(**unknown)
    bench()
    reference = [("eager", "tiny 32px reference", 1)] if known else []
    assert bench.rows() == [*reference, ("tensorrt-rtx", name, 1)]
    assert (bench.cases[-1].model is not None) is known


def test_cuda_graphs_of_onnx_runtime(bench: Bench, all_run: None) -> None:
    bench.add(target="tensorrt")
    bench(backend=["ort-cuda", "ort-tensorrt"], cuda_graphs=CudaGraphs.BOTH)
    ways = [(case.backend, case.request.cuda_graph) for case in bench.cases]
    assert ways[-3:] == [("ort-cuda", True), ("ort-cuda", False), ("ort-tensorrt", True)]


@pytest.mark.parametrize(
    ("asked", "graphs"),
    [(CudaGraphs.ON, [True]), (CudaGraphs.OFF, [False]), (CudaGraphs.BOTH, [True, False])],
)
def test_engines_with_and_without_cuda_graphs(
    bench: Bench, all_run: None, asked: CudaGraphs, graphs: list[bool]
) -> None:
    name = bench.add_engine()
    bench(cuda_graphs=asked)
    eager, *engines = bench.cases
    assert eager.backend == "eager"
    assert [case.request.cuda_graph for case in engines] == graphs
    names = {True: name, False: f"{name}, no CUDA graph"}
    assert [case.artifact for case in engines] == [names[graph] for graph in graphs]


def test_a_full_workspace_takes_no_longer(bench: Bench) -> None:
    bench.add()
    bench(rounds=7)
    usual = bench.options["round_seconds"]
    for _ in range(60):
        bench.add()
    bench(rounds=7)
    assert bench.options["round_seconds"] < usual
    assert len(bench.cases) * 7 * bench.options["round_seconds"] <= 100.1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interruption_brings_what_was_measured(bench: Bench, kind: type[BaseException]) -> None:
    bench.add()
    bench.interruption = kind()
    with pytest.raises(kind) as stopped:
        bench()
    assert stopped.value is bench.interruption
    partial = bench.interruption.partial  # type: ignore[attr-defined]
    assert isinstance(partial, DocumentedBench)
    assert {row.status for row in partial.report.results} == {BenchStatus.NOT_RUN}


def test_nothing_to_measure(bench: Bench) -> None:
    failed = bench.add(verification={"status": "failed", "reason": "far off"})
    with pytest.raises(ArtifactError, match="nothing to bench; make an artifact first"):
        bench()
    with pytest.raises(ArtifactError, match=r"failed its check \(far off\).*--force"):
        bench(artifacts=(failed.path,))
    bench(force=True)
    assert [case.backend for case in bench.cases] == ["eager", "ort-cpu"]
