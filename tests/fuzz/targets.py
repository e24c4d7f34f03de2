"""The readers of files that others made, each with seeds of its format.

A reader is added in three lines: a `Target` with seeds, the function that reads, and a suffix.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from onnx import numpy_helper
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from t2t_deploy._files import file_sha256
from t2t_deploy.bench import check_comparable, compare_reports
from t2t_deploy.calibration import load_calibration
from t2t_deploy.calibration._ranges_file import FORMAT, _digest
from t2t_deploy.commands import inspect_artifact
from t2t_deploy.commands._bench import read_report
from t2t_deploy.model import ModelConfig, TokensType, load_checkpoint, random_state_dict
from t2t_deploy.model import config_from_toml as read_config
from t2t_deploy.pictures import labels_from_file
from t2t_deploy.recipe import example_recipe, load_recipe
from t2t_deploy.serving.triton import signature_from_onnx
from t2t_deploy.types import GraphIO
from t2t_deploy.workspace import Workspace, manifest_path_for, manifest_text

from ..manifests import DRAFT
from ..onnx_models import parsed
from ..reports import GPU, full_report
from ..small import OTHER_BACKBONES, TINY
from .harness import Target

CONFIG = ModelConfig("tiny", TokensType.PERFORMER, 16, 1, 2, 2.0, 16, image_size=32, num_classes=4)


# -- checkpoints ---------------------------------------------------------------------------------


def checkpoint_seeds(folder: Path) -> list[bytes]:
    """torch's zip file, its file before 1.6, safetensors, and a zip file's pickle by itself."""
    weights = random_state_dict(CONFIG)
    small = {key: value for key, value in weights.items() if not key.startswith("tokens")}
    files = [save_tensors(weights)]
    for content in (weights, {"state_dict": small, "args": argparse.Namespace(lr=0.1), "epoch": 3}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            files.append(buffer.getvalue())
    with zipfile.ZipFile(io.BytesIO(files[1])) as archive:
        STORED.update({name: archive.read(name) for name in archive.namelist()})
    return [*files, *[STORED[_PICKLE]] * len(files)]


STORED: dict[str, bytes] = {}
_PICKLE = "archive/data.pkl"


def zipped(content: bytes) -> bytes:
    """A pickle within torch's zip file of the whole model; other bytes as they are."""
    if not content.startswith(b"\x80\x02"):
        return content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, stored in STORED.items():
            archive.writestr(name, content if name == _PICKLE else stored)
    return buffer.getvalue()


def read_checkpoint(path: Path) -> None:
    path.write_bytes(zipped(path.read_bytes()))
    load_checkpoint(path, config=CONFIG)


PICKLE_WORDS = (
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cposix\nsystem\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nQInt8Storage\n", b"ctorch\nHalfStorage\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"cbuiltins\neval\n", b"q\x00", b"h\x00",
    b"(", b")", b"}", b"t", b"\x85", b"\x86", b"\x87", b"R", b"s", b"u", b"Q", b"b", b".", b"N",
    b"\x88", b"K\x01", b"K\x00", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"X\x01\x00\x00\x000", b"X\x07\x00\x00\x00storage",
)  # fmt: skip


# -- ONNX files ----------------------------------------------------------------------------------


PLAIN = """
plain (float[n,3,1,1] image) => (float[n,4] logits)
  <float[3,4] w = {0,1,2,3,4,5,6,7,8,9,10,11}, float[4] b = {0,1,2,3}, float[n,3] flat> {
    [flatten] flat = Flatten(image)
    [product] product = MatMul(flat, w)
    [add] logits = Add(product, b)
}"""
NESTED = """
nested (float[n,3,1,1] image) => (float[n,4] logits)
  <float[4,4] w = ["location": "beside.bin", "offset": "0", "length": "64"],
   int64[3] typed = {1,2,3}> {
    yes = Constant<value = bool {1}>()
    out = If(yes) <
        then_branch = branch () => (float[n,3,1,1] inner) { inner = Identity(image) },
        else_branch = branch () => (float[n,3,1,1] inner) { inner = Identity(image) }
    >
    logits = local.twice(out)
}
<domain: "local", opset_import: ["": 18]> twice (x) => (y) { y = Add(x, x) }"""


def onnx_seeds(folder: Path) -> list[bytes]:
    """A graph with weights, one with subgraphs, functions and external data."""
    (folder / "beside.bin").write_bytes(bytes(64))
    models = [parsed(text) for text in (PLAIN, NESTED)]
    for tensor in models[0].graph.initializer:  # as exporters store it: raw
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return [model.SerializeToString() for model in models]


def read_graph(path: Path) -> None:
    inspect_artifact(path, workspace=path.parent / "none")
    signature_from_onnx(path, {}, None)


ONNX_WORDS = (
    b"image", b"logits", b"w", b"out", b"local", b"twice", b"location", b"beside.bin",
    b"../beside.bin", b"/dev/zero", b"*/_ORT_MEM_ADDR_/*", b"offset", b"length", b"64",
    b"\x08\x04", b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x10\x01", b"\x10\x07",
    b"\x70\x01", b"\x3a\x02\x0a\x00", b"\x08\xff\xff\xff\xff\x7f",
)  # fmt: skip


# -- manifests, ranges, configs, benches, labels -------------------------------------------------


