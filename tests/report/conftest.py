"""A bench made by hand, with something in every part of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from t2t_deploy.bench import (
    BenchReport,
    BenchStatus,
    CaseResult,
    Latency,
    Round,
    Speedup,
    WarmUp,
    compare_reports,
)
from t2t_deploy.report import BenchDocument, TuneSummary
from t2t_deploy.types import Precision
from t2t_deploy.workspace import Manifest

from ..manifests import DRAFT
from ..reports import GPU, HERE, SETTINGS

Row = Callable[..., CaseResult]


# closes what text may stand in: an attribute, a tag, a script, a style, a comment
HOSTILE = (
    "\"'></title></style></script>--><script>document.title = 'run'</script>"
    "<img src=x onerror=\"document.title = 'run'\"><svg/onload=\"document.title='run'\">"
)


def measured_row(
    backend: str = "ort-cpu",
    artifact: str | None = "a.onnx",
    precision: str = "fp32",
    batch: int = 1,
    *,
    p50: float = 50.0,
    **fields: Any,
) -> CaseResult:
    """Five rounds of ten samples that spread by a few percent around the median asked for."""
    samples = p50 * (1 + 0.02 * np.linspace(-1, 1, 50))
    rounds = samples[np.arange(50).reshape(10, 5).T]  # each round has its share of all
    made = CaseResult(
        *(backend, artifact, precision, batch, BenchStatus.OK),
        latency_ms=Latency(p50, p50 * 1.016, p50 * 1.02, p50, p50 / 90, tuple(samples.tolist())),
        images_per_s=batch * 1e3 / p50,
        baseline_rss_bytes=40_000_000,
        peak_rss_bytes=240_000_000,
        spread=0.005,
        load_ms=400.0,
        first_call_ms=70.0,
        warm_up=WarmUp(9, stable=True),
        rounds=tuple(Round(n, 1, tuple(one.tolist())) for n, one in enumerate(rounds, start=1)),
    )
    return dataclasses.replace(made, **fields)


def manifest_of(name: str, error: float | None = 7e-7, **fields: Any) -> Manifest:
    verification: Mapping[str, Any] = {
        "status": "passed" if error is not None else "not_run",
        "rel_l2": error,
        "tolerance": 1e-5,
        "reason": None if error is not None else "no device",
        "pictures": {"noise 0": error, "coffee": error},
    }
    made = dataclasses.replace(
        DRAFT,
        file=name,
        sha256="c0ffee" * 10,
        size_bytes=86_000_000,
        variant="14",
        config={"image_size": 224, "num_classes": 1000},
        target="cpu",
        weights={
            "sha256": "beef" * 16,
            "source": {
                "kind": "checkpoint",
                "file": "14.pth.tar",
                "sha256": "feed" * 16,
                "container": "zip",
            },
        },
        opset=18,
        strategies={
            "soft_split": ["conv", "folded"],
            "query_groups": 1,
            "fuse_attention": True,
        },
        parents=({"kind": "weights", "sha256": "beef" * 16},),
        verification=verification,
        tools={"torch": "2.13.0", "onnx": "1.23.2"},
        created="2026-01-02T02:00:00+00:00",
    )
    return dataclasses.replace(made, **fields)


def document_of(
    *rows: CaseResult, artifacts: Mapping[str, Manifest] | None = None, **fields: Any
) -> BenchDocument:
    report = BenchReport(fields.pop("environment", HERE), rows, SETTINGS)
    return BenchDocument(report, "t2t-deploy bench", artifacts or {}, **fields)


@pytest.fixture
def document() -> BenchDocument:
    """Three series at two batches, one failed, two not run, compared with an older bench."""
    rows = (
        measured_row("eager", "14 224px reference", p50=100.0),
        measured_row(artifact="fast.onnx", p50=40.0, speedup_vs_eager=Speedup(2.5, 2.4, 2.625)),
        measured_row(
            artifact="half.onnx",
            precision="fp16",
            p50=60.0,
            speedup_vs_eager=Speedup(1.75, 1.5, 2.0),
            unstable=True,
            spread=0.234,
            warm_up=WarmUp(9, stable=False),
            peak_rss_bytes=None,
        ),
        measured_row("eager", "14 224px reference", batch=8, p50=700.0),
        measured_row(artifact="fast.onnx", batch=8, p50=280.0),
        measured_row(artifact="half.onnx", precision="fp16", batch=8, p50=320.0),
        CaseResult("openvino", "fast.onnx", "bf16", 1, BenchStatus.FAILED, "KeyError: [x]"),
        *(
            CaseResult(backend, "fast.onnx", "fp32", 1, BenchStatus.NOT_RUN, "no device")
            for backend in ("ort-cuda", "tensorrt")
        ),
    )
    old = BenchReport(HERE, (measured_row(artifact="fast.onnx", p50=60.0),), SETTINGS)
    made = document_of(
        *rows,
        artifacts={
            "fast.onnx": manifest_of("fast.onnx"),
            "half.onnx": manifest_of("half.onnx", 9.65e-4, precision=Precision.FP16, sequence=1),
        },
    )
    comparison = compare_reports(old, made.report, name="old.json")
    return dataclasses.replace(made, comparison=comparison)


@pytest.fixture
def unlike(document: BenchDocument) -> BenchDocument:
    """The same with what only some benches have: GPUs, random weights, parents, notes."""
    environment = dataclasses.replace(HERE, gpus=(GPU,), governor=None)
    drawn = {"sha256": "0" * 64, "source": {"kind": "random", "seed": "5"}}
    parents = ({"kind": "onnx", "file": "parent.onnx", "sha256": "abc123" * 10},)
    manifests = {
        "fast.onnx": manifest_of("fast.onnx", None, weights=drawn, parents=parents),
        "half.onnx": manifest_of("half.onnx", weights={}, parents=parents),
    }
    assert document.comparison is not None
    comparison = dataclasses.replace(document.comparison, notes=("torch was 2.12",))
    report = dataclasses.replace(document.report, environment=environment)
    return dataclasses.replace(document, report=report, artifacts=manifests, comparison=comparison)


def hostile(value: Any) -> Any:
    """The value with every text in it, at any depth, replaced; what must be a known word stays."""
    if isinstance(value, BenchStatus) or value in (None, "random"):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {f.name: hostile(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    if type(value) is str:
        return HOSTILE + value
    if isinstance(value, dict):
        # names that are looked for, and names that are shown
        changed = {key: hostile(one) for key, one in value.items()}
        return changed | {hostile(key): one for key, one in changed.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(hostile(one) for one in value)
    return value


@pytest.fixture
def tuned(document: BenchDocument) -> BenchDocument:
    """The same as a tune has it, with hostile names and reasons."""
    row = {
        **{"name": "cpu-int8", "streams": 2, "verdict": "pick", "ms": 2.5, "error": 6e-3},
        **{"times": Speedup(1.0, 1.0, 1.0), "drop": 0.25, "size": 28e6, "memory": 5e7},
        "reason": "",
    }
    untried = dict.fromkeys(row) | {"name": "openvino", "streams": 1, "verdict": "not tried"}
    rows = (row, untried | {"reason": HOSTILE})
    errors = dict.fromkeys(document.artifacts, 0.0123)
    summary = TuneSummary("cpu-int8", f"the fastest {HOSTILE}", errors, "The mean.", rows, 0.02)
    return dataclasses.replace(document, tuning=summary)
