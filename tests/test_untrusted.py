"""Files that others made: how large, how deep and of what kinds their values may be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy import _untrusted
from t2t_deploy._untrusted import json_from_file, read_small_file, shortened
from t2t_deploy.commands._bench import read_report
from t2t_deploy.errors import ArtifactError, ComparisonError, ConfigError, DeployError, one_line
from t2t_deploy.model import config_from_toml
from t2t_deploy.pictures import labels_from_file
from t2t_deploy.serving.triton import signature_from_tensors
from t2t_deploy.types import TensorSpec
from t2t_deploy.workspace import manifest_text, read_manifest

from .reports import full_report
from .small import tiny_model

DEEP = "[" * 100_000


def test_a_small_file_is_read_and_a_large_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    assert read_small_file(path, 1 << 20) == b"x" * (1 << 20)
    path.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="it is larger than 1 MiB"):
        read_small_file(path, 1 << 20)


def test_what_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="a pipe or a device"):
            read_small_file(path, 1 << 20)


def test_json_that_nests(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(DEEP)
    with pytest.raises(ValueError, match="it nests too deep"):
        json_from_file(path, 1 << 20)


def test_values_are_shown_on_one_short_line() -> None:
    assert shortened("a\nb\x1b[31m") == "'a\\nb\\x1b[31m'"
    assert len(shortened("x" * 10**6)) < 100 and len(shortened(["x" * 10**4])) < 130
    assert one_line("a\nb\ud800") == "a\\nb\\ud800"


READERS: dict[str, tuple[Callable[[Path], object], type[DeployError], str]] = {
    "config": (config_from_toml, ConfigError, "model._config.MAX_CONFIG_BYTES"),
    "manifest": (read_manifest, ArtifactError, "workspace._manifest.MAX_MANIFEST_BYTES"),
    "bench": (read_report, ComparisonError, "commands._bench.MAX_BENCH_BYTES"),
    "labels": (
        lambda path: labels_from_file(path, 3),
        ArtifactError,
        "pictures._labels.MAX_LABELS_BYTES",
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", ["deep", "pipe", "large", "digits", "not utf-8"])
def test_readers_refuse_in_one_line(
    reader: str, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, error, limit = READERS[reader]
    path = tmp_path / "file"
    if content == "pipe":
        os.mkfifo(path)
    elif content == "large":
        monkeypatch.setattr(f"t2t_deploy.{limit}", 1 << 20)
        path.write_bytes(b"#" * (2 << 20))
    else:
        deep = b"a = " * (reader == "config") + DEEP.encode()
        contents = {"deep": deep, "digits": b"a = " + b"9" * 9999, "not utf-8": b"\xff\xfe\x00"}
        path.write_bytes(contents[content])
    with pytest.raises(error) as refused:
        read(path)
    message = str(refused.value)
    assert message.isprintable() and len(message) < 500
    if content == "large":
        assert "it is larger than 1 MiB" in message
    if content == "pipe":
        assert "it is a pipe or a device" in message


# -- model descriptions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dimm": "16"}, "has the unknown key 'embed_dimm'; did you mean 'embed_dim'?"),
        ({"numheads": "2"}, "has the unknown key 'numheads'; did you mean 'num_heads'?"),
        ({"qqq": "2"}, "has the unknown key 'qqq'; known keys: name, tokens_type"),
        ({"x" * 50_000: "2"}, "has the unknown key 'xxx"),
        ({"depth": "1000000000000"}, "depth is 1000000000000; expected at most 1000"),
        ({"depth": "1001"}, "depth is 1001; expected at most 1000"),
        ({"embed_dim": "99999999999"}, "embed_dim is 99999999999; expected at most 16384"),
        ({"image_size": "1000000"}, "image_size is 1000000; expected at most 16384"),
        ({"image_size": "16384"}, "gives 1048576 tokens; expected at most 262144"),
        ({"num_classes": "2000000"}, "num_classes is 2000000; expected at most 1000000"),
        ({"embed_dim": "16384", "depth": "100"}, "of these dimensions has about 2.1e+11 weights"),
        ({"mlp_ratio": "1e300"}, "weights; expected at most 5.4e+08"),
        ({"mlp_ratio": '"2.0"'}, "'2.0' is no number"),
        ({"mlp_ratio": "true"}, "True is no number"),
        ({"mlp_ratio": "nan"}, "mlp_ratio is nan; expected a finite number"),
        ({"mlp_ratio": "1" * 400}, "too large"),
        ({"depth": "true"}, "depth is True; expected a whole number"),
        ({"depth": '"two"'}, "depth is 'two'; expected a whole number"),
        ({"stages": '"36"', "backbone": '"dense"'}, "'36' is no list of whole numbers"),
        ({"stages": "[1.5]", "backbone": '"dense"'}, "[1.5] is no list of whole numbers"),
        (
            {"stages": "[3, -1]", "backbone": '"dense"', "growth": "2"},
            "stages are [3, -1]; expected at least 1 layer in each",
        ),
        ({"stages": "[99999]", "backbone": '"dense"', "growth": "2"}, "is more than any model has"),
        ({"growth": "100000", "backbone": '"dense"', "stages": "[1, 1]"}, "growth is 100000"),
        ({"splits": "[[7, 3], [3, 1, 1], [3, 1, 1]]"}, "missing"),
        ({"splits": "[[7, 3, 99999999], [3, 1, 1], [3, 1, 1]]"}, "is more than any model has"),
    ],
)
def test_model_descriptions(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(tiny_model(**changes))
    with pytest.raises(ConfigError) as refused:
        config_from_toml(path)
    told = str(refused.value)
    assert message in told
    assert told.isprintable() and len(told) < 500


# -- manifests -----------------------------------------------------------------------------------

MANIFEST: dict[str, Any] = {
    "kind": "onnx", "file": "a.onnx", "sha256": "a" * 64, "size_bytes": 5, "variant": "14",
    "precision": "fp32", "config": {"image_size": 32, "num_classes": 4}, "batch": None,
    "target": "portable", "weights": {"sha256": "b" * 64, "source": {}}, "parents": [],
    "details": {}, "manifest_version": 1,
}  # fmt: skip
ENGINE = {"backend": "tensorrt", "backend_version": "10", "sm": ["86"]}


def engine(**changes: Any) -> dict[str, Any]:
    return {"kind": "engine", "details": {"engine": {**ENGINE, **changes}}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "pickle"}, "kind is 'pickle'; expected onnx or engine"),
        ({"file": 5}, "file is 5; expected text"),
        ({"sha256": 5}, "sha256 is 5; expected text"),
        ({"size_bytes": -1}, "size_bytes is -1; expected a whole number of at least 0"),
        ({"size_bytes": "5"}, "size_bytes is '5'; expected a whole number"),
        ({"size_bytes": True}, "size_bytes is True; expected a whole number"),
        ({"size_bytes": 1 << 63}, "size_bytes is 9223372036854775808; expected a whole number"),
        ({"variant": ["<script>"]}, "variant is ['<script>']; expected text"),
        (
            {"precision": ["fp32"]},
            "precision is ['fp32']; expected one of fp32, fp16, bf16, int8, ",
        ),
        ({"config": [1]}, "config is [1]; expected an object"),
        ({"config": {"image_size": "32"}}, "config is {'image_size': '32'}; expected sizes"),
        ({"config": {"num_classes": -1}}, "config is {'num_classes': -1}; expected sizes"),
        ({"batch": 0}, "batch is 0; expected a whole number of at least 1"),
        ({"batch": True}, "batch is True; expected a whole number"),
        ({"batch": 1.5}, "batch is 1.5; expected a whole number"),
        ({"batch": -1}, "batch is -1; expected a whole number of at least 1"),
        ({"target": 5}, "target is 5; expected text"),
        ({"weights": [1]}, "weights is [1]; expected an object"),
        ({"weights": {"sha256": "../../../etc/passwd"}}, "weights is {"),
        ({"weights": {"sha256": "b" * 64, "source": 1}}, "weights is {"),
        ({"weights": {"sha256": 5}}, "weights is {"),
        ({"weights": {"sha256": "b" * 65}}, "weights is {"),
        ({"weights": {"source": {}}}, "weights is {"),
        ({"opset": -1}, "opset is -1; expected a whole number of at least 0"),
        ({"strategies": []}, "strategies is []; expected an object"),
        ({"parents": ["x"]}, "parents[0] is 'x'; expected an object"),
        ({"parents": {}}, "parents is {}; expected a list"),
        ({"verification": {"rel_l2": 1}}, "verification is {'rel_l2': 1}; expected one with"),
        ({"verification": "passed"}, "verification is 'passed'; expected an object"),
        ({"verification": []}, "verification is []; expected an object"),
        ({"details": 3}, "details is 3; expected an object"),
        ({"details": {"attestation": []}}, "attestation is []; expected an object"),
        ({"details": {"nodewise": {"status": 3}}}, "nodewise is {'status': 3}; expected one with"),
        ({"details": {"located": 3}}, "located is 3; expected an object"),
        ({"details": {"budget": 3}}, "budget is 3; expected an object"),
        ({"details": {"graph_verification": {}}}, "graph_verification is {}; expected one with"),
        ({"details": {"quantization": 3}}, "quantization is 3; expected an object"),
        ({"details": {"asked": 3}}, "asked is 3; expected an object"),
        ({"details": {"x": float("inf")}}, "Out of range float values are not JSON compliant"),
        ({"tools": []}, "tools is []; expected an object"),
        ({"sequence": "1"}, "sequence is '1'; expected a whole number"),
        ({"sequence": -1}, "sequence is -1; expected a whole number of at least 0"),
        ({"created": 5}, "created is 5; expected text"),
        ({"manifest_version": "2"}, "manifest_version is '2'; expected a whole number"),
        ({"unknown": 1}, "it has the unknown key 'unknown'"),
        ({"kind": "engine"}, "details.engine is missing"),
        ({"kind": "engine", "details": {"engine": []}}, "engine is []; expected an object"),
        (engine(backend=5), "engine.backend is 5; expected text"),
        (engine(backend_version=None), "engine.backend_version is None; expected text"),
        (engine(sm="86"), "engine.sm is '86'; expected a list"),
        (engine(sm=[86]), "engine.sm[0] is 86; expected text"),
        (engine(profiles="1:1:32"), "engine.profiles is '1:1:32'; expected a list"),
        (engine(inputs=["x"]), "engine.inputs[0] is 'x'; expected an object"),
        (engine(outputs={}), "engine.outputs is {}; expected a list"),
    ],
)
def test_a_manifest_with_a_wrong_value_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """Their checksums are right: it tells damage, and not a forger."""
    path = tmp_path / "a.onnx.manifest.json"
    path.write_text(manifest_text(MANIFEST | changes))
    with pytest.raises(ArtifactError) as refused:
        read_manifest(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is no valid manifest ({told}") and message.isprintable()
    assert message.endswith("); remove it and make the artifact again")


@pytest.mark.parametrize("file", ["", "../a.onnx", "b/a.onnx"])
def test_a_manifest_of_a_file_elsewhere(tmp_path: Path, file: str) -> None:
    path = tmp_path / "a.onnx.manifest.json"
    path.write_text(manifest_text(MANIFEST | {"file": file}))
    with pytest.raises(ArtifactError) as refused:
        read_manifest(path)
    assert str(refused.value) == f"{path} names {file!r}; expected a file beside it"


def test_a_manifest_that_can_be_read_and_nests_too_deep_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    sealed = MANIFEST | {"details": {"x": deep}, "checksum": ""}
    monkeypatch.setattr("t2t_deploy.workspace._manifest.json_from_file", lambda *_: sealed)
    with pytest.raises(ArtifactError, match=r"is no valid manifest \(maximum recursion depth"):
        read_manifest(tmp_path / "a.onnx.manifest.json")
    while deep:  # piece by piece: at once it would be freed by recursion too
        deep = deep.pop()


def test_honest_manifests_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx.manifest.json"
    built = {"kind": "engine", "details": {"engine": ENGINE}}
    variants: list[dict[str, Any]] = [{}, built, {"weights": {}, "config": {}}]
    for changes in variants:
        path.write_text(manifest_text(MANIFEST | changes))
        assert read_manifest(path).kind in ("onnx", "engine")


# -- benches, tails ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"cpu_model": "Some CPU"', '"cpu_model": ["CPU"]', "cpu_model is ['CPU']"),
        ('"artifact": null', '"artifact": {}', "artifact is {}"),
        ('"batch": 2', '"batch": 1e999', "batch is inf"),
        ('"p50": 1.5', '"p50": NaN', "p50 is nan"),
        ('"rounds": 5', '"rounds": "5"', "rounds is '5'"),
        ('"load_before": [0.25, ', f'"load_before": [{"9" * 400}, ', "load_before[0] is 999"),
    ],
)
def test_benches_of_other_values(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "old.json"
    values = full_report().to_dict()
    path.write_text(json.dumps(values))
    assert len(read_report(path).results) == 2
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ComparisonError, match=re.escape(message)):
        read_report(path)


def test_a_bench_of_too_many_rows(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    values = full_report().to_dict()
    path.write_text(json.dumps(values | {"results": values["results"] * 6000}))
    with pytest.raises(ComparisonError, match="12,000 rows; expected at most 10,000"):
        read_report(path)


@pytest.mark.parametrize("details", [{"tail": "sofmax"}, {"tail": ["softmax"]}, {"tail": None}])
def test_a_tail_that_is_unknown(details: dict[str, Any]) -> None:
    image = [TensorSpec("image", "float32", (None, 3, 8, 8))]
    logits = [TensorSpec("logits", "float32", (None, 10))]
    with pytest.raises(ArtifactError, match=r"known are .*softmax.*: update t2t-deploy"):
        signature_from_tensors(Path("a.engine"), image, logits, details, 10)


def test_limits_are_what_the_readers_hold_to() -> None:
    assert _untrusted.MAX_CONFIG_BYTES == 1 << 20 and _untrusted.MAX_MANIFEST_BYTES == 16 << 20
