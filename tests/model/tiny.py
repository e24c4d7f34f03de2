"""Checkpoints of a tiny model in the test's folder: read, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t2t_deploy.errors import CheckpointError
from t2t_deploy.model import Checkpoint, ModelConfig, TokensType, load_checkpoint

CONFIG = ModelConfig("tiny", TokensType.PERFORMER, 16, 1, 2, 2.0, 16, image_size=32, num_classes=4)
StateDict = dict[str, torch.Tensor]


def load(content: object, **options: Any) -> Checkpoint:
    """Read what is at a path, or written by `torch.save`; options: those of `load_checkpoint`."""
    path = content if isinstance(content, Path) else Path("model.pth")
    if path is not content:
        torch.save(content, path)
    return load_checkpoint(path, **{"config": CONFIG, **options})


def refusal(content: object, **options: Any) -> str:
    with pytest.raises(CheckpointError) as refused:
        load(content, **options)
    message = str(refused.value)
    assert message.isprintable() and len(message) < 600
    return message


def same(found: StateDict, expected: StateDict) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[key], value) for key, value in expected.items()
    )
