"""Which runtime an artifact is predicted with, and what its classes are called."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from t2t_deploy._limits import Limits
from t2t_deploy.commands._artifacts import note_session
from t2t_deploy.commands._predict import classifier_request, labels_for
from t2t_deploy.errors import BackendError, UsageError
from t2t_deploy.runtime import SessionRequest
from t2t_deploy.types import GraphIO, ShapeProfile, Tail
from t2t_deploy.workspace import Artifact, Workspace

from ..manifests import DRAFT

HERE = Workspace(Path())
ROOM = "t2t_deploy.commands._predict"
RUNS = "t2t_deploy.commands._artifacts"


@pytest.fixture
def everything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{RUNS}.why_not_runnable", lambda *_: None)


def artifact(kind: str = "onnx", **details: Any) -> Artifact:
    return Artifact(Path("model"), dataclasses.replace(DRAFT, kind=kind, details=details))


def test_an_onnx_file_runs_on_the_cpu() -> None:
    made = classifier_request(HERE, artifact(image_input="uint8_nhwc", tail="topk"))
    assert (made.session.backend, made.session.path) == ("ort-cpu", Path("model"))
    assert made.graph_io == GraphIO(embed_preprocess=True, tail=Tail.TOPK)
    assert (made.batch, made.profile) == (8, None)


def test_an_engine_runs_where_it_was_built_for(everything_runs: None) -> None:
    info = {"backend": "tensorrt-rtx", "backend_version": "1", "sm": ["86"]}
    engine = artifact("engine", engine={**info, "profiles": ["1:1:4", "2:8:32"]})
    made = classifier_request(HERE, engine, device=1)
    assert (made.session.backend, made.session.device) == ("tensorrt-rtx", 1)
    assert made.profile == ShapeProfile(2, 8, 32)
    with pytest.raises(UsageError, match="expected tensorrt, tensorrt-rtx"):
        classifier_request(HERE, engine, backend="ort-cpu")


def test_an_engine_without_manifest_needs_a_name(everything_runs: None, tmp_path: Path) -> None:
    foreign = Artifact(tmp_path / "model.engine", None)
    foreign.path.write_bytes(b"an engine")
    with pytest.raises(UsageError, match="its runtime is unknown; name it"):
        classifier_request(HERE, foreign)
    made = classifier_request(HERE, foreign, backend="tensorrt")
    assert made.session.backend == "tensorrt"


def test_what_cannot_run_is_no_other_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{RUNS}.why_not_runnable", lambda *_: "there is no driver")
    with pytest.raises(BackendError, match="ort-cuda cannot run here: there is no driver"):
        classifier_request(HERE, artifact(), backend="ort-cuda")


@pytest.mark.parametrize(
    ("classes", "installed", "note"),
    [
        (10, True, "there are no labels for these classes: --labels FILE"),
        (1000, False, "there are no labels for these classes: pip install 't2t-deploy[labels]'"),
        (1000, True, "labels are ImageNet's; --labels FILE names other classes"),
    ],
)
def test_labels_and_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, classes: int, installed: bool, note: str
) -> None:
    found = tuple(map(str, range(1000)))
    monkeypatch.setattr(f"{ROOM}.is_installed", lambda _: installed)
    monkeypatch.setattr(f"{ROOM}.imagenet_labels", lambda: found)
    progress = Mock()
    labels = labels_for(artifact(), None, classes, progress)
    ((said,), _) = progress.note.call_args
    assert progress.note.call_count == 1 and said.startswith(note)
    assert labels.names == (found if classes == 1000 and installed else ())


@pytest.mark.parametrize(
    ("backend", "asked", "limits", "notes"),
    [
        (
            *("ort-cpu", None, Limits(4, 1.5)),
            ["computing with 2 threads: a quota of 1.5 processors is set here; --threads N takes"],
        ),
        ("eager", None, Limits(4, 0.5), ["computing with 1 thread: a quota of 0.5 processors"]),
        ("ort-cpu", 4, Limits(4, 1.5), []),
        ("ort-cpu", None, Limits(4, 3.5), []),
        ("ort-cpu", None, Limits(4), []),
        ("tensorrt", None, Limits(4, 1.5), []),
    ],
)
def test_threads_of_a_quota_are_said_where_none_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    asked: int | None,
    limits: Limits,
    notes: list[str],
) -> None:
    for room in (RUNS, "t2t_deploy.runtime._session"):
        monkeypatch.setattr(f"{room}.read_limits", lambda: limits)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    progress = Mock()
    note_session(SessionRequest(backend, Path("model"), asked), progress)
    said = [call.args[0] for call in progress.note.call_args_list]
    assert len(said) == len(notes)
    assert all(text.startswith(note) for text, note in zip(said, notes, strict=True))
