"""A program that computes with PyTorch in several threads, and lets forks work as commands do.

    python -c 'from tests.commands.forked import main; main()' COMMAND...

It prints a fork's answer by command, for verify that of a pool's worker, as JSON. Its working
directory holds `tiny.toml` and pictures in `train` and `val`.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import t2t_deploy
from tests.forks import in_fork, in_pool

MADE = Path("made.onnx")


def export() -> bool:
    return t2t_deploy.export_onnx(config="tiny.toml", workspace="forked").path.is_file()


def verify(**options: Any) -> bool:
    (found,) = t2t_deploy.verify_artifacts([MADE], **options)
    return not found.failed


def calibrate() -> int:
    return len(t2t_deploy.calibrate_onnx(MADE, images="train").calibration.ranges)


def quantize() -> str:
    made = t2t_deploy.quantize_onnx(MADE, images="train", speed=False)
    return made.require_manifest().precision.value


def evaluate() -> int:
    return len(t2t_deploy.evaluate_artifacts([MADE], images="val").references)


def inspect() -> int:
    (picture,) = Path("val").iterdir()
    return len(t2t_deploy.draw_features([MADE], features=picture).features.stages)


COMMANDS: dict[str, Callable[[], Any]] = {
    "export": export,
    "verify": verify,
    "nodewise": functools.partial(verify, nodewise=True),
    "locate": functools.partial(verify, locate=True),
    "calibrate": calibrate,
    "quantize": quantize,
    "evaluate": evaluate,
    "inspect": inspect,
}


def use_threads() -> None:
    """As an eager session with a larger model does."""
    torch.ones(1 << 20).relu().sum()


def main() -> None:
    torch.set_num_threads(2)
    t2t_deploy.export_onnx(config="tiny.toml", output=MADE)
    found: dict[str, Any] = {}
    for name in sys.argv[1:]:
        use_threads()
        forked = in_pool if name == "verify" else in_fork
        found[name] = forked(COMMANDS[name])
    print(json.dumps(found))
