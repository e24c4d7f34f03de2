"""The gate to optional packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from t2t_deploy import _optional
from t2t_deploy._optional import EXTRAS, is_installed, require
from t2t_deploy.errors import MissingDependencyError

from .program import environment, finish

NAME = "t2t_test_package"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An optional package of extra [fancy]; the test writes it, or not."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(_optional.EXTRAS, NAME, "fancy")
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    return tmp_path / f"{NAME}.py"


def test_an_installed_package(package: Path) -> None:
    package.write_text("answer = 42")
    assert is_installed(NAME) and NAME not in sys.modules, "asking imports nothing"
    assert require(NAME).answer == 42
    del sys.modules[NAME]


def test_an_absent_package(package: Path) -> None:
    assert not is_installed(NAME)
    with pytest.raises(MissingDependencyError) as raised:
        require(NAME)
    assert str(raised.value) == (
        f"{NAME} is not installed; this step needs it: pip install 't2t-deploy[fancy]'"
    )


def test_a_module_of_an_absent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuda.bindings.runtime where nothing of cuda is installed."""
    module = f"{NAME}.bindings.runtime"
    monkeypatch.setitem(_optional.EXTRAS, module, "fancy")
    assert not is_installed(module)
    with pytest.raises(MissingDependencyError, match=f"^{NAME}.bindings.runtime is not installed"):
        require(module)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("import ctypes; ctypes.CDLL('no.so')", "OSError: no.so"),
        ("import t2t_no_such_package", "ModuleNotFoundError: No module named 't2t_no_such"),
    ],
)
def test_a_broken_package_is_not_an_absent_one(package: Path, content: str, shown: str) -> None:
    package.write_text(content)
    assert is_installed(NAME)
    with pytest.raises(MissingDependencyError) as raised:
        require(NAME)
    message = str(raised.value)
    assert message.startswith(f"{NAME} is installed but does not import ({shown}")
    assert message.endswith("reinstall it: pip install --force-reinstall 't2t-deploy[fancy]'")
    assert raised.value.__cause__ is not None


def test_another_spelling(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.write_text("answer = 42")
    monkeypatch.setitem(_optional._SPELLINGS, "t2t_other", ("t2t_other", NAME))
    monkeypatch.setitem(_optional.EXTRAS, "t2t_other", "fancy")
    assert is_installed("t2t_other")
    assert require("t2t_other").__name__ == NAME
    del sys.modules[NAME]


def test_every_extra_is_declared() -> None:
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    declared = pyproject.read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in declared for extra in EXTRAS.values())


@pytest.mark.parametrize("module", ["onnxruntime", "onnxsim"])
def test_onnxruntime_keeps_nothing_in_the_home_folder(tmp_path: Path, module: str) -> None:
    """Its telemetry would: a device's identity, and a database; onnxsim imports onnxruntime."""
    kept = {k: v for k, v in environment().items() if k != "ORT_DISABLE_TELEMETRY"}
    code = f"from t2t_deploy._optional import require; require({module!r})"
    finish(code=code, env=kept | {"HOME": str(tmp_path)}, timeout_s=60, status=0)
    assert list(tmp_path.iterdir()) == []
