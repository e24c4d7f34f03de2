"""Artifacts that take pixels and give probabilities, through every command."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.cli import main

_MODEL = """tokens_type = "performer"
embed_dim = 32
depth = 2
num_heads = 2
mlp_ratio = 2.0
image_size = 32
num_classes = 10
"""


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str, status: int = 0) -> dict[str, Any]:
        files = {"train", "val"}
        named = [str(self.root / word) if word in files or "." in word else word for word in words]
        with (
            contextlib.redirect_stdout(io.StringIO()) as told,
            contextlib.redirect_stderr(io.StringIO()) as notes,
            pytest.raises(SystemExit) as left,
        ):
            main([*named, "--json", "--workspace", str(self.root / "work")])
        assert left.value.code == status, notes.getvalue()
        found: dict[str, Any] = json.loads(told.getvalue())
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("graph_io")
    (root / "model.toml").write_text(_MODEL)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir()
        for index in range(6):
            pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
    made = Folder(root)
    export = ("export", "--config", "model.toml")
    made.run(*export, "-o", "bare.onnx")
    made.run(*export, "--embed-preprocess", "--tail", "topk", "-o", "ends.onnx")
    made.run(*export, "--tail", "softmax", "-o", "soft.onnx")
    return made


def details(path: Path) -> dict[str, Any]:
    manifest = json.loads(Path(f"{path}.manifest.json").read_text())
    found: dict[str, Any] = manifest["details"]
    return found


def test_the_manifest_tells_them(folder: Folder) -> None:
    told = [details(folder.root / f"{n}.onnx") for n in ("bare", "graph_io", "soft")]
    assert [(d["image_input"], d["tail"]) for d in told] == [
        ("float32_nchw", "logits"),
        ("uint8_nhwc", "topk"),
        ("float32_nchw", "softmax"),
    ]
    assert told[0]["asked"] == {"soft_split": "auto", "performer": "auto"}


def test_verify_compares_logits(folder: Folder) -> None:
    found = folder.run("verify", "ends.onnx", "soft.onnx")["results"]
    assert [row["status"] for row in found] == ["passed", "passed"]
    assert all(0 < row["rel_l2"] <= 1e-5 for row in found)


def test_evaluate_agrees_with_the_bare_graph(folder: Folder) -> None:
    words = ("evaluate", "bare.onnx", "ends.onnx", "soft.onnx", "--images", "val")
    found = folder.run(*words)["results"]
    assert [(row["status"], row["images"], row["agreement"]) for row in found] == [
        ("passed", 6, 1.0)
    ] * 3


def test_quantize_keeps_them(folder: Folder) -> None:
    words = ("quantize", "ends.onnx", "--images", "train", "--mode", "dynamic", "-o", "int8.onnx")
    assert folder.run(*words)["verification"]["status"] == "passed"
    told = details(folder.root / "int8.onnx")
    assert (told["image_input"], told["tail"]) == ("uint8_nhwc", "topk")
    assert told["asked"]["tail"] == "topk"


def test_bench_gives_pixels(folder: Folder) -> None:
    words = ("bench", "ends.onnx", "--backend", "ort-cpu", "--rounds", "5")
    found = folder.run(*words)["results"]
    assert [row["status"] for row in found] == ["ok"]


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_of_another_precision_keeps_them(folder: Folder) -> None:
    words = ("build-trt", "ends.onnx", "--fp16", "--sm", "86", "-o", "half.engine")
    assert folder.run(*words)["attestation"]["status"] == "passed"
    told = details(folder.root / "half.engine")
    assert (told["image_input"], told["tail"]) == ("uint8_nhwc", "topk")
