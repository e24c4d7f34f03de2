"""A wrong artifact is found, kept, and refused afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ..needs import needs_openvino
from ..noise import write_noise
from .command import Change, Run, manifest_of
from .graphs import scaled

A_BIT_OFF = scaled("head.weight", 1.01)


@pytest.fixture
def wrong_file(onnx_file: Path, alter: Change) -> Path:
    """An export whose file does not compute what its manifest says it verified."""
    alter(onnx_file, A_BIT_OFF)
    return onnx_file


def test_a_wrong_export_exits_3(run: Run, tiny_toml: Path, wrong_exporter: Change) -> None:
    wrong_exporter(A_BIT_OFF)
    done = run("export", "--config", tiny_toml, "--batch", 1, "--json", status=3)
    verification = done.json["verification"]
    assert verification["status"] == "failed"
    assert verification["tolerance"] == 1e-5 < 5e-3 < verification["rel_l2"] < 2e-2
    reason = verification["reason"]
    assert reason.startswith("relative error ") and reason.endswith(", tolerance 1e-05")
    path = done.json["artifact"]["path"]
    where = f"which layer: t2t-deploy verify --locate {path}"
    assert done.err.splitlines()[-1] == f"error: failed: {reason}; {where}"
    assert Path(path).is_file()


def test_a_failed_artifact_is_refused(run: Run, tiny_toml: Path, wrong_exporter: Change) -> None:
    wrong_exporter(A_BIT_OFF)
    path = run.json("export", "--config", tiny_toml, "--batch", 1)["artifact"]["path"]
    for command in ("build-trt", "bench"):
        done = run(command, path, status=1)
        assert f"{path} failed its check (relative error " in done.err
        assert "; fix the cause and re-export, or use --force" in done.err

    done = run("build-trt", status=1)
    assert "every suitable onnx artifact of workspace artifacts failed its check" in done.err
    assert "or use --force" in done.err
    done = run("bench", status=1)
    assert f"note: left out {Path(path).name}: relative error " in done.err
    assert "nothing to bench" in done.err

    (listed,) = (line for line in run("workspace", "list").out.splitlines() if ".onnx" in line)
    assert "failed: relative error" in listed


def test_build_trt_with_force(
    run: Run, tiny_toml: Path, wrong_exporter: Change, tensorrt_rtx: None
) -> None:
    wrong_exporter(A_BIT_OFF)
    run("export", "--config", tiny_toml, "--batch", 1)
    assert run.json("build-trt", "--force", status=0)["artifact"]["precision"] == "fp32"


def test_nan_logits(run: Run, tiny_toml: Path, wrong_exporter: Change) -> None:
    wrong_exporter(scaled("head.weight", float("nan")))
    done = run("export", "--config", tiny_toml, "--batch", 1)
    reason = (
        "80 of 80 logits of the artifact are NaN or infinite, first on noise 0; NaN or infinity is "
        "stored in head.weight"
    )
    assert done.status == 3
    assert f"verification failed: {reason}" in done.out
    assert done.err.splitlines()[-1].startswith(f"error: failed: {reason}; which layer: ")


def test_verify_finds_a_wrong_file(run: Run, wrong_file: Path) -> None:
    done = run("verify", "--json", status=3)
    (result,) = done.json["results"]
    assert result["artifact"] == str(Path("artifacts/onnx", wrong_file.name))
    assert (result["status"], result["top1_agreement"]) == ("failed", 1.0)
    assert result["reason"].startswith("relative error ")
    assert f"failed verification: {wrong_file.name}" in done.err
    # from now on it is refused; verifying it again is not
    assert run("bench").status == 1
    assert run("verify", wrong_file).status == 3


def test_verify_clears_what_is_mended(run: Run, onnx_file: Path, change_manifest: Change) -> None:
    verification = manifest_of(onnx_file)["verification"]
    change_manifest(onnx_file, verification=verification | {"status": "failed"})
    assert run("build-trt", onnx_file).status == 1
    assert run("verify").status == 0
    assert manifest_of(onnx_file)["verification"] == (verification)


def test_own_pictures(run: Run, onnx_file: Path, wrong_file: Path) -> None:
    pictures = Path("my pictures")
    write_noise(*(pictures / name for name in ("a.jpg", "b.png", "ü.JPEG")), size=(50, 70))
    Path(pictures, "notes.txt").write_text("no picture")
    manifest = Path(f"{onnx_file}.manifest.json").read_text()

    (result,) = run.json("verify", "--images", pictures, status=3)["results"]
    assert set(result["pictures"]) == {"a.jpg", "b.png", "ü.JPEG"}
    # the manifest keeps the verdict on the standard pictures
    assert Path(f"{onnx_file}.manifest.json").read_text() == manifest


def test_more_pictures_than_are_taken(run: Run, workspace: Path) -> None:
    pictures = Path("many")
    pictures.mkdir()
    for index in range(66):
        Image.new("RGB", (40, 40), (index, 99, 200)).save(pictures / f"{index:02}.png")
    done = run("verify", "--images", pictures, "--json", status=0)
    assert len(done.json["results"][0]["pictures"]) == 64
    assert "note: took the first 64 pictures, left out 2" in done.err


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("missing", "missing is not a folder; give one with pictures"),
        ("empty", "empty holds no picture (.bmp, .gif, .jpeg, .jpg, "),
        ("broken", "cannot read the picture broken/cut.png: "),
    ],
)
def test_folders_without_pictures(run: Run, workspace: Path, folder: str, message: str) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert f"error: {message}" in run("verify", "--images", folder, status=1).err


def test_an_engine_is_not_run_and_says_why(run: Run, engine_file: Path) -> None:
    (result,) = run.json("verify", engine_file, status=0)["results"]
    assert (result["status"], result["rel_l2"], result["tolerance"]) == ("not_run", None, 5e-3)
    assert result["reason"]


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("--nodewise", "evaluated node by node: an engine has no nodes; name the ONNX file"),
        ("--locate", "compared by layers: an engine shows no tensors; name the ONNX file"),
    ],
)
def test_a_way_that_suits_no_artifact_is_an_error(
    run: Run, engine_file: Path, way: str, reason: str
) -> None:
    done = run("verify", engine_file, way, "--json", status=1)
    assert [row["status"] for row in done.json["results"]] == ["not_run"]
    assert f"error: nothing here can be {reason}" in done.err
    assert run("verify", way).status == 0  # the graph beside it


def test_an_engine_without_a_reference_is_an_error(
    run: Run, engine_file: Path, change_manifest: Change
) -> None:
    change_manifest(engine_file, weights={})
    done = run("verify", engine_file, status=1)
    assert "error: nothing here can be verified: made from a file without manifest" in done.err


def test_bf16_is_evaluated_node_by_node(run: Run, tiny_toml: Path) -> None:
    """No runtime on a CPU multiplies in bf16: the result says how it was got instead."""
    done = run.json("export", "--config", tiny_toml, "--batch", 1, "--precision", "bf16", status=0)
    for verification in (done["verification"], run.json("verify")["results"][0]):
        assert verification["status"] == "passed"
        assert 1e-3 < verification["rel_l2"] < verification["tolerance"] == 4e-2
        assert "evaluated node by node on 3 pictures" in verification["reason"]


def test_files_that_cannot_be_verified(run: Run, onnx_file: Path) -> None:
    done = run("verify", "no.onnx", status=1)
    assert (
        done.err
        == "error: there is no artifact no.onnx; 't2t-deploy workspace list' shows what there is\n"
    )
    foreign = onnx_file.rename("foreign.onnx")
    done = run("verify", foreign, status=1)
    assert "foreign.onnx has no manifest, so its weights and variant are unknown" in done.err
    assert "use a file that t2t-deploy exported" in done.err
    done = run("verify", "--workspace", "empty", status=1)
    assert done.err == "error: workspace empty has no artifact; make one first: t2t-deploy export\n"


def test_without_onnxruntime(run: Run, tiny_toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2t_deploy.runtime._session.is_installed", lambda module: False)
    verification = run.json("export", "--config", tiny_toml, "--batch", 1, status=0)["verification"]
    assert (verification["status"], verification["reason"]) == (
        *("not_run", "onnxruntime is not installed: pip install 't2t-deploy[cpu]'"),
    )


@needs_openvino
def test_verdict_of_another_runtime(run: Run, wrong_file: Path, change_manifest: Change) -> None:
    manifest = Path(f"{wrong_file}.manifest.json")
    before = manifest.read_bytes()
    (result,) = run.json("verify", wrong_file, "--backend", "openvino", status=3)["results"]
    assert result["status"] == "failed" and 5e-3 < result["rel_l2"] < 2e-2
    assert manifest.read_bytes() == before
    assert run("verify", wrong_file, "--json").status == 3
    assert manifest.read_bytes() != before


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_in_openvino(run: Run, tiny_toml: Path, precision: str) -> None:
    run("export", "--config", tiny_toml, "--precision", precision)
    (result,) = run.json("verify", "--backend", "openvino", status=0)["results"]
    if precision == "fp32":
        assert result["status"] == "passed" and 1e-8 < result["rel_l2"] < 1e-5
    else:
        assert result["status"] == "not_run"
        assert "would compute fp16 in float32" in result["reason"]


def test_a_backend_to_verify_on_is_one_of_two(run: Run, workspace: Path) -> None:
    message = "Invalid value for '--backend': 'eager' is not one of 'ort-cpu', 'openvino'."
    assert message in run("verify", "--backend", "eager", status=2).err
