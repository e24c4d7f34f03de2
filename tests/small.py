"""Models that are as small as a test can use: their descriptions, for `--config`, and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2t_deploy.commands import export_onnx
from t2t_deploy.workspace import Workspace


def tiny_model(tokens_type: str = "performer", **changes: float | str) -> str:
    """A description of the smallest model, but for some dimensions."""
    dimensions: dict[str, float | str] = {
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "token_dim": 16,
        "image_size": 32,
        "num_classes": 10,
    }
    lines = (f"{name} = {value}\n" for name, value in (dimensions | changes).items())
    return f'tokens_type = "{tokens_type}"\n{"".join(lines)}'


TINY = tiny_model()
# dimensions whose 8-bit graph is within its tolerance
TINY_FOR_8_BITS = tiny_model(embed_dim=64, token_dim=32, num_classes=2)
_WIDER = tiny_model(embed_dim=32, num_heads=4, mlp_ratio=3.0)
OTHER_BACKBONES = {
    "se": _WIDER + 'backbone = "se"\n',
    "ghost": _WIDER + 'backbone = "ghost"\n',
    "dense": _WIDER + 'backbone = "dense"\nstages = [1, 1]\ngrowth = 16\n',
}


def tiny_exports(folder: Path, *forms: dict[str, Any], model: str = TINY) -> Workspace:
    """The workspace `FOLDER/artifacts` with a small model exported in some forms."""
    config = folder / "tiny.toml"
    config.write_text(model)
    workspace = Workspace(folder / "artifacts")
    for form in forms:
        export_onnx(**form, config=config, workspace=workspace)
    return workspace
