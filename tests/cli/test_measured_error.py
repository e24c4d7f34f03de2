"""Every artifact's manifest tells how far it is from the reference, and how far it may be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.types import TOLERANCES, Precision

from ..noise import write_noise
from .command import Change, Run


def manifests(folder: Path) -> dict[str, Any]:
    """File -> its manifest, of all artifacts below a folder."""
    suffix = ".manifest.json"
    return {
        str(path.relative_to(folder)).removesuffix(suffix): json.loads(path.read_text())
        for path in sorted(folder.rglob(f"*{suffix}"))
    }


def check(verification: Any, precision: str) -> None:
    """The error of every picture, the worst one's, the tolerance, and a verdict that fits them."""
    error, tolerance = verification["rel_l2"], verification["tolerance"]
    assert isinstance(error, float) and math.isfinite(error)
    assert error == max(verification["pictures"].values()) > 0
    assert tolerance == TOLERANCES[Precision(precision)].rel_l2
    assert verification["status"] == ("passed" if error <= tolerance else "failed")


@pytest.fixture
def pictures(empty_folder: Path) -> Path:
    """Eight pictures of seeded noise."""
    folder = empty_folder / "pictures"
    write_noise(*(folder / f"{index}.png" for index in range(8)), size=(32, 32))
    return folder


PRECISIONS = {
    **{"named": "fp32", "fp16": "fp16", "bf16": "bf16", "graph_io": "fp32"},
    **{"static": "int8", "fp8": "fp8", "dynamic": "int8", "int8-ends": "int8"},
}


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("graph_io", "static", "dynamic"), id="some"),
        pytest.param(tuple(PRECISIONS), id="all", marks=pytest.mark.slow),
    ],
)
def test_graphs_of_every_kind(
    run: Run,
    workspace: Path,
    empty_folder: Path,
    tiny_toml: Path,
    pictures: Path,
    kinds: tuple[str, ...],
) -> None:
    export = ("export", "--config", tiny_toml, "--batch", 1)
    (plain,) = (workspace / "onnx").glob("*.onnx")
    quantize = ("quantize", plain, "--no-speed", "--images", pictures)
    made = {
        "named": export,
        "fp16": (*export, "--precision", "fp16", "--target", "tensorrt"),
        "bf16": (*export, "--precision", "bf16", "--target", "tensorrt"),
        "graph_io": (*export, "--embed-preprocess", "--tail", "topk"),
        "static": quantize,
        "fp8": (*quantize, "--type", "fp8"),
        "dynamic": ("quantize", plain, "--no-speed", "--mode", "dynamic"),
        "int8-ends": ("quantize", "graph_io.onnx", "--no-speed", "--mode", "dynamic"),
    }
    for kind in kinds:
        done = run(*made[kind], "-o", f"{kind}.onnx")
        # ranges of white noise may be too narrow for photographs: the verdict says so
        assert done.status in ((0, 3) if pictures in made[kind] else (0,)), done.err
    found = manifests(empty_folder)
    for manifest in found.values():
        check(manifest["verification"], manifest["precision"])
    precisions = {Path(file).stem: manifest["precision"] for file, manifest in found.items()}
    assert precisions == {plain.stem: "fp32"} | {kind: PRECISIONS[kind] for kind in kinds}


def test_an_engine_has_that_of_its_graph(run: Run, built: Path, empty_folder: Path) -> None:
    assert run("build-trt", "--sm", "86", "-o", "named.engine").status == 0
    found = manifests(empty_folder)
    engines = {file: m for file, m in found.items() if m["kind"] == "engine"}
    graphs = {m["sha256"]: m for m in found.values() if m["kind"] == "onnx"}
    assert len(engines) == 2 and "named.engine" in engines
    for file, manifest in engines.items():
        (parent,) = manifest["parents"]
        stated = manifest["details"]["graph_verification"]
        assert stated == graphs[parent["sha256"]]["verification"]
        check(stated, manifest["precision"])
        (shown,) = run.json("inspect", file)["artifacts"]
        assert shown["graph_verification"] == stated


def test_an_engine_of_a_failed_graph(run: Run, engine_file: Path, change_manifest: Change) -> None:
    def state(verification: Any) -> None:
        path = Path(f"{engine_file}.manifest.json")
        details = json.loads(path.read_text())["details"]
        failed = details["graph_verification"] | {"status": "failed", "reason": "far off"}
        details["graph_verification"] = failed
        change_manifest(engine_file, details=details, verification=verification)

    state(None)
    refused = run("package", "--triton", "models", engine_file, status=1)
    assert "failed its check (far off)" in refused.err
    # once the engine itself has run, that counts
    state({"status": "passed", "rel_l2": 1e-4, "tolerance": 1e-2, "pictures": {}})
    assert "failed its check" not in run("package", "--triton", "models", engine_file).err
