"""Where an output cannot be written, a command says so before its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2t_deploy import export_onnx
from t2t_deploy.errors import ArtifactError

from .command import Run

# whatever else is wrong: that is looked at later
COMMANDS = (
    ("export", "-o", "OUT/model.onnx"),
    ("calibrate", "missing.onnx", "--images", "missing", "-o", "OUT/a.ranges"),
    ("quantize", "missing.onnx", "--images", "missing", "-o", "OUT/model.onnx"),
    ("build-trt", "missing.onnx", "-o", "OUT/model.engine"),
    ("package", "missing.onnx", "--triton", "OUT"),
    ("verify", "missing.onnx", "--nodewise", "--plot", "OUT/plot.png"),
    ("bench", "missing.onnx", "--report", "OUT/bench.html"),
    ("bench", "missing.onnx", "--csv", "OUT/bench.csv"),
    ("predict", "missing.onnx", "missing", "--csv", "OUT/classes.csv"),
    ("evaluate", "missing.onnx", "--images", "missing", "--confusion", "OUT/plot.png"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_output_that_cannot_be_made(run: Run, words: tuple[str, ...]) -> None:
    Path("file").touch()
    message = run.fails("ArtifactError", *(word.replace("OUT", "file/below") for word in words))
    assert message == (
        "cannot create file/below: Not a directory; choose another (options workspace, output)"
    )
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_an_output_that_is_a_folder(tiny_toml: Path) -> None:
    Path("there").mkdir()
    with pytest.raises(ArtifactError, match="there is a folder; name the file to write"):
        export_onnx(config=tiny_toml, output="there")
    assert [path.name for path in Path().iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("export", "--config", "tiny.toml"), "weights"),
        (("calibrate", "--images", "missing"), "calibration"),
        (("quantize", "--images", "missing"), "onnx"),
        (("build-trt",), "logs"),
    ],
)
def test_a_workspace_that_cannot_be_written(
    run: Run, tiny_toml: Path, words: tuple[str, ...], folder: str
) -> None:
    Path("tiny.toml").write_bytes(tiny_toml.read_bytes())
    Path("file").touch()
    done = run(*words, "--workspace", "file/below", status=1)
    assert f"error: cannot create file/below/{folder}: Not a directory; choose another" in done.err
    assert "..." not in done.err
