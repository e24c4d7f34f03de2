"""A command killed at any moment: nothing is lost, the workspace is whole, the next command works.

Exactly: before each change it makes to a file or folder, one after the other, until it is done.
And at random moments, which hit what compiled code writes too.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from t2t_deploy._files import file_sha256
from t2t_deploy.types import Precision
from t2t_deploy.workspace import Workspace, manifest_path_for

from ..needs import needs_tensorrt_rtx
from .conftest import Commands

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
EXPORT = ("export", "--config", "tiny.toml")
BENCH = ("bench", "model.onnx", "--backend", "ort-cpu", "--rounds", 5)


@dataclass(frozen=True)
class Case:
    """A command, and how it ends: 3 where a tiny random model loses too much in 8 bits.

    every: of how many kills one is followed by the whole command again, which takes long.
    """

    words: tuple[object, ...]
    status: int = 0
    littered: bool = False
    every: int = 8


CASES = {
    "export": Case((*EXPORT, "--batch", 4)),
    "export-again": Case((*EXPORT, "--batch", 1)),
    "export-over": Case((*EXPORT, "--batch", 3, "-o", "model.onnx")),
    "export-elsewhere": Case((*EXPORT, "--batch", 3, "-o", "other/new.onnx")),
    "calibrate": Case(("calibrate", "--images", "pictures")),
    "quantize": Case(("quantize", "--images", "pictures"), 3, every=20),
    "build-trt": Case(("build-trt", "--fp32", "--sm", "86", "-o", "model.engine")),
    "verify": Case(("verify", "model.onnx", "--nodewise")),
    "evaluate": Case(("evaluate", "model.onnx", "--images", "pictures", "--confusion", "plot.png")),
    "bench": Case((*BENCH, "--report", "report.html", "--csv", "bench.csv"), every=20),
    "tune": Case(("tune", "--config", "tiny.toml", "--within", 0.001), every=20),
    "predict": Case(("predict", "model.onnx", "pictures", "--csv", "classes.csv", "--top", 2)),
    "inspect": Case(("inspect", "model.onnx")),
    "package": Case(("package", "model.onnx", "--triton", "repository", "--name", "m")),
    "package-web": Case(("package", "model.onnx", "--web", "page", "--ort-web", "runtime")),
    "workspace-list": Case(("workspace", "list")),
    "workspace-check": Case(("workspace", "check")),
    "workspace-prune": Case(("workspace", "prune", ".", "--cache"), littered=True),
    "doctor": Case(("doctor",)),
}


def slowly(
    *values: object, only: Iterable[str] = CASES, without: tuple[str, ...] = ()
) -> list[Any]:
    """Every command, with these values: for `make test-slow`."""
    return [
        pytest.param(
            *(name, *values),
            marks=[pytest.mark.slow, *([needs_tensorrt_rtx] if name == "build-trt" else [])],
            id=name,
        )
        for name in only
        if name not in without
    ]


def litter(folder: Path) -> None:
    """What killed commands leave, made by hand."""
    root = folder / "artifacts"
    for path in (root / "onnx/.t2t-tmp-1.onnx", root / "cache/compile/a", folder / ".t2t-tmp-2"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a file")
    for name in ("a", "b/c"):
        path = root / ".t2t-tmp-3" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".t2t-tmp-*"))


def held_files(folder: Path) -> dict[str, str]:
    """Content of what no command below may change: all but manifests and outputs."""
    paths = [folder / "tiny.toml", *folder.glob("pictures/*/*")]
    paths += [*folder.glob("artifacts/onnx/*.onnx"), *folder.glob("artifacts/weights/*")]
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


def check(command: Commands, folder: Path) -> None:
    """Nothing is lost, and the workspace is whole."""
    before, now = held_files(command.site), held_files(folder)
    now = {name: digest for name, digest in now.items() if ".t2t-tmp-" not in name}
    assert {name: now.get(name) for name in before} == before
    assert command(folder, "workspace", "check", "--json", status=0).json["problems"] == []
    model = Workspace(folder / "artifacts").open(folder / "model.onnx").require_manifest()
    assert model.batch in (None, 3) and model.precision is Precision.FP32
    lines = (folder / "classes.csv").read_text().splitlines()
    check_page(folder / "page")
    assert len(lines) == 7 and {line.count(",") for line in lines} <= {4, 7}
    assert not any(worker_of(folder))


def check_page(page: Path) -> None:
    """A page is whole, or moved out for the next command to move back."""
    if page.exists():
        files = json.loads((page / "t2t-deploy.json").read_text())["files"]
        assert {name: file_sha256(page / name) for name in files} == files


def worker_of(folder: Path) -> list[psutil.Process]:
    """Worker processes of a bench that ran there, once they had time to see that it is gone."""

    running = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(folder)
        and "t2t_deploy.bench._worker" in (process.info["cmdline"] or [])
    ]
    return psutil.wait_procs(running, timeout=20)[1]


def check_rest(command: Commands, folder: Path, case: Case) -> None:
    """The same command works now, what was left behind can be removed, and doctor is content."""
    command(folder, *case.words, status=case.status)
    models = [
        sorted(path.name for path in (each / "repository").iterdir())
        for each in (command.site, folder)
    ]
    assert models[0] == models[1] and len(models[0]) > 1
    check_page(folder / "page")
    assert (folder / "page").exists()
    folders = (folder, folder / "repository", folder / "other")
    command(folder, "workspace", "prune", *filter(Path.is_dir, folders), status=0)
    assert temporaries(folder) == []
    assert not list((folder / "artifacts").rglob("*.partial"))
    done = command(folder, "doctor", "--workspace", "artifacts", "--json", status=0)
    assert done.json["workspace"]["problems"] == []
    assert done.json["workspace"]["leftovers"] == []


def prepared(folder: Path, case: Case) -> Path:
    if case.littered:
        litter(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("predict", [3, 4, 5]),
        ("package", [36, 38, 40]),
        ("package-web", [48, 52, 50]),
        ("workspace-prune", [2, 4, 6]),
        *slowly(None),
    ],
)
def test_killed_at_each_change(command: Commands, name: str, points: list[int] | None) -> None:
    """Before each change, or before some; a check and the next command after each kill."""
    case, kills = CASES[name], 0
    whole = command(prepared(command.copy(), case), *case.words, status=case.status)
    moments = points or range(1, whole.changes + 1)
    for at in moments:
        folder = prepared(command.copy(), case)
        done = command(folder, *case.words, at=at)
        # some changes are up to the machine: a bench may need fewer
        if done.status == -signal.SIGKILL:
            kills += 1
        else:
            assert (done.status, at > done.changes) == (case.status, True)
        check(command, folder)
        if at == moments[-1] or at % case.every == 0:
            check_rest(command, folder, case)
        shutil.rmtree(folder)
    print(f"{name}: killed before each of {kills} changes")
    assert points is None or kills == len(points)


@pytest.mark.parametrize(
    ("name", "number"), [*slowly(signal.SIGKILL), *slowly(signal.SIGINT, only=("build-trt",))]
)
def test_killed_at_20_moments(command: Commands, name: str, number: signal.Signals) -> None:
    case, stream, kills = CASES[name], random.Random(0), 0
    whole_s = min(command(prepared(command.copy(), case), *case.words).seconds for _ in range(2))
    latest = 1.0
    # before the program has started, Python itself answers Ctrl-C
    cut_short = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGINT: (130, 99, 1)}[number]
    while kills < 20:
        folder = prepared(command.copy(), case)
        engine = folder / "model.engine"
        after_s = stream.uniform(0, latest * whole_s)
        done = command(folder, *case.words, after_s=after_s, number=number)
        assert done.status in (case.status, *cut_short)
        kills += done.status in cut_short
        latest *= 1 if done.status in cut_short else 0.95
        check(command, folder)
        assert engine.exists() == manifest_path_for(engine).exists()
        if kills % 10 == 0:
            check_rest(command, folder, case)
        shutil.rmtree(folder)
    print(f"{name}: killed at {kills} random moments of {whole_s:.2f} s")
