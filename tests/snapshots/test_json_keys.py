"""The names and kinds of all that commands print with --json are as they were written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..program import called
from ..web_runtime import write_runtime
from .snapshot import hold, structure


class Printed:
    """What commands printed: exit status and structure, by the command."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __call__(self, name: str, *words: object) -> Any:
        """Run a command; its JSON."""
        done = called(*words, "--json")
        assert done.out, done.err
        self.found[name] = {"exit status": done.status, **structure(done.json)}
        return done.json

    def path(self, name: str, *words: object) -> str:
        """Run a command that makes an artifact; its path."""
        value = self(name, *words)
        assert "artifact" in value, value
        return str(value["artifact"]["path"])


def test_what_is_printed(here: Path) -> None:
    printed = Printed()
    printed("variants", "variants")
    graph = printed.path("export", "export", "--config", "tiny.toml")
    typed_form = ("--precision", "fp16", "--target", "tensorrt", "--batch", 1)
    half = printed.path("export, fp16", "export", "--config", "tiny.toml", *typed_form)
    ranges = printed("calibrate", "calibrate", graph, "--images", "train")["ranges"]["path"]
    static = ("quantize", graph, "--no-speed", "-o", "q.onnx")
    printed("quantize", *static, "--ranges", ranges)
    dynamic = ("--mode", "dynamic", "-o", "dynamic.onnx")
    eight = printed.path("quantize, dynamic", "quantize", graph, "--no-speed", *dynamic)
    engine = printed.path("build-trt", "build-trt", half, "--sm", "86", "--fp16")
    printed("verify", "verify", graph, engine)
    printed("verify, engine", "verify", engine)
    printed("verify, pictures", "verify", eight, "--images", "val")
    printed("verify, nodewise", "verify", eight, "--nodewise")
    printed("verify, locate", "verify", eight, "--locate")
    printed("evaluate", "evaluate", eight, "--images", "val", "--confusion", "c.png")
    printed("evaluate, no labels", "evaluate", graph, "--images", "train")
    printed("predict", "predict", graph, "val", "--labels", "labels.txt", "--csv", "p.csv")
    printed("predict, top", "predict", graph, "val/a", "--top", 1)
    printed("inspect", "inspect", graph)
    printed("inspect, quantised", "inspect", eight)
    printed("inspect, engine", "inspect", engine)
    printed("inspect, two", "inspect", graph, half)
    printed("inspect, features", "inspect", graph, "--features", "val/a/0.png")
    printed("package", "package", graph, "--triton", "models", "--labels", "labels.txt")
    printed("package, engine", "package", engine, "--triton", "engines")
    python = ("--triton", "python", "--format", "python")
    printed("package, python", "package", graph, *python)
    web = ("--web", "page", "--ort-web", write_runtime(here / "runtime"))
    printed("package, web", "package", graph, *web)
    printed("workspace list", "workspace", "list")
    printed("workspace check", "workspace", "check")
    printed("doctor", "doctor")
    (here / "artifacts" / "onnx" / ".t2t-tmp-left").write_text("")
    Path(graph).write_bytes(b"altered")
    printed("workspace check, altered", "workspace", "check")
    printed("workspace prune", "workspace", "prune")
    printed("doctor, altered", "doctor")
    printed("error, file", "export", "--config", "absent.toml")
    printed("error, usage", "export", "--absent")
    printed("error, altered", "verify", graph)
    printed("run, error", "run", "absent.toml")
    hold("json_keys.json", printed.found)


@pytest.mark.slow
def test_what_is_printed_of_measuring(here: Path) -> None:
    printed = Printed()
    graph = printed.path("export", "export", "--config", "tiny.toml")
    calibrated = ("quantize", graph, "--images", "train")
    printed("quantize, speed", *calibrated, "-o", "q.onnx")
    engines = ("--target", "tensorrt", "--placement", "auto", "--no-speed", "-o", "e.onnx")
    printed("quantize, auto", *calibrated, *engines)
    form = ("--precision", "fp16", "--target", "tensorrt")
    printed("export --compare", "export", "--config", "tiny.toml", *form, "--compare")
    bench = ("bench", graph, "--backend", "ort-cpu", "--backend", "eager", "--rounds", 5)
    outputs = ("--report", "page.html", "--csv", "table.csv")
    (here / "old.json").write_text(json.dumps(printed("bench", *bench, *outputs)))
    printed("bench --compare", *bench, "--compare", "old.json")
    hold("json_keys_slow.json", printed.found)
