"""Artifacts that take pixels and give probabilities, through every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..noise import write_noise
from ..program import called
from ..small import tiny_model
from .command import manifest_of


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *words: str) -> Any:
        files = {"train", "val"}
        named = [self.root / word if word in files or "." in word else word for word in words]
        return called(*named, "--json", "--workspace", self.root / "work", status=0).json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    root = tmp_path_factory.mktemp("graph_io")
    (root / "model.toml").write_text(tiny_model(embed_dim=32))
    files = (root / split / f"{index}.png" for split in ("train", "val") for index in range(6))
    write_noise(*files, size=(40, 50))
    made = Folder(root)
    export = ("export", "--config", "model.toml")
    made.run(*export, "-o", "bare.onnx")
    made.run(*export, "--embed-preprocess", "--tail", "topk", "-o", "ends.onnx")
    made.run(*export, "--tail", "softmax", "-o", "soft.onnx")
    return made


def test_the_manifest_tells_them(folder: Folder) -> None:
    told = [manifest_of(folder.root / f"{n}.onnx")["details"] for n in ("bare", "ends", "soft")]
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
    told = manifest_of(folder.root / "int8.onnx")["details"]
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
    told = manifest_of(folder.root / "half.engine")["details"]
    assert (told["image_input"], told["tail"]) == ("uint8_nhwc", "topk")
