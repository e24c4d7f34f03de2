"""The wheel and the sdist hold t2t_deploy and nothing else that can be imported."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

import t2t_deploy

from .conftest import COMMITTED_AT, ROOT, build_wheel, run

LINKS = ("export", "calibration")


@dataclass(frozen=True, slots=True)
class Built:
    """What `python -m build` wrote."""

    wheel: Path
    sdist: Path


MAN_PAGE = "docs/man/t2t-deploy.1"


@pytest.fixture(scope="module")
def built(source: Path) -> Built:
    """Both distributions, built from a copy."""
    wheel = build_wheel(source, source / "dist", "--sdist")
    (sdist,) = wheel.parent.glob("*.tar.gz")
    return Built(wheel, sdist)


def source_files() -> set[str]:
    folder = ROOT / "t2t_deploy"
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def info_of(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as opened:
        return opened.read(f"t2t_deploy-{t2t_deploy.__version__}.dist-info/{name}").decode()


def test_the_links_point_into_the_package() -> None:
    assert {name: os.readlink(ROOT / name) for name in LINKS} == {
        name: f"t2t_deploy/{name}" for name in LINKS
    }


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    metadata = f"t2t_deploy-{t2t_deploy.__version__}.dist-info/"
    # where `man` looks: beside the folder of the command
    page = f"t2t_deploy-{t2t_deploy.__version__}.data/data/share/man/man1/t2t-deploy.1"
    assert page in names
    files = {name for name in names - {page} if not name.startswith(metadata)}
    # a file missing here has a suffix that package-data in pyproject.toml does not name
    assert files == source_files()
    assert "t2t_deploy/py.typed" in files
    assert f"{metadata}licenses/LICENSE" in names


def test_a_later_wheel_is_the_same_bytes(built: Built, source: Path, tmp_path: Path) -> None:
    left_behind = shutil.ignore_patterns("dist", "build", "*.egg-info")
    again = tmp_path / "elsewhere"
    shutil.copytree(source, again, symlinks=True, ignore=left_behind)
    for path in again.rglob("*"):
        os.utime(path, (COMMITTED_AT + 86_400, COMMITTED_AT + 86_400), follow_symlinks=False)
    wheel = build_wheel(again, again / "dist")
    assert wheel.name == built.wheel.name
    assert wheel.read_bytes() == built.wheel.read_bytes()


def test_the_sdist_holds_no_link_and_no_package_beside_ours(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        members = sdist.getmembers()
    assert [member.name for member in members if member.issym() or member.islnk()] == []
    inside = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert {name for name in inside if name.startswith("t2t_deploy/")} == source_files()
    folders = {name.partition("/")[0] for name in inside - {MAN_PAGE} if "/" in name}
    assert folders == {"t2t_deploy", "t2t_deploy.egg-info"}
    assert MAN_PAGE in inside
    assert {"pyproject.toml", "setup.py", "LICENSE", "constraints.txt"} <= inside


def test_the_metadata_says_what_the_project_says(built: Built) -> None:
    metadata = Parser().parsestr(info_of(built.wheel, "METADATA"))
    assert metadata["Version"] == t2t_deploy.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("export", "cpu", "gpu", "rtx", "tensorrt", "openvino", "plot"),
        *("labels", "ray", "triton", "docs", "dev"),
    }
    assert info_of(built.wheel, "entry_points.txt").split() == [
        *("[console_scripts]", "t2t-deploy", "=", "t2t_deploy.cli:main"),
    ]


@pytest.mark.parametrize("system", ["linux x86_64", "win32 AMD64", "darwin arm64", "linux aarch64"])
def test_tensorrt_rtx_is_asked_for_only_where_it_has_wheels(built: Built, system: str) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    metadata = Parser().parsestr(info_of(built.wheel, "METADATA"))
    platform, machine = system.split()
    environment = {"sys_platform": platform, "platform_machine": machine, "extra": "rtx"}
    asked = set()
    for line in metadata.get_all("Requires-Dist", []):
        requirement = requirements.Requirement(line)
        if "rtx" in requirement.name and requirement.marker.evaluate(environment):
            asked.add(requirement.name)
    has_wheels = system in ("linux x86_64", "win32 AMD64")
    both = {"tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings"}
    assert asked == (both if has_wheels else set())


def test_the_installed_wheel_claims_one_import_name(built: Built, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    done = run(*pip, "--target", target, built.wheel, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    program = (
        "import sys\n"
        f"sys.path.insert(0, {str(target)!r})\n"
        "import t2t_deploy.export._strategies as strategies\n"
        "print(strategies.__file__)\n"
    )
    done = run(sys.executable, "-c", program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(target)
    for name in LINKS:
        program = f"import sys\nsys.path.insert(0, {str(target)!r})\nimport {name}\n"
        done = run(sys.executable, "-c", program, folder=tmp_path)
        assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr


@pytest.mark.parametrize("name", LINKS)
def test_this_installation_claims_one_import_name(name: str, tmp_path: Path) -> None:
    """An editable installation too: it must not put the checkout on the path."""
    done = run(sys.executable, "-c", f"import {name}", folder=tmp_path)
    assert f"ModuleNotFoundError: No module named '{name}'" in done.stderr