def manifest_seeds(folder: Path) -> list[bytes]:
    (model, _) = onnx_seeds(folder)
    (folder / "model.onnx").write_bytes(model)
    made = replace(
        DRAFT, file="model.onnx", sha256=file_sha256(folder / "model.onnx"), size_bytes=5,
        config=CONFIG.to_dict(), opset=18, strategies={"soft_split": ["unfold"] * 3},
        parents=({"kind": "weights", "sha256": "b" * 64},),
        verification={"status": "passed", "rel_l2": 1e-6, "reason": None, "tolerance": 1e-5},
        details={"image_input": "float32_nchw", "tail": "logits", "asked": {}},
        tools={"torch": "2"}, sequence=1, created="2026",
    )  # fmt: skip
    engine = {
        "backend": "tensorrt", "backend_version": "10", "sm": ["86"], "profiles": ["1:1:32"],
        "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 3, 32, 32]}],
    }  # fmt: skip
    details = {"engine": engine, "attestation": {"status": "failed", "reason": "no"}}
    return [one.to_json().encode() for one in (made, replace(made, kind="engine", details=details))]


def read_manifest(path: Path) -> None:
    """Its checksum is made good where it is JSON: a forger does that too."""
    model = path.with_name("model.onnx")
    text = path.read_bytes()
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        text = manifest_text(json.loads(text)).encode()
    manifest_path_for(model).write_bytes(text)
    artifact = Workspace(path.parent / "none").open(model, force=True)
    summary = inspect_artifact(model, workspace=path.parent / "none")
    json.dumps(summary, allow_nan=False)
    GraphIO.of_details(artifact.require_manifest().details)
    assert artifact.require_manifest().failure == "" or artifact.require_manifest().failed


def ranges_seeds(folder: Path) -> list[bytes]:
    told = {
        "key": {
            "graph_sha256": "a" * 64, "images_sha256": "b" * 64, "images": 2, "image_size": 32,
            "method": "mse", "equalised": True, "preprocessing": "p",
        },
        "ranges": {"norm": 1.5, "fc": 0.25}, "largest": {"norm": 2.0, "fc": 0.5},
        "equalised": [{"producer": "norm", "layers": ["q"], "tensor": "t", "spread_before": 1.0,
                       "spread_after": 2.0}],
        "refused": {"fc2": "no"}, "pictures": ["c" * 64], "unreadable": [],
    }  # fmt: skip
    text = json.dumps(told).encode()
    return [text, text, sealed_ranges(text)]


def sealed_ranges(text: bytes) -> bytes:
    """A ranges file around what it tells, with the right checksum."""
    told = text.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    arrays: dict[str, np.ndarray] = {
        "moments:norm": np.eye(2, dtype=np.float32),
        "scale:norm": np.ones(2),
    }
    header = {"format": FORMAT, "calibration": told, "sha256": _digest(arrays, told)}
    return save_arrays(arrays, metadata={"t2t-deploy": json.dumps(header)})


def read_ranges(path: Path) -> None:
    content = path.read_bytes()
    if content.startswith(b"{"):
        path.write_bytes(sealed_ranges(content))
    load_calibration(path)


def config_seeds(folder: Path) -> list[bytes]:
    splits = "splits = [[7, 3, 2], [3, 1, 1], [3, 1, 1]]\n"
    return [TINY.encode(), (OTHER_BACKBONES["dense"] + splits).encode()]


def bench_seeds(folder: Path) -> list[bytes]:
    return [json.dumps(full_report(*gpus).to_dict()).encode() for gpus in ((), (GPU,))]


def read_bench(path: Path) -> None:
    found, now = read_report(path), full_report()
    check_comparable(found, now.environment, devices=(None, 0), name="old")
    for case in compare_reports(found, now, name="old").cases:
        assert case.ratio is None or math.isfinite(case.ratio.ratio)


def labels_seeds(folder: Path) -> list[bytes]:
    lines = ["\n".join(("cat", "dog", "Bär", "")).encode(), b"\xef\xbb\xbfa\r\nb\r\nc\r\n"]
    named = [["cat", "dog", "cow"], {"cat": 0, "dog": 1, "cow": 2}]
    nested = {"id2label": {"0": ["n01", "cat"], "1": ["n02", "dog"], "2": ["n03", "cow"]}}
    return [*lines, *(json.dumps(one).encode() for one in (*named, nested))]


def recipe_seeds(folder: Path) -> list[bytes]:
    """The commented example, as it is and with every line of it in force."""
    example = example_recipe()
    whole = re.sub(r"^#(?=\S)", "", example, flags=re.MULTILINE)
    shortest = (
        '[model]\nvariant = "7"\n\n[export]\nprecision = "fp16"\n\n[[bench]]\nbatch = [1, 8]\n'
    )
    return [example.encode(), whole.encode(), shortest.encode()]


TARGETS: Sequence[Target] = (
    Target("checkpoint", checkpoint_seeds, read_checkpoint, ".pth", PICKLE_WORDS),
    Target("onnx", onnx_seeds, read_graph, ".onnx", ONNX_WORDS),
    Target("manifest", manifest_seeds, read_manifest, ".json"),
    Target("ranges", ranges_seeds, read_ranges, ".ranges"),
    Target("config", config_seeds, read_config, ".toml"),
    Target("recipe", recipe_seeds, load_recipe, ".toml"),
    Target("bench", bench_seeds, read_bench, ".json"),
    Target("labels", labels_seeds, lambda path: labels_from_file(path, 3), ".txt"),
)
