"""A tiny model with its pictures, tuned once with ONNX Runtime alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.bench import _run
from t2t_deploy.errors import UnavailableError
from t2t_deploy.runtime import BACKENDS
from t2t_deploy.tuning import Tuning, _plan, _race, tune
from t2t_deploy.tuning._plan import CPU_WAYS

from ..bench.conftest import FAKE_WORKER
from ..noise import write_noise
from ..small import TINY_FOR_8_BITS

WITHOUT = "openvino is not installed: pip install 't2t-deploy[openvino]'"


def tuned(folder: Path, **options: Any) -> Tuning:
    """The tiny model of a folder, tuned in its workspace."""
    given: dict[str, Any] = {
        "config": folder / "tiny.toml",
        "images": folder / "train",
        "eval": folder / "val",
        "threads": 1,
        "workspace": folder / "artifacts",
    }
    return tune(**given | options)


def _shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made is real; what is timed is a session that computes nothing."""
    monkeypatch.setattr(_race, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(_race, "MOST_ROUNDS", 6)
    monkeypatch.setattr(_run, "WORKER_COMMAND", FAKE_WORKER)
    monkeypatch.setattr(_run, "WARM_UP_LIMIT_S", 0.05)
    few = [way for way in CPU_WAYS if "opset18" not in way.name and "static" not in way.name]
    monkeypatch.setattr(_plan, "CPU_WAYS", tuple(few))


@pytest.fixture(autouse=True)
def short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for slow tests, which time the real sessions."""
    if request.node.get_closest_marker("slow") is None:
        _shorten(monkeypatch)


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where nothing but ONNX Runtime is installed."""
    _hide_openvino(monkeypatch)


def _hide_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = UnavailableError(WITHOUT)
    (name,) = (b.name for b in BACKENDS.values() if b.name == "openvino")
    changed = BACKENDS[name].__class__
    original = changed.run_unavailable

    def unavailable(self: Any, device: int | None = None) -> Any:
        return lacking if self.name == name else original(self, device)

    monkeypatch.setattr(changed, "run_unavailable", unavailable)


@pytest.fixture(scope="session")
def folder_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune") / "here"
    for index in range(8):
        write_noise(folder / "train" / f"{index}.png", seed=index)
        write_noise(folder / "val" / f"{index}.png", seed=100 + index)
    (folder / "tiny.toml").write_text(TINY_FOR_8_BITS)
    return folder


@pytest.fixture
def folder(folder_once: Path, tmp_path: Path) -> Path:
    """The pictures, and nothing made yet."""
    return Path(shutil.copytree(folder_once, tmp_path / "here"))


@pytest.fixture(scope="session")
def done_once(folder_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tuning]:
    folder = tmp_path_factory.mktemp("tuned") / "here"
    shutil.copytree(folder_once, folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _hide_openvino(monkeypatch)
        _shorten(monkeypatch)
        return folder, tuned(folder)


@pytest.fixture
def done(done_once: tuple[Path, Tuning], tmp_path: Path, without_openvino: None) -> Path:
    """A folder of one's own, tuned."""
    return Path(shutil.copytree(done_once[0], tmp_path / "here"))
