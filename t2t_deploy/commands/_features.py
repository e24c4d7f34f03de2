"""Token maps of an artifact beside the reference's, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._files import atomic_write
from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._nodewise import check_plot_request
from t2t_deploy.errors import ArtifactError, BackendError, UsageError
from t2t_deploy.graph import read_onnx
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.runtime import DEFAULT_BACKEND, REFERENCE_BACKEND, why_not_runnable
from t2t_deploy.types import OUTPUT_NAME
from t2t_deploy.verify import (
    PICTURE,
    FeatureColumn,
    Features,
    LayerValues,
    Stage,
    instrumented_graph,
    plot_features,
    see_stage,
)
from t2t_deploy.workspace import Artifact, Workspace

if TYPE_CHECKING:
    from t2t_deploy.model import ModelConfig

_HEAD = "head"


@dataclass(frozen=True, slots=True)
class DrawnFeatures:
    """The stages of a picture, and where they are drawn."""

    image: Path
    plot: Path
    features: Features

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"image": str(self.image), "plot": str(self.plot), **self.features.to_dict()}


def draw_features(
    workspace: Workspace,
    paths: Sequence[Path],
    image: Path,
    plot: Path | None = None,
    progress: Progress = silent,
) -> DrawnFeatures:
    """Draw what the reference and artifacts of the same weights have at each stage for a picture.

    plot: the PNG; None is one in the workspace's logs. Raises ArtifactError, BackendError,
    ImageError, UsageError.
    """
    if not paths:
        raise UsageError("no artifact is named; name one whose token maps shall be drawn")
    require("matplotlib")
    check_plot_request(plot, artifacts=1)
    artifacts = [workspace.open(path, force=True) for path in paths]
    _check(artifacts)
    reason = why_not_runnable(DEFAULT_BACKEND) or why_not_runnable(REFERENCE_BACKEND)
    if reason is not None:
        raise BackendError(f"token maps cannot be computed: {reason}")

    from t2t_deploy.model import config_from_dict

    manifest = artifacts[0].require_manifest()
    config = config_from_dict(manifest.config)
    places = _places(config)
    picture = preprocess(read_image(image), config.image_size)
    progress.step("computing the reference in float64")
    wanted = _reference(workspace.weights(manifest), config, picture, list(places))
    stages = [Stage(PICTURE, "the picture", picture.shape[1:], _pixel_rows(picture))]
    stages += [Stage(layer, *places[layer], rows) for layer, rows in wanted.items()]
    columns = []
    for artifact in artifacts:
        progress.step(f"computing the token maps of {artifact.path.name}")
        found = _layers_of(artifact, list(places), picture)
        rows = {PICTURE: _pixel_rows(found.picture[0])}
        rows |= {layer: values[0] for layer, values in found.layers.items()}
        seen = tuple(see_stage(stage, rows.get(stage.layer)) for stage in stages)
        columns.append(FeatureColumn(artifact.path.name, seen, found.outputs[OUTPUT_NAME][0]))
    features = Features(tuple(stages), tuple(columns), wanted[_HEAD][0])
    first = artifacts[0].path
    target = workspace.root / "logs" / f"{first.stem}.features.png" if plot is None else plot
    with atomic_write(target) as temporary:
        plot_features(features, temporary, title=f"Token maps of {image.name}")
    return DrawnFeatures(image, target, features)


def _check(artifacts: Sequence[Artifact]) -> None:
    """Refuse what has no token maps, or not those of the same reference."""
    for artifact in artifacts:
        name, manifest = artifact.path.name, artifact.require_manifest()
        if artifact.kind == "engine":
            raise ArtifactError(
                f"{name} is an engine, which shows no tensors; name the ONNX file it is of"
            )
        if not manifest.weights:
            raise ArtifactError(
                f"{name} was made from a file without manifest, so its reference is unknown; name "
                "a file that t2t-deploy exported"
            )
    one, *others = artifacts
    for other in others:
        if other.require_manifest().model_key != one.require_manifest().model_key:
            raise UsageError(
                f"{other.path.name} is of another model than {one.path.name}; expected artifacts "
                "of the same weights, which have one reference: inspect them one at a time"
            )


def _places(config: ModelConfig) -> dict[str, tuple[str, tuple[int, int] | None]]:
    """Layer -> title and grid, in the order of computation: where whole token maps pass.

    Of the backbone the first, middle and last layer, and the one before the last, which is the last
    whose map an exported graph computes whole.
    """
    from t2t_deploy.model import reference_layers

    first, second, third = config.grids()
    places: dict[str, tuple[str, tuple[int, int] | None]] = {
        "tokens_to_token.attention1 (sum after mlp)": ("token block 1", first),
        "tokens_to_token.attention2 (sum after mlp)": ("token block 2", second),
        "pos_embed": ("projected, with positions", third),
    }
    ends: dict[int, str] = {}  # what a layer of the backbone hands on is its last tensor
    for layer in reference_layers(config):
        if layer.startswith("blocks."):
            ends[int(layer.split(" ")[0].split(".")[1])] = layer
    count = len(ends)
    for index in sorted({0, (count - 1) // 2, max(count - 2, 0), count - 1}):
        places[ends[index]] = (f"backbone layer {index + 1} of {count}", third)
    places[_HEAD] = ("class logits", None)
    return places


def _reference(
    weights: Path, config: ModelConfig, picture: np.ndarray, layers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Layer -> (rows, channels) float64."""
    torch = require("torch")
    from t2t_deploy.model import load_reference, reference_tensors

    model = load_reference(weights, config).double()
    given = torch.from_numpy(picture[None].astype(np.float64))
    return {
        layer: values[0].numpy()
        for layer, values in reference_tensors(model, given, layers).items()
    }


def _layers_of(artifact: Artifact, layers: Sequence[str], picture: np.ndarray) -> LayerValues:
    model = read_onnx(artifact.path, external_data=True)
    with instrumented_graph(model, artifact.require_manifest(), layers) as graph:
        return graph.run(picture)


def _pixel_rows(picture: np.ndarray) -> np.ndarray:
    """(3, S, S) -> (S * S, 3) float64."""
    return picture.reshape(len(picture), -1).T.astype(np.float64)
