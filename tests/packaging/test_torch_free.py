"""`pip install 't2t-deploy[cpu]'` has no torch: it loads artifacts and predicts, and says the rest.

A bare environment is made and the wheel installed from the configured index, with the versions of
constraints.txt: slow, and skipped by name where no index can be reached.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from t2t_deploy import Artifact, export_onnx

from ..noise import write_noise
from ..program import finish
from ..small import TINY
from .conftest import ROOT, build_wheel, run

# of the folder of packages: what is larger is a package that nobody asked for
LARGEST_MB = 350
NEEDS_TORCH = "torch is not installed; this step needs it: pip install 't2t-deploy[export]'"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bare(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel with the extra cpu, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    wheel = build_wheel(source, folder)
    assert run(sys.executable, "-m", "venv", folder / "venv", folder=folder).returncode == 0
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = (programs / "python", "-m", "pip", "--disable-pip-version-check", "-q")
    reached = run(*pip, "download", "--no-deps", "-d", folder / "probe", "click", folder=folder)
    if reached.returncode != 0:
        last = reached.stderr.strip().splitlines()[-1]
        pytest.skip(f"no package index can be reached: {last}")
    constraints = ("-c", ROOT / "constraints.txt")
    installed = run(*pip, "install", *constraints, f"{wheel}[cpu]", folder=folder)
    assert installed.returncode == 0, installed.stderr
    return programs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact from here, where torch is, with pictures beside its workspace."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.toml").write_text(TINY)
    write_noise(*(folder / "pictures" / f"{index}.png" for index in range(4)))
    write_noise(*(folder / "val" / f"{index}/a.png" for index in range(2)))
    return export_onnx(config=folder / "tiny.toml", workspace=folder / "artifacts")


@pytest.fixture(scope="module")
def home(made: Artifact) -> Path:
    return made.path.parents[2]


def test_its_size_is_that_of_what_it_needs(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(bare / "python", "-c", program, folder=bare).stdout.strip())
    sizes: dict[str, float] = {}
    for entry in site.iterdir():
        files = entry.rglob("*") if entry.is_dir() else (entry,)
        sizes[entry.name] = sum(f.stat().st_size for f in files if f.is_file()) / 1e6
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:6]
    with capsys.disabled():
        shown = ", ".join(f"{name} {size:.0f}" for name, size in largest)
        print(f"\n[cpu]: {sum(sizes.values()):.0f} MB in {len(sizes)} entries: {shown}")
    assert not {"torch", "onnxscript", "onnxsim", "scipy", "skimage", "openvino"} & set(sizes)
    assert sum(sizes.values()) < LARGEST_MB


def test_it_predicts_what_is_predicted_here(bare: Path, made: Artifact, home: Path) -> None:
    words = ("predict", made.path, "pictures", "--top", 10, "--json")
    there = run(bare / "t2t-deploy", *words, folder=home)
    here = finish(*words, cwd=home)
    assert there.returncode == 0, there.stderr
    found = json.loads(there.stdout)["results"]
    assert len(found) == 4 and found == here.json["results"]


def test_a_session_runs(bare: Path, made: Artifact, home: Path) -> None:
    program = (
        "import sys, numpy as np; from t2t_deploy import load_session\n"
        f"with load_session({str(made.path)!r}) as session:\n"
        "    given = session.run({'image': np.zeros((2, 3, 32, 32), np.float32)})\n"
        "print(given['logits'].shape, 'torch' in sys.modules)"
    )
    done = run(bare / "python", "-c", program, folder=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 10) False\n"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("variants",), 0, "published"),
        (("doctor",), 0, "ort-cpu"),
        (("inspect", "FILE"), 0, "graph.inputs"),
        (("workspace", "list"), 0, "usable"),
        (("workspace", "check"), 0, "1 artifact, 0 problems"),
        (("package", "--triton", "models"), 0, "tritonserver --model-repository=models"),
        (("bench", "--rounds", "5"), 0, "not run: eager, compile"),
        (("export", "--config", "tiny.toml"), 1, NEEDS_TORCH),
        (("calibrate", "--images", "pictures"), 1, NEEDS_TORCH),
        (("quantize", "--images", "pictures"), 1, NEEDS_TORCH),
        (("verify",), 1, "backend eager cannot run here: torch is not installed"),
        (("evaluate", "--images", "pictures"), 1, "no reference: torch is not installed"),
        (("evaluate", "--images", "val"), 0, "no reference: torch is not installed"),
        (("build-trt", "--fp16"), 1, "tensorrt_rtx is not installed; this step needs it"),
        (("run", "recipe.toml"), 1, NEEDS_TORCH),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_command_works_or_says_what_is_missing(
    bare: Path, made: Artifact, home: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    """The table of docs/python-api.md, line by line."""
    (home / "recipe.toml").write_text('[model]\nconfig = "tiny.toml"\n')
    chosen = [str(made.path) if word == "FILE" else word for word in words]
    done = run(bare / "t2t-deploy", *chosen, folder=home)
    assert done.returncode == status, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
