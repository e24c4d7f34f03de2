"""Type stubs of three TensorRTs, each under the name `tensorrt`, for type-checking against any.

    python tools/tensorrt_stubs.py FOLDER

FOLDER/classic gets those of the package tensorrt-stubs, FOLDER/rtx those that pybind11-stubgen
makes of the installed TensorRT-RTX bindings, FOLDER/eleven those it makes of TensorRT 11's own
bindings; `MYPYPATH=FOLDER/rtx mypy` then checks against the second. They stay out of the virtual
environment, where an importable `tensorrt` without code would be taken for the real one, and out of
the repository.

TensorRT 11 itself has several GB. Its bindings are a small wheel, and import with empty libraries
in the place of the real ones: every name, type and argument is there, and nothing can be called
that asks a library. The wheel stays in FOLDER/wheel, for a test. Where all this cannot be done,
FOLDER/left_out says why in one line.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

CLASSIC = "tensorrt-stubs==10.13.0.35.1"
RTX = "tensorrt_rtx_bindings"
ELEVEN = "tensorrt_bindings"
ELEVEN_WHEEL = "tensorrt-cu13-bindings==11.4.0.106"
# of its wheels for Linux on x86-64: Python 3.10, 3.11, 3.12, 3.13, 3.14
ELEVEN_SHA256 = (
    "1d17853da33a186c4d4d39995c1186bb59f643689aabac9c3e33ae5f0ba402f5",
    "d072ac2a095e2be749fefc847adfb25d5ebe70303401df62ede8fe67a59f27fc",
    "5fc7a6c412881f7212030893bd5531b1a0ff415c72c7678dfe4ead7a7765b38d",
    "bac9a362c9189b5f5dd0444213913846e4b46003237834958e890eff57d86ed5",
    "233f5f02af7940b7cf15a5b526fc16b203d93181473a58588937bf401ca1d293",
)
# what they are linked against and take from it: where a release needs more, its import says what
_LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_PIP = (sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check")


class LeftOutError(Exception):
    """Why there is no TensorRT 11 here, in one line."""


def repaired(text: str) -> str:
    """What the generator writes of C++ names that Python has otherwise, mended."""
    text = re.sub(r"\bin: ", "in_: ", text)  # a keyword
    text = re.sub(r"^bool: .*\n", "", text, flags=re.MULTILINE)  # would hide the type
    # a parameter that must be given, after some that need not be
    return re.sub(r"channel_axis: ([\w.]+)\)", r"channel_axis: \1 = ...)", text)


def cached_wheel(folder: Path) -> Path | None:
    """The wheel of TensorRT 11's bindings that `main` left in FOLDER; None where it left none."""
    return next((folder / "wheel").glob("*.whl"), None)


def download_wheel(folder: Path) -> Path:
    """The wheel of TensorRT 11's bindings, from the package index. Raises LeftOutError."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise LeftOutError(f"its wheels are for Linux on x86-64, this is {platform.platform()}")
    target = folder / "wheel"
    with tempfile.TemporaryDirectory() as temporary:
        pinned = Path(temporary) / "pinned.txt"  # pip takes hashes from a file only
        pinned.write_text(" ".join((ELEVEN_WHEEL, *(f"--hash=sha256:{h}" for h in ELEVEN_SHA256))))
        done = _said("download", "--no-deps", "--only-binary=:all:", "-d", target, "-r", pinned)
    wheel = cached_wheel(folder)
    if done is not None or wheel is None:
        raise LeftOutError(f"pip cannot download {ELEVEN_WHEEL}: {done or 'it gives no reason'}")
    return wheel


def unpack_bindings(wheel: Path, folder: Path) -> dict[str, str]:
    """Unpack TensorRT 11's bindings beside empty libraries.

    Returns the environment in which a child process imports `tensorrt_bindings`.
    Raises LeftOutError where there is no C compiler, or for another file than the pinned one.
    """
    if hashlib.sha256(wheel.read_bytes()).hexdigest() not in ELEVEN_SHA256:
        raise LeftOutError(f"{wheel} is not the {ELEVEN_WHEEL} that is pinned; remove it")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise LeftOutError("there is no C compiler (cc) to make empty libraries with")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    libraries = folder / "empty"
    libraries.mkdir()
    first, *others = (libraries / name for name in _LIBRARIES)
    done = subprocess.run(
        [compiler, "-shared", "-nostdlib", "-o", first, "-x", "c", "-"],
        # called all the same, one ends the process: better than a made-up answer
        input="".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in _ENTRY_POINTS),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LeftOutError(f"{compiler} makes no shared library: {_last_line(done.stderr)}")
    for other in others:
        shutil.copy(first, other)
    paths = {"PYTHONPATH": folder, "LD_LIBRARY_PATH": libraries}
    return os.environ | {
        name: os.pathsep.join(filter(None, (str(path), os.environ.get(name))))
        for name, path in paths.items()
    }


def generate(module: str, target: Path, environment: Mapping[str, str]) -> None:
    """Make TARGET/tensorrt of a module of bindings. Ends the program where it does not import."""
    made = target.with_name("made")
    words = (sys.executable, "-m", "pybind11_stubgen", module, "-o", str(made))
    done = subprocess.run(
        (*words, "--ignore-all-errors"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"no stubs can be made of {module}: {_last_line(done.stderr)}")
    target.mkdir()
    (made / module).rename(target / "tensorrt")
    made.rmdir()
    for path in target.rglob("*.pyi"):
        path.write_text(repaired(path.read_text()).replace(module, "tensorrt"))


def main() -> None:
    """Make all three sets, from nothing."""
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    # without what it depends on: TensorRT itself, of several GB
    said = _said("install", "--no-deps", "--target", folder / "classic", CLASSIC)
    if said is not None:
        sys.exit(f"pip cannot install {CLASSIC}: {said}")
    for path in (folder / "classic").rglob("*.pyi"):
        path.write_text(repaired(path.read_text()))
    if importlib.util.find_spec(RTX) is None:
        # no wheels for this platform: checked against the classic ones twice
        shutil.copytree(folder / "classic", folder / "rtx")
    else:
        generate(RTX, folder / "rtx", os.environ)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            environment = unpack_bindings(download_wheel(folder), Path(temporary))
            generate(ELEVEN, folder / "eleven", environment)
    except LeftOutError as err:
        text = f"Left out: types of TensorRT 11: {err}. To try again: rm -r {folder}\n"
        (folder / "left_out").write_text(text)


def _said(*words: str | Path) -> str | None:
    """Run pip: its last error where it failed, else None."""
    done = subprocess.run((*_PIP, *words), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return errors[-1].removeprefix("ERROR: ") if errors else _last_line(done.stderr)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gives no reason"])[-1]


if __name__ == "__main__":
    main()
