"""The command line in process, in an empty folder, over a tiny model exported and built once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import t2t_deploy.export
from t2t_deploy._files import file_sha256
from t2t_deploy._optional import is_installed
from t2t_deploy.model import ModelConfig, config_from_toml
from t2t_deploy.runtime import Backend
from t2t_deploy.workspace import manifest_path_for, manifest_text

from ..program import called
from ..small import TINY
from .command import Change, Run, Temporaries, manifest_of
from .graphs import Alter


@pytest.fixture(autouse=True)
def _in_an_empty_folder(empty_folder: Path) -> None:
    """Every test starts in one."""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(capfd)


@pytest.fixture(scope="session")
def tiny_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY)
    return path


def _made(workspace: Path, *commands: tuple[object, ...]) -> Path:
    for words in commands:
        called(*words, "--workspace", workspace, status=0)
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
def weights_file(workspace: Path) -> Path:
    (path,) = (workspace / "weights").iterdir()
    return path


@pytest.fixture(scope="session")
def tiny(tiny_toml: Path) -> ModelConfig:
    return config_from_toml(tiny_toml)


@pytest.fixture
def runs_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend can run here, as far as the commands can tell."""
    monkeypatch.setattr(Backend, "run_unavailable", lambda backend, device=None: None)


@pytest.fixture
def engine_file(built: Path) -> Path:
    (path,) = (built / "engines").glob("*.engine")
    return path


@pytest.fixture
def change_manifest() -> Change:
    """Change fields of an artifact's manifest; `sha256=None` makes it fit the file again."""

    def change(artifact: Path, **fields: Any) -> None:
        values = manifest_of(artifact) | fields
        if "sha256" in fields and fields["sha256"] is None:
            values["sha256"] = file_sha256(artifact)
        manifest_path_for(artifact).write_text(manifest_text(values))

    return change


@pytest.fixture
def alter(change_manifest: Change) -> Callable[[Path, Alter], None]:
    """Alter a graph and make its manifest fit the file again."""

    def change(path: Path, work: Alter) -> None:
        model = onnx.load(path)
        work(model)
        onnx.save(model, path)
        change_manifest(path, sha256=None)

    return change


@pytest.fixture
def wrong_exporter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Alter], None]:
    """Make every export from now on wrong."""
    right = t2t_deploy.export.onnx_from_deploy

    def patch(work: Alter) -> None:
        def wrong(*arguments: Any, **options: Any) -> onnx.ModelProto:
            model = right(*arguments, **options)
            work(model)
            return model

        monkeypatch.setattr(t2t_deploy.export, "onnx_from_deploy", wrong)

    return patch


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No optional package is installed, as far as the commands can tell."""
    monkeypatch.setattr("t2t_deploy._optional._installed_name", lambda module: None)


@pytest.fixture
def temporaries(empty_folder: Path) -> Iterator[Temporaries]:
    """Unfinished files below the test's folder; a test that uses this leaves none."""

    def find() -> list[Path]:
        return sorted(empty_folder.rglob(".t2t-tmp-*"))

    yield find
    assert find() == []
