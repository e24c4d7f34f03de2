"""What the Makefile installs is what `constraints.txt` says; users get each file by its hash."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LOCKS = sorted(path.name for path in (ROOT / "requirements").glob("*.txt"))
TOOLS = ("dist.in", "docs.in", "mutants.in", "peers.in")
# by which the lanes of the Makefile install the package itself
WITH_TORCH = ("default.txt", "gpu.txt", "ray.txt")
MARKERS = {"python_version": "3.11", "python_full_version": "3.11.7", "extra": ""}


@dataclass(frozen=True, slots=True)
class Locked:
    requirement: Requirement
    hashes: tuple[str, ...]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)


def locked(name: str) -> list[Locked]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line and not line.startswith(("#", "-c ")):
            requirement, *hashes = line.split("--hash=")
            found.append(Locked(Requirement(requirement), tuple(h.strip() for h in hashes)))
    return found


def constraints() -> dict[str, Version]:
    """Releases on Python 3.11, the one that is tested."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(MARKERS):
                (pin,) = requirement.specifier
                assert pin.operator == "==", line
                found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def test_every_lane_has_its_lock_or_its_pins() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lanes = set(re.findall(r"\.venv-(\w+)/\.ready", makefile)) | {"default", "server"}
    assert {Path(name).stem for name in (*LOCKS, *TOOLS)} == lanes


@pytest.mark.parametrize("name", LOCKS)
def test_each_file_is_known_by_its_hash(name: str) -> None:
    entries = locked(name)
    assert entries
    for entry in entries:
        assert entry.hashes, entry.requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in entry.hashes)
        assert entry.name != "torch"


@pytest.mark.parametrize("name", [*LOCKS, *TOOLS])
def test_releases_are_those_of_the_constraints(name: str) -> None:
    pins = constraints()
    if name == "server.txt":  # Triton's Python backend breaks with numpy 2
        pins["numpy"] = Version("1.26.4")
    for entry in locked(name):
        assert [s.operator for s in entry.requirement.specifier] == ["=="], entry.requirement
        marker = entry.requirement.marker
        if entry.name in pins and (marker is None or marker.evaluate(MARKERS)):
            (specifier,) = entry.requirement.specifier
            assert Version(specifier.version) == pins[entry.name], entry.name


@pytest.mark.parametrize("name", TOOLS)
def test_what_tools_need_is_constrained(name: str) -> None:
    assert "-c ../constraints.txt" in (ROOT / "requirements" / name).read_text().splitlines()


@pytest.mark.parametrize("name", WITH_TORCH)
def test_what_the_package_needs_is_in_it(name: str) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    needed = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    conditional = {"tomli"}  # on Python 3.10 alone
    assert needed <= {entry.name for entry in locked(name)} | conditional
    assert "tomli" in {entry.name for entry in locked(name)}
