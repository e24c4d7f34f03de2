"""What a recipe leaves in the workspace, manifests, ranges and records, is as it was written down.

A record that other code would not find again, or a file that it would not read, costs a user all
that was made before.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import json_of
from .snapshot import FOLDER, hold, structure


def followed(recipe: str) -> dict[str, Any]:
    """The steps of a recipe that was followed, by name."""
    printed = json_of(0, "run", recipe)
    assert set(printed) == {"recipe", "workspace", "exit_status", "steps"}
    return {one.pop("step"): one for one in printed["steps"]}


def part(name: str, value: str) -> str:
    """A part of a record: options and what a user wrote as they are, of the rest the form."""
    if name.startswith("option ") or name in ("model's name", "expected top1"):
        return value
    form = re.sub(r"[0-9a-f]{64}", "HASH", value)
    return form if "HASH" in form else "told"


def records(steps: dict[str, Any]) -> dict[str, Any]:
    """The records in `made/recipes`, by step; each is found by the hash of its parts."""
    found = {}
    for path in Path("made/recipes").iterdir():
        record = json.loads(path.read_text())
        step, parts = record["step"], record["parts"]
        artifacts = sorted(value for name, value in parts.items() if name.startswith("artifact "))
        others = {name: one for name, one in parts.items() if not name.startswith("artifact ")}
        content = json.dumps([step.partition(" ")[0], artifacts, others], sort_keys=True)
        assert path.name == f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json", step
        assert record.pop("result") == steps[step]["result"], step
        found[step] = {
            **structure({name: one for name, one in record.items() if name != "parts"}),
            "parts": {name: part(name, value) for name, value in parts.items()},
        }
    return found


def manifests() -> dict[str, Any]:
    """The manifests of all that was made, by the kind of file."""
    found = {}
    for path in (*Path("made").rglob("*.manifest.json"), *Path().glob("*.manifest.json")):
        found[without_hash(path)] = structure(json.loads(path.read_text()))
    return found


def without_hash(path: Path) -> str:
    return re.sub(r"-[0-9a-f]{8}\.", ".", path.name)


def files() -> dict[str, list[str]]:
    """The names in each folder; of records, weights, locks and copies of our own code, none."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path().rglob("*")):
        folder = path.parent.as_posix()
        if path.is_file() and not re.search("recipes|weights|locks|t2t_deploy$|train|val", folder):
            found.setdefault(folder, []).append(without_hash(path))
    return found


def ranges() -> dict[str, Any]:
    """What the header of each file of ranges tells, and how its arrays are named."""
    found = {}
    for path in Path("made/calibration").glob("*.ranges"):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        told = json.loads(header.pop("__metadata__")["t2t-deploy"])
        nested = {name: json.loads(one) if one[:1] in "{[" else one for name, one in told.items()}
        arrays = {name.partition(":")[0]: one["dtype"] for name, one in header.items()}
        found[without_hash(path)] = {
            "header": structure(nested),
            "arrays": arrays,
        }
    return found


def test_what_a_recipe_leaves(here: Path) -> None:
    shutil.copy(FOLDER / "almost_all.toml", here / "r.toml")
    steps = followed("r.toml")
    assert {step["status"] for step in steps.values()} == {"done"}, steps
    found = {
        "steps": {name: structure(step) for name, step in steps.items()},
        "records": records(steps),
        "manifests": manifests(),
        "files": files(),
        "ranges": ranges(),
    }
    assert {step["status"] for step in followed("r.toml").values()} == {"skipped"}
    hold("recipe_files.json", found)


@pytest.mark.slow
def test_what_another_recipe_leaves(here: Path) -> None:
    json_of(0, "export", "--config", "tiny.toml")
    (weights,) = Path("artifacts/weights").iterdir()
    shutil.copy(weights, "tiny.safetensors")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = (FOLDER / "the_rest.toml").read_text().replace("SHA256", sha256)
    Path("r.toml").write_text(text)
    steps = followed("r.toml")
    Path("old.json").write_text(json.dumps(steps["bench"]["result"]))
    Path("r.toml").write_text(text.replace('"table.csv"', '"table.csv"\ncompare = "old.json"'))
    for path in Path("made/recipes").iterdir():
        if json.loads(path.read_text())["step"] == "report":
            path.unlink()
    again = followed("r.toml")
    assert [name for name, step in again.items() if step["status"] == "done"] == ["report"]
    steps["report"] = again["report"]
    found = {
        "steps": {name: structure(step) for name, step in steps.items()},
        "records": records(steps),
        "manifests": manifests(),
        "files": files(),
    }
    hold("recipe_files_slow.json", found)
