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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from t2t_deploy._files import file_sha256
from t2t_deploy.bench import BenchReport, check_comparable, compare_reports, report_from_dict
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


def onnx_seeds(folder: Path) -> list[bytes]:
    """A graph with weights, one with subgraphs, functions and external data."""
    (folder / "beside.bin").write_bytes(bytes(64))
    spec = helper.make_tensor_value_info
    weight = np.arange(24, dtype=np.float32).reshape(6, 4)
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b"], ["logits"], name="add"),
    ]
    image = spec("image", TensorProto.FLOAT, ["n", 3, 1, 1])
    logits = spec("logits", TensorProto.FLOAT, ["n", 4])
    plain = helper.make_graph(
        nodes, "plain", [image], [logits],
        [numpy_helper.from_array(weight[:3], "w"), numpy_helper.from_array(weight[0], "b")],
        value_info=[spec("flat", TensorProto.FLOAT, ["n", 3])],
    )  # fmt: skip
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["inner"])], "branch", [],
        [spec("inner", TensorProto.FLOAT, ["n", 3, 1, 1])],
    )  # fmt: skip
    away = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], bytes(64), raw=True)
    away.ClearField("raw_data")
    away.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "beside.bin", "offset": "0", "length": "64"}.items():
        away.external_data.add(key=key, value=value)
    typed = helper.make_tensor("typed", TensorProto.INT64, [3], [1, 2, 3])
    condition = helper.make_node(
        "Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))
    )
    nested = helper.make_graph(
        [
            condition,
            helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch),
            helper.make_node("twice", ["out"], ["logits"], domain="local"),
        ],
        "nested", [image], [logits], [away, typed],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    twice = helper.make_function(
        "local", "twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], opsets[:1]
    )
    models = (
        helper.make_model(plain, opset_imports=opsets[:1], ir_version=9),
        helper.make_model(nested, opset_imports=opsets, functions=[twice], ir_version=9),
    )
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
    values: dict[str, Any] = {
        "kind": "onnx", "file": "model.onnx", "sha256": file_sha256(folder / "model.onnx"),
        "size_bytes": 5, "variant": "14", "precision": "fp32", "batch": None, "target": "portable",
        "config": CONFIG.to_dict(), "opset": 18, "strategies": {"soft_split": ["unfold"] * 3},
        "weights": {"sha256": "b" * 64, "source": {"kind": "random", "seed": 0}},
        "parents": [{"kind": "weights", "sha256": "b" * 64}],
        "verification": {"status": "passed", "rel_l2": 1e-6, "reason": None, "tolerance": 1e-5},
        "details": {"image_input": "float32_nchw", "tail": "logits", "asked": {}},
        "tools": {"torch": "2"}, "sequence": 1, "created": "2026", "manifest_version": 1,
    }  # fmt: skip
    engine = {
        "backend": "tensorrt", "backend_version": "10", "sm": ["86"], "profiles": ["1:1:32"],
        "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 3, 32, 32]}],
    }  # fmt: skip
    details = {"engine": engine, "attestation": {"status": "failed", "reason": "no"}}
    built = {**values, "kind": "engine", "details": details}
    return [manifest_text(one).encode() for one in (values, built)]


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
    plain = (
        b'tokens_type = "performer"\nembed_dim = 16\ndepth = 2\nnum_heads = 2\nmlp_ratio = 2.0\n'
        b"token_dim = 16\nimage_size = 32\nnum_classes = 10\n"
    )
    dense = (
        b'tokens_type = "transformer"\nembed_dim = 128\ndepth = 19\nnum_heads = 8\n'
        b'mlp_ratio = 2.0\nbackbone = "dense"\nstages = [3, 6, 6, 4]\ngrowth = 64\n'
        b"splits = [[7, 3, 2], [3, 1, 1], [3, 1, 1]]\n"
    )
    return [plain, dense]


