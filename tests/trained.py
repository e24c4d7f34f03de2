"""The models trained on handwritten digits, their pictures as files, and exports of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from digits import digits_split

from t2t_deploy.commands import QuantizationMode, export_onnx
from t2t_deploy.model import config_from_toml, load_checkpoint, save_weights
from t2t_deploy.types import Precision, Target
from t2t_deploy.workspace import Workspace

from .outliers import with_outliers

FOLDER = Path(__file__).parent / "digits"
KINDS = ("performer", "transformer")
# every way to 8 bits
EIGHT_BITS: Mapping[str, dict[str, Any]] = {
    "static cpu": {"target": Target.CPU},
    "static portable": {"target": Target.PORTABLE},
    "static tensorrt": {"target": Target.TENSORRT},
    "dynamic": {"mode": QuantizationMode.DYNAMIC},
    "fp8": {"type": Precision.FP8},
}


def write_digits(folder: Path) -> Path:
    """The parts to calibrate and to test on, as files in class folders."""
    split = digits_split()
    split.calibration.write(folder / "calibration")
    split.test.write(folder / "test")
    return folder


def trained_weights(kind: str, outliers: float = 1) -> dict[str, torch.Tensor]:
    """outliers: factor on channels of the norms, which leaves what the model computes."""
    config = config_from_toml(FOLDER / f"{kind}.toml")
    weights = load_checkpoint(FOLDER / f"{kind}.pth.tar", config=config).state_dict
    return weights if outliers == 1 else with_outliers(weights, outliers).state_dict


def export_weights(workspace: Workspace, kind: str, weights: dict[str, torch.Tensor]) -> None:
    """Export weights in float32 as those of a trained model."""
    workspace.root.mkdir(parents=True)
    checkpoint = workspace.root / "digits.safetensors"
    save_weights(weights, checkpoint)
    export_onnx(config=FOLDER / f"{kind}.toml", checkpoint=checkpoint, workspace=workspace)
