"""Type stubs of both TensorRTs, each under the name `tensorrt`, for type-checking against either.

    python tools/tensorrt_stubs.py FOLDER

FOLDER/classic gets those of the package tensorrt-stubs, FOLDER/rtx those that pybind11-stubgen
makes of the installed TensorRT-RTX bindings; `MYPYPATH=FOLDER/rtx mypy` then checks against the
latter. They stay out of the virtual environment, where an importable `tensorrt` without code would
be taken for the real one, and out of the repository.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

CLASSIC = "tensorrt-stubs==10.13.0.35.1"
RTX = "tensorrt_rtx_bindings"


def repaired(text: str) -> str:
    """What the generator writes of C++ names that Python has otherwise, mended."""
    text = re.sub(r"\bin: ", "in_: ", text)  # a keyword
    text = re.sub(r"^bool: .*\n", "", text, flags=re.MULTILINE)  # would hide the type
    # a parameter that must be given, after some that need not be
    return re.sub(r"channel_axis: ([\w.]+)\)", r"channel_axis: \1 = ...)", text)


def main() -> None:
    """Make both sets, from nothing."""
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    # without what it depends on: TensorRT itself, of several GB
    subprocess.run([*pip, "--no-deps", "--target", folder / "classic", CLASSIC], check=True)
    for path in (folder / "classic").rglob("*.pyi"):
        path.write_text(repaired(path.read_text()))
    if importlib.util.find_spec(RTX) is None:
        # no wheels for this platform: checked against the classic ones twice
        shutil.copytree(folder / "classic", folder / "rtx")
        return
    made = folder / "made"
    command = [
        sys.executable,
        "-m",
        "pybind11_stubgen",
        RTX,
        "-o",
        str(made),
        "--ignore-all-errors",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (folder / "rtx").mkdir()
    (made / RTX).rename(folder / "rtx" / "tensorrt")
    made.rmdir()
    for path in (folder / "rtx").rglob("*.pyi"):
        path.write_text(repaired(path.read_text()).replace(RTX, "tensorrt"))


if __name__ == "__main__":
    main()
