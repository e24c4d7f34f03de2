"""The command line in process, in an empty folder, over a tiny model exported and built once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import t2t_deploy
from t2t_deploy._files import file_sha256
from t2t_deploy._optional import is_installed
from t2t_deploy.cli import main
from t2t_deploy.workspace import manifest_path_for, manifest_text

from ..small import TINY


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout; whatever else stands there fails."""
        return json.loads(self.out)


def exit_status(*words: object) -> int:
    caught = [getattr(signal, n) for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = [signal.getsignal(number) for number in caught]
    try:
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in a folder of its own, `./artifacts` being its workspace."""
    monkeypatch.delenv("T2T_DEPLOY_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command line; what compiled code prints is seen as well."""

    def call(*words: object) -> Done:
        capfd.readouterr()
        status = exit_status(*words)
        out, err = capfd.readouterr()
        return Done(status, out, err)

    return call


@pytest.fixture(scope="session")
def tiny_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For processes of our own: the package is importable, installed or not."""
    root = Path(t2t_deploy.__file__).parents[1]
    kept = {name: value for name, value in os.environ.items() if name != "T2T_DEPLOY_WORKSPACE"}
    return kept | {"PYTHONPATH": str(root)}


@pytest.fixture(scope="session")
def program() -> list[str]:
    return [sys.executable, "-m", "t2t_deploy"]


def _made(workspace: Path, *commands: tuple[object, ...]) -> Path:
    for words in commands:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = exit_status(*words, "--workspace", workspace)
        assert status == 0, printed.getvalue()
    return workspace


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory, tiny_toml: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "artifacts"
    return _made(folder, ("export", "--config", tiny_toml))


@pytest.fixture(scope="session")
def tensorrt_rtx() -> None:
    """Skip, with the reason, what needs the engine builder where it has no wheel."""
    if not is_installed("tensorrt_rtx"):
        pytest.skip("tensorrt_rtx is not installed")


@pytest.fixture(scope="session")
def built_once(
    tmp_path_factory: pytest.TempPathFactory, tiny_toml: Path, tensorrt_rtx: None
) -> Path:
    """An fp16 graph of batch 1 made for TensorRT, and its engine."""
    folder = tmp_path_factory.mktemp("built") / "artifacts"
    form = ("--batch", 1, "--precision", "fp16", "--target", "tensorrt")
    return _made(
        folder,
        ("export", "--config", tiny_toml, *form),
        ("build-trt", "--sm", "86"),
    )


@pytest.fixture
def workspace(exported_once: Path, empty_folder: Path) -> Path:
    """`./artifacts` with one float32 export, to be changed at will."""
    return Path(shutil.copytree(exported_once, empty_folder / "artifacts"))


@pytest.fixture
def built(built_once: Path, empty_folder: Path) -> Path:
    """`./artifacts` with a typed export and its engine, to be changed at will."""
    return Path(shutil.copytree(built_once, empty_folder / "artifacts"))


@pytest.fixture
def onnx_file(workspace: Path) -> Path:
    (path,) = (workspace / "onnx").glob("*.onnx")
    return path


@pytest.fixture
def engine_file(built: Path) -> Path:
    (path,) = (built / "engines").glob("*.engine")
    return path


@pytest.fixture
def change_manifest() -> Callable[..., None]:
    """Change fields of an artifact's manifest; `sha256=None` makes it fit the file again."""

    def change(artifact: Path, **fields: Any) -> None:
        path = manifest_path_for(artifact)
        values = json.loads(path.read_text())
        values.update(fields)
        if "sha256" in fields and fields["sha256"] is None:
            values["sha256"] = file_sha256(artifact)
        path.write_text(manifest_text(values))

    return change


@pytest.fixture
def temporaries(empty_folder: Path) -> Iterator[Callable[[], list[Path]]]:
    """Unfinished files below the test's folder; a test that uses this leaves none."""

    def find() -> list[Path]:
        return sorted(empty_folder.rglob(".t2t-tmp-*"))

    yield find
    assert find() == []
