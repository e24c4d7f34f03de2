"""calibrate, quantize and build-trt --int8 of the tiny model: what is made, kept, refused, said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from t2t_deploy import load_session
from t2t_deploy._processor import Processor
from t2t_deploy.calibration import stored_arrays
from t2t_deploy.commands import _quantize_plan
from t2t_deploy.errors import BackendError
from t2t_deploy.runtime import why_not_in
from t2t_deploy.runtime._openvino import OpenVinoSession
from t2t_deploy.runtime._ort import OrtCpuBackend
from t2t_deploy.types import Precision

from ..needs import needs_openvino
from ..noise import write_noise
from ..program import start
from .command import Change, Run, Temporaries, flip, manifest_of


@pytest.fixture
def pictures(empty_folder: Path) -> Path:
    """Twelve pictures of seeded noise in two folders."""
    folder = empty_folder / "pictures"
    write_noise(*(folder / "ab"[index % 2] / f"{index}.png" for index in range(12)))
    return folder


def ops(path: str | Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_ranges_are_taken_once(run: Run, workspace: Path, pictures: Path) -> None:
    first = run("calibrate", "--images", pictures, "--json", status=0)
    assert "note: from the newest export, tiny-32-fp32-portable-" in first.err
    assert f"note: {pictures} holds 12 pictures, fewer than the 512 asked" in first.err
    ranges, calibration = first.json["ranges"], first.json["calibration"]
    assert calibration["images"] == 12 and calibration["method"] == "minmax"
    assert not ranges["reused"] and Path(ranges["path"]).parent == Path("artifacts/calibration")
    before = Path(ranges["path"]).read_bytes()
    again = run("calibrate", "--images", pictures, "--json")
    assert again.json["ranges"]["reused"] and "were taken before" in again.err
    assert Path(ranges["path"]).read_bytes() == before
    assert [path.suffix for path in (workspace / "calibration").iterdir()] == [".ranges"]


@pytest.mark.parametrize(
    "change",
    [("--method", "mse"), ("--count", 8), ("--target", "cpu"), ("--no-equalise",)],
    ids=lambda change: change[0],
)
def test_other_ranges(
    run: Run, workspace: Path, pictures: Path, change: tuple[object, ...]
) -> None:
    assert run("calibrate", "--images", pictures).status == 0
    assert not run.json("calibrate", "--images", pictures, *change, status=0)["ranges"]["reused"]
    assert len(list((workspace / "calibration").iterdir())) == 2


def test_a_picture_that_changed_is_another_set(run: Run, workspace: Path, pictures: Path) -> None:
    assert run("calibrate", "--images", pictures).status == 0
    Image.new("RGB", (40, 40), (9, 9, 9)).save(pictures / "a" / "0.png")
    assert not run.json("calibrate", "--images", pictures)["ranges"]["reused"]


def test_unreadable_pictures_are_named(run: Run, workspace: Path, pictures: Path) -> None:
    (pictures / "a" / "broken.png").write_bytes(b"no picture")
    done = run("calibrate", "--images", pictures, "--json", status=0)
    assert done.json["calibration"]["images"] == 12
    (line,) = done.json["calibration"]["unreadable"]
    assert "broken.png" in line and "broken.png" in done.err
    shutil.rmtree(pictures / "b")
    for path in (pictures / "a").iterdir():
        path.write_bytes(b"no picture")
    done = run("calibrate", "--images", pictures, status=1)
    assert "holds 7 pictures and none can be read" in done.err


def test_the_count_is_taken_evenly(run: Run, workspace: Path, pictures: Path) -> None:
    done = run("calibrate", "--images", pictures, "--count", 4, "-v")
    assert "note: took 4 pictures evenly, left out 8" in done.err


def write_greys(folder: Path) -> Path:
    """Eight pictures of one grey each."""
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (40, 40), (20 + 30 * index,) * 3).save(folder / f"{index}.png")
    return folder


def test_poor_pictures_are_noted(run: Run, workspace: Path, empty_folder: Path) -> None:
    greys = write_greys(empty_folder / "greys")
    said = "note: of 8 calibration pictures, as the model sees them: 8 of one colour: calibrate on"
    first = run("calibrate", "--images", greys, "-o", "greys.ranges", "--json", status=0)
    counts = {"pictures": 8, "distinct": 8, "flat": 8, "colourless": 8, "enlarged": 0, "cropped": 0}
    assert first.json["calibration"]["counts"] == counts and said in first.err
    # ranges that were taken before say it too
    again = run("calibrate", "--images", greys, "--json")
    assert again.json["calibration"]["counts"] == counts and said in again.err
    done = run("quantize", "--ranges", "greys.ranges", "--no-speed", "--json")
    assert said in done.err
    manifest = manifest_of(Path(done.json["artifact"]["path"]))
    assert manifest["details"]["calibration"]["counts"] == counts


def test_poor_pictures_are_the_first_advice(
    run: Run, workspace: Path, empty_folder: Path, change_manifest: Change
) -> None:
    greys = write_greys(empty_folder / "greys")
    made = run("quantize", "--images", greys, "--no-speed", "--json", status=3)
    advice = "it was calibrated on 8 distinct pictures (8 of one colour): first calibrate on 64"
    assert made.err.index(advice) < made.err.index("; which layer: ")
    path = Path(made.json["artifact"]["path"])
    verified = run("verify", path, status=3)
    assert f"{path.name} was calibrated on 8 distinct" in verified.err
    # one of an earlier version tells nothing of its pictures
    details = manifest_of(path)["details"]
    del details["calibration"]["counts"]
    change_manifest(path, details=details)
    assert f"failed verification: {path.name}; which layer: " in run("verify", path, status=3).err


def test_static_ranges_for_any_runtime(run: Run, workspace: Path, pictures: Path) -> None:
    done = run("quantize", "--images", pictures, "--no-speed", "--json", "--force")
    assert done.status in (0, 3)  # white noise is a hard calibration set for photographs
    artifact = done.json["artifact"]
    assert artifact["precision"] == "int8" and artifact["target"] == "portable"
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(ops(artifact["path"]))
    calibration = done.json["calibration"]
    assert calibration["images"] == 12 and calibration["disjoint_from_eval"] is None
    manifest = manifest_of(Path(artifact["path"]))
    assert [parent["kind"] for parent in manifest["parents"]] == ["weights", "ranges"]
    assert len(manifest["details"]["calibration"]["pictures"]) == 12
    assert done.json["quantized_nodes"] == manifest["details"]["quantization"]["quantized_nodes"]
    assert done.json["speed"] is None


def test_dynamic_ranges_need_no_pictures(run: Run, workspace: Path) -> None:
    done = run("quantize", "--mode", "dynamic", "--json", status=0)
    path = done.json["artifact"]["path"]
    assert Path(path).name.startswith("tiny-32-int8-cpu-dynamic-")
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= set(ops(path))
    assert done.json["calibration"] is None
    assert "note: no pictures were given" in done.err
    speed = done.json["speed"]
    assert speed["status"] == "passed" and speed["low"] <= speed["ratio"] <= speed["high"]
    assert speed["verdict"].endswith("fp32 here")


@pytest.mark.parametrize(
    ("options", "has_vnni", "codes", "weights"),
    [
        ((), True, "vnni", np.int8),
        ((), False, "exact", np.uint8),
        (("--codes", "auto"), True, "vnni", np.int8),
        (("--codes", "vnni"), False, "vnni", np.int8),
        (("--codes", "exact"), True, "exact", np.uint8),
        (("--target", "portable"), True, "exact", np.uint8),
        (("--target", "portable", "--codes", "vnni"), False, "vnni", np.int8),
    ],
)
def test_codes_suit_the_processor(
    run: Run,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    has_vnni: bool,
    codes: str,
    weights: type,
) -> None:
    flags = ("avx2", "avx512_vnni") if has_vnni else ("avx2",)
    monkeypatch.setattr(_quantize_plan, "read_processor", lambda: Processor("one", flags))
    done = run("quantize", "--mode", "dynamic", *options, "--no-speed", "--json", status=0)
    path = Path(done.json["artifact"]["path"])
    stored = stored_arrays(onnx.load(path))
    assert {a.dtype for name, a in stored.items() if name.endswith("/codes")} == {np.dtype(weights)}
    details = manifest_of(path)["details"]["quantization"]
    assert done.json["quantization"]["codes"] == details["codes"] == codes
    by_default = options in ((), ("--codes", "auto"))
    assert (f"note: codes are stored as --codes {codes} does" in done.err) is by_default


def test_a_runtime_that_refuses_the_file_is_noted(
    run: Run, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, request: object) -> None:
        raise BackendError("it computes no product in integers")

    monkeypatch.setattr(OrtCpuBackend, "count_products", refuse)
    done = run("quantize", "--mode", "dynamic", "--no-speed", "--json", status=0)
    assert done.json["quantization"]["computed"] is None
    assert "note: it computes no product in integers" in done.err


@needs_openvino
def test_a_bf16_base_is_computed_and_read_back(run: Run, workspace: Path, pictures: Path) -> None:
    options = ("--images", pictures, "--target", "openvino", "--no-speed", "--json", "--force")
    done = run("quantize", *options, "--base", "bf16")
    assert done.status in (0, 3)
    assert done.json["quantization"]["base"] == "bf16"
    path = Path(done.json["artifact"]["path"])
    lacks = why_not_in("openvino", Precision.BF16)
    reason = done.json["verification"]["reason"]
    if lacks is not None:
        assert f"computed by ort-cpu, in fp32 instead of bf16: {lacks}" in reason
        refused = run("predict", path, pictures, "--backend", "openvino", status=1)
        assert "this CPU has no bf16" in refused.err
        return
    assert "computed by openvino, in bf16 around the 8-bit products" in reason
    picture = pictures / "a" / "0.png"
    elsewhere = run("predict", path, picture, "--force", status=0)
    assert f"ort-cpu computes {path.name} in fp32 around its 8-bit products" in elsewhere.err
    with load_session(path, backend="openvino", force=True) as session:
        assert isinstance(session, OpenVinoSession)
        assert session.layers.every["bf16"] > 9 and session.layers.products["i8"] > 9
    noted = run("quantize", *options)
    assert "this processor has bf16: --base bf16" in noted.err
    with load_session(noted.json["artifact"]["path"], backend="openvino", force=True) as session:
        assert isinstance(session, OpenVinoSession)
        assert "bf16" not in session.layers.every


@needs_openvino
def test_a_budget_on_a_bf16_base_says_where_it_is_measured(
    run: Run, workspace: Path, pictures: Path
) -> None:
    options = ("--images", pictures / "b", "--target", "openvino", "--no-speed", "--force")
    done = run("quantize", *options, "--base", "bf16", "--max-drop", 100, "--eval", pictures / "a")
    assert done.status in (0, 3)
    assert "note: drops are measured in ort-cpu, which computes in fp32" in done.err


def test_ranges_serve_their_graph_alone(run: Run, workspace: Path, pictures: Path) -> None:
    assert run("calibrate", "--images", pictures, "-o", "tiny.ranges").status == 0
    options = ("--ranges", "tiny.ranges", "--no-speed", "--json")
    assert run("quantize", *options).status in (0, 3)
    other = run("quantize", *options, "--target", "cpu", status=1)
    assert "taken on another graph" in other.err and "calibrate --target cpu" in other.err
    assert "was taken with equalisation" in run("quantize", *options, "--no-equalise", status=1).err
    flip(Path("tiny.ranges"), -3)
    assert "does not match its checksum" in run("quantize", *options, status=1).err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give a folder of images"),
        (("--images", "a", "--ranges", "b"), "give one of them"),
        (("--type", "fp8", "--mode", "dynamic"), "fp8 has no dynamic mode"),
        (("--mode", "dynamic", "--target", "tensorrt"), "expected target cpu or portable"),
        (("--mode", "dynamic", "--base", "fp16"), "expected target cpu or portable"),
        (("--images", "a", "--codes", "vnni"), "codes vnni is for ONNX Runtime on the CPU"),
        (("--images", "a", "--type", "fp8", "--target", "cpu"), "expected target tensorrt"),
        (("--images", "a", "--target", "cpu", "--base", "fp16"), "expected base fp32"),
        (("--images", "a", "--base", "bf16"), "only OpenVINO computes the rest of an int8 graph"),
        (("--images", "a", "--max-drop", "1"), "give them with eval"),
    ],
)
def test_contradictions(run: Run, workspace: Path, options: tuple[str, ...], said: str) -> None:
    assert said in run.fails("UsageError", "quantize", *options, status=2)


def test_a_missing_folder_is_one_line(run: Run, workspace: Path) -> None:
    done = run("quantize", "--images", "nowhere", status=1)
    assert "error: nowhere is not a folder; give one with pictures" in done.err


def test_an_impossible_budget_exits_3(run: Run, workspace: Path, pictures: Path) -> None:
    done = run(
        *("quantize", "--mode", "dynamic", "--max-drop", "-1", "--eval", pictures / "a"),
        *("--no-speed", "--json"),
        status=3,
    )
    # one folder of pictures has no labels: agreement counts
    assert done.json["budget"]["status"] == "failed"
    assert done.json["budget"]["measure"] == "agreement"
    assert "error: failed: 0.00 points of agreement" in done.err
    run("verify", done.json["artifact"]["path"], status=0)
    assert "failed its check" in run("bench", done.json["artifact"]["path"], status=1).err


@pytest.mark.usefixtures("tensorrt_rtx")
def test_int8_engine_in_one_command(run: Run, workspace: Path, pictures: Path) -> None:
    assert "give a folder of images" in run("build-trt", "--int8", "--sm", "86", status=1).err
    done = run("build-trt", "--int8", "--images", pictures, "--sm", "86,89", "--json", "--force")
    assert done.status in (0, 3)
    assert done.json["attestation"]["asked"] == "int8"
    # a model of 16 channels multiplies more in its attention than in its linear layers
    assert done.json["attestation"]["found"]["Int8"] > 0.2
    assert "Half" in done.json["attestation"]["found"]
    # the graph that was made is found again, without pictures
    graphs = sorted((workspace / "onnx").glob("*.onnx"))
    again = run.json("build-trt", "--int8", "--sm", "86,89", "--force")
    # of int8 graphs this small the builder does not always write the same bytes
    for figure in ("kernels", "kernels_by_dtype", "fused_attention", "size_bytes"):
        assert again["engine"][figure] == done.json["engine"][figure]
    assert sorted((workspace / "onnx").glob("*.onnx")) == graphs


@pytest.mark.usefixtures("tensorrt_rtx")
def test_fp8_below_89_is_refused_first(run: Run, workspace: Path, pictures: Path) -> None:
    for sm in ("86", "portable", "86,89"):
        done = run("build-trt", "--fp8", "--images", pictures, "--sm", sm, status=1)
        assert "cannot multiply in it, SM 89 is the first that can" in done.err
    assert not (workspace / "calibration").exists()
    done = run.json("build-trt", "--fp8", "--images", pictures, "--sm", "89,120", "--force")
    # windows of the token blocks stay half, and of 16 channels little else is left
    assert done["attestation"]["asked"] == "fp8"
    assert done["attestation"]["found"]["FP8"] == pytest.approx(61_696 / 860_160, abs=5e-5)
    assert done["attestation"]["bare_sums"] == []


@pytest.mark.usefixtures("tensorrt_rtx")
def test_weights_of_8_bits_compute_in_half(run: Run, workspace: Path) -> None:
    """No picture is needed: no activation is quantised."""
    made = run("quantize", "--type", "int8-weights", "--no-speed", "--json", status=0)
    found = run.json("build-trt", "--int8-weights", "--sm", "86", status=0)["attestation"]
    assert (found["asked"], found["status"]) == ("int8-weights", "passed")
    assert found["found"]["Half"] > 0.75 and found["bare_sums"] == []
    (graph,) = (workspace / "onnx").glob("*int8-weights*.onnx")
    assert (ops(graph)["DequantizeLinear"], ops(graph)["QuantizeLinear"]) == (10, 0)
    assert "placed as --placement balanced does, the default" in made.err
    # another placement is another graph, never the one that is there
    run("build-trt", "--int8-weights", "--placement", "compact", "--sm", "86", "--json", status=0)
    (other,) = set((workspace / "onnx").glob("*int8-weights*.onnx")) - {graph}
    assert ops(other)["DequantizeLinear"] > 10


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_placement_is_that_of_the_graph(run: Run, workspace: Path, pictures: Path) -> None:
    words = ("--int8", "--images", pictures, "--sm", "86", "--placement", "accurate")
    assert run.json("build-trt", *words, "--force")["attestation"]["bare_sums"] == []
    (graph,) = (workspace / "onnx").glob("*int8*.onnx")
    quantization = manifest_of(graph)["details"]["quantization"]
    assert quantization["placement"] == "accurate"
    forms = {one["form"] for one in quantization["layers"] if one["quantized"]}
    assert forms == {"channel"}
    bounds = [one["half_bound"] for one in quantization["layers"] if one["quantized"]]
    assert len(bounds) == 19 and 0 < min(bounds) <= max(bounds) < 65504


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_effort_that_makes_no_difference_is_left_out(run: Run, workspace: Path) -> None:
    done = run("build-trt", "--fp16", "--sm", "86", "--opt-level", "5", "--json", status=0)
    assert "the effort 5 is left out: TensorRT-RTX makes the same engine at every" in done.err
    (engine,) = (workspace / "engines").glob("*.engine")
    details = manifest_of(engine)["details"]
    assert details["engine"]["optimization_level"] is None


@pytest.mark.usefixtures("tensorrt_rtx")
def test_pictures_are_for_8_bits_alone(run: Run, workspace: Path, pictures: Path) -> None:
    assert "give int8 or fp8" in run("build-trt", "--fp16", "--images", pictures, status=2).err


def test_an_interrupted_calibration_goes_on(
    run: Run, workspace: Path, pictures: Path, temporaries: Temporaries
) -> None:
    """Killed once its sums were saved; the ranges are those of an uninterrupted one."""
    many = pictures / "many"
    write_noise(*(many / f"{index}.png" for index in range(400)), seed=1)
    words = ("calibrate", "--images", many, "--count", 400)
    run(*words, "-o", "whole.ranges", status=0)
    shutil.rmtree(workspace / "calibration")
    killed = start(*words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    folder = workspace / "calibration"
    while not list(folder.glob("tiny*.partial")) and time.monotonic() < deadline:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(folder.glob("tiny*.partial"))
    if not list(folder.glob("*.ranges")):  # else it was faster than the signal
        done = run(*words, "-o", "rest.ranges", status=0)
        assert "where a calibration was interrupted" in done.err
        whole_told, rest = (Path(n).read_bytes() for n in ("whole.ranges", "rest.ranges"))
        assert rest == whole_told
    assert not list(folder.glob("tiny*.partial"))
    # the next saving may have been under way
    assert run("workspace", "prune").status == 0


@pytest.mark.usefixtures("tensorrt_rtx", "workspace")
@pytest.mark.parametrize("precision", ["--int8", "--fp8", "--fp16"])
def test_a_placement_needs_pictures_to_quantise_on(run: Run, precision: str) -> None:
    done = run("build-trt", precision, "--placement", "compact", "--sm", "89", status=2)
    assert "placement compact is how a graph is quantised, and no pictures are given" in done.err