def bench_seeds(folder: Path) -> list[bytes]:
    row: dict[str, Any] = {
        "backend": "ort-cpu", "artifact": "a.onnx", "precision": "fp32", "batch": 1, "status": "ok",
        "reason": None, "images_per_s": 20.0, "speedup_vs_eager": {"ratio": 2.0, "low": 1.9,
        "high": 2.1}, "baseline_rss_bytes": 1, "peak_rss_bytes": 2, "unstable": False,
        "latency_ms": {"p50": 50.0, "p90": 51.0, "p99": 52.0, "mean": 50.0, "stdev": 1.0,
                       "samples": [49.0, 50.0, 51.0]},
        "spread": 0.1, "load_ms": 1.0, "first_call_ms": 2.0,
        "warm_up": {"iterations": 3, "stable": True}, "parts_ms": None, "speedup_vs_plain": None,
        "rounds": [{"number": 1, "turn": 1, "samples_ms": [49.0, 50.0, 51.0]}], "rel_l2": None,
    }  # fmt: skip
    environment = {
        "date_utc": "2026-01-02T03:04:05+00:00", "platform": "Linux", "cpu_model": "CPU",
        "cpu_flags": ["avx2"], "logical_cores": 4, "usable_cores": 2, "memory_bytes": 16,
        "governor": None, "python": "3.11", "versions": {"numpy": "2"}, "threads": [2],
        "load_before": [0.25, 0.5, 0.75], "load_after": None, "gpus": [],
    }  # fmt: skip
    settings = {
        "rounds": 5, "round_seconds": 0.5, "warm_up_limit_s": 5.0, "seed": 0, "devices": [None],
    }  # fmt: skip
    values = {"environment": environment, "settings": settings, "results": [row, row]}
    return [json.dumps(values).encode()]


def read_bench(path: Path) -> None:
    found = read_report(path)
    (seed,) = bench_seeds(path.parent)
    now: BenchReport = report_from_dict(json.loads(seed))
    check_comparable(found, now.environment, devices=(None,), name="old")
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


JSON_WORDS = (
    b'"kind"', b'"engine"', b'"onnx"', b'"status"', b'"details"', b'"weights"', b'"sha256"',
    b'"precision"', b'"int8"', b'"rounds"', b'"samples"', b'"results"', b'"environment"', b"null",
    b"1", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'""', b'"x"', b"true", b"[1]", b'{"a": 1}',
    b"1.5", b"50.0", b'"file"', b'"parents"', b'"key"', b'"method"', b'"ranges"', b'"equalised"',
)  # fmt: skip
TOML_WORDS = (
    b"embed_dim", b"depth", b"num_heads", b"mlp_ratio", b"stages", b"splits", b"growth", b"=",
    b"16", b"2", b"-1", b"0", b"1e9", b"nan", b"inf", b"true", b'"dense"', b'"se"', b'"x"',
    b"[]", b"[[1]]", b"99999999999999999999", b"1979-05-27", b"[a]\n", b"#", b"backbone",
)  # fmt: skip
RECIPE_WORDS = (
    *TOML_WORDS, b"[model]\n", b"[export]\n", b"[[export]]\n", b"[quantize]\n", b"[[bench]]\n",
    b"variant", b"checkpoint", b"images", b"precision", b'"int8"', b'"7"', b"batch", b"[1, 8]",
    b'"1:8:32"', b"workspace", b'".."', b'"/"', b'"\\u0000"',
)  # fmt: skip


TARGETS: Sequence[Target] = (
    Target("checkpoint", checkpoint_seeds, read_checkpoint, ".pth", PICKLE_WORDS),
    Target("onnx", onnx_seeds, read_graph, ".onnx", ONNX_WORDS),
    Target("manifest", manifest_seeds, read_manifest, ".json", JSON_WORDS),
    Target("ranges", ranges_seeds, read_ranges, ".ranges", JSON_WORDS),
    Target("config", config_seeds, read_config, ".toml", TOML_WORDS),
    Target("recipe", recipe_seeds, load_recipe, ".toml", RECIPE_WORDS),
    Target("bench", bench_seeds, read_bench, ".json", JSON_WORDS),
    Target("labels", labels_seeds, lambda path: labels_from_file(path, 3), ".txt"),
)
