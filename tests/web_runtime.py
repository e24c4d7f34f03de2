"""A folder with the names that the npm package of onnxruntime-web has, and none of its code."""

from __future__ import annotations

import json
from pathlib import Path

FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
VERSION = "9.9.9"


def write_runtime(folder: Path, name: str = "onnxruntime-web") -> Path:
    """Write it; returns the folder."""
    (folder / "dist").mkdir(parents=True)
    for file in FILES:
        (folder / "dist" / file).write_text(file)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": VERSION}))
    return folder
