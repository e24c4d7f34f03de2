"""The command line in process, beside a tiny model, pictures and names of classes."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2t_deploy.cli import main

TINY = """\
tokens_type = "performer"
embed_dim = 64
depth = 2
num_heads = 2
mlp_ratio = 2.0
token_dim = 32
image_size = 32
num_classes = 2
"""
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def typed(*words: object) -> tuple[int, str, str]:
    """The exit status of a command line, and what it printed on stdout and stderr."""
    before = [signal.getsignal(number) for number in SIGNALS]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
    return status, out.getvalue(), err.getvalue()


def json_of(wanted: int, *words: object) -> Any:
    """What a command prints with --json; its exit status is the one wanted."""
    status, out, err = typed(*words, "--json")
    assert status == wanted, out + err
    return json.loads(out)


def write_picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture(scope="session")
def all_tools() -> None:
    """Skip, with the reason, where a tool is missing, or a GPU lets engines run too."""
    told = json.loads(typed("doctor", "--json")[1])
    backends = {one["name"]: one["runs"] for one in told["backends"]}
    lacking = [name for name, can in told["can"].items() if not can["ok"]]
    lacking += [name for name in ("eager", "ort-cpu", "openvino") if not backends[name]]
    if told["cuda_device"] is not None:
        pytest.skip("the snapshots are of a machine without a GPU")
    if lacking:
        pytest.skip(f"cannot run here: {', '.join(lacking)}")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_tools: None) -> Path:
    """The current folder: a model's description, `train`, `val` with classes, their names."""
    monkeypatch.delenv("T2T_DEPLOY_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    for seed in range(8):
        write_picture(tmp_path / "train" / f"{seed}.png", seed)
    for seed in range(4):
        write_picture(tmp_path / "val" / "ab"[seed % 2] / f"{seed}.png", 100 + seed)
    return tmp_path
