"""What is in an ONNX file or an engine, and its token maps beside the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy._options import AnyPath, Opt, choice, command, ending
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import ArtifactFiles, artifact_values, workspace_of
from t2t_deploy.errors import ArtifactError, BackendError, UsageError
from t2t_deploy.graph import RUNTIMES, check_conformance, read_onnx
from t2t_deploy.images import preprocess, read_image
from t2t_deploy.runtime import DEFAULT_BACKEND, REFERENCE_BACKEND, why_not_runnable
from t2t_deploy.types import OUTPUT_NAME
from t2t_deploy.verify import (
    PICTURE,
    FeatureColumn,
    Features,
    Stage,
    instrumented_graph,
    plot_features,
    see_stage,
)
from t2t_deploy.workspace import Artifact, Workspace

if TYPE_CHECKING:
    from onnx import ModelProto

    from t2t_deploy.model import ModelConfig


# as in the `artifact` object
_SHARED = (
    *("sha256", "variant", "precision", "target", "batch"),
    *("image_size", "num_classes", "strategies"),
)


@command
def inspect_artifact(
    artifact: Annotated[AnyPath, Opt()],
    *,
    runtime: Annotated[
        str | None,
        Opt(
            "Whether another runtime computes the ONNX file right, by what is known of both.",
            choice(*RUNTIMES),
        ),
    ] = None,
    workspace: Workspace | AnyPath | None = None,
) -> dict[str, Any]:
    """What is in an ONNX file or an engine, and its lineage, JSON-ready: ``t2t-deploy inspect``.

    runtime: adds ``runtime``, with the known ``faults`` of the file there; without any, files of
    its kind were found right. Raises ArtifactError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import inspect_artifact
    >>> inspect_artifact(made.path)["graph"]["inputs"]
    ['image float32 (N, 3, 32, 32)']
    """
    opened = workspace_of(workspace).open(Path(artifact), force=True)
    manifest, values = opened.manifest, artifact_values(opened)
    summary: dict[str, Any] = {
        "path": str(opened.path),
        "size_bytes": opened.path.stat().st_size,
        "kind": opened.kind,
        "manifest": None,
    }
    if manifest is not None:
        summary["manifest"] = {
            **{name: values[name] for name in _SHARED},
            "verification": manifest.verification,
            "weights": dict(manifest.weights),
            "parents": [dict(parent) for parent in manifest.parents],
            "tools": dict(manifest.tools),
            "created": manifest.created,
            **manifest.graph_io.to_details(),
            "pictures": str(manifest.preparation),
            "pictures_source": manifest.details.get("preparation_source"),
            "class_names": manifest.details.get("class_names"),
            "rewrites": manifest.details.get("rewrites"),
            "outdated": manifest.outdated,
        }
    if opened.kind != "engine":
        graph = read_onnx(opened.path)  # its sizes are in the file itself
        summary["graph"] = _graph(graph)
        if runtime is not None:
            summary["runtime"] = check_conformance(graph, runtime).to_dict()
    elif runtime is not None:
        raise UsageError(f"{opened.path.name} is an engine, for TensorRT alone; name an ONNX file")
    elif manifest is not None:
        summary["engine"] = manifest.details["engine"]
        summary["attestation"] = manifest.details.get("attestation")
        summary["graph_verification"] = manifest.details.get("graph_verification")
    return summary


def _graph(model: ModelProto) -> dict[str, Any]:
    from t2t_deploy.graph import summarise_graph

    graph = summarise_graph(model)
    return {
        "opset": graph.opset,
        "nodes": graph.nodes,
        "ops": dict(graph.ops),
        "weight_bytes": dict(graph.weight_bytes),
        "inputs": [str(spec) for spec in graph.inputs],
        "outputs": [str(spec) for spec in graph.outputs],
    }


# -- token maps ----------------------------------------------------------------------------------

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


@command
def draw_features(
    artifacts: ArtifactFiles,
    *,
    features: Annotated[
        AnyPath,
        Opt(
            metavar="IMAGE",
            help="Draw the token maps of a picture at each stage, beside the reference's.",
        ),
    ],
    plot: Annotated[
        AnyPath | None,
        Opt(
            kind=ending(".png"),
            help="PNG of --features, instead of the one in the workspace's logs.",
        ),
    ] = None,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> DrawnFeatures:
    """Draw the token maps of a picture at each stage: ``t2t-deploy inspect --features``.

    artifacts: ONNX files of the same weights, side by side. features: the picture. plot: the PNG;
    None is one in the workspace's logs. Raises ArtifactError, BackendError, ImageError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import draw_features
    >>> drawn = draw_features([made.path], features="train/0.png")
    >>> [stage.grid for stage in drawn.features.stages][:3]
    [(32, 32), (8, 8), (4, 4)]
    """
    workspace = workspace_of(workspace)
    paths, image = cast("tuple[Path, ...]", artifacts), Path(features)
    if not paths:
        raise UsageError("no artifact is named; name one whose token maps shall be drawn")
    require("matplotlib")
    opened = [workspace.open(path, force=True) for path in paths]
    _check(opened)
    reason = why_not_runnable(DEFAULT_BACKEND) or why_not_runnable(REFERENCE_BACKEND)
    if reason is not None:
        raise BackendError(f"token maps cannot be computed: {reason}")

    from t2t_deploy.model import config_from_dict

    manifest = opened[0].require_manifest()
    config = config_from_dict(manifest.config)
    drawn = _drawn_layers(config)
    prepared = manifest.preparation
    picture = preprocess(read_image(image, prepared), prepared.size, prepared)
    progress.step("computing the reference in float64")
    expected = _reference(workspace.weights(manifest), config, picture, list(drawn))
    stages = [Stage(PICTURE, "the picture", picture.shape[1:], _pixel_rows(picture))]
    stages += [Stage(layer, *drawn[layer], rows) for layer, rows in expected.items()]
    columns = []
    for artifact in opened:
        progress.step(f"computing the token maps of {artifact.path.name}")
        model = read_onnx(artifact.path, external_data=True)
        with instrumented_graph(model, artifact.require_manifest(), list(drawn)) as graph:
            values = graph.run(picture)
        rows = {PICTURE: _pixel_rows(values.picture[0])}
        rows |= {layer: own[0] for layer, own in values.layers.items()}
        seen = tuple(see_stage(stage, rows.get(stage.layer)) for stage in stages)
        columns.append(FeatureColumn(artifact.path.name, seen, values.outputs[OUTPUT_NAME][0]))
    found = Features(tuple(stages), tuple(columns), expected[_HEAD][0], prepared)
    logs = workspace.root / "logs"
    target = logs / f"{opened[0].path.stem}.features.png" if plot is None else Path(plot)
    plot_features(found, target, title=f"Token maps of {image.name}")
    return DrawnFeatures(image, target, found)


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


def _drawn_layers(config: ModelConfig) -> dict[str, tuple[str, tuple[int, int] | None]]:
    """Layer -> title and grid, in the order of computation: where whole token maps pass.

    Of the backbone the first, middle and last layer, and the one before the last, which is the last
    whose map an exported graph computes whole.
    """
    from t2t_deploy.verify import reference_layers

    first, second, third = config.grids()
    drawn: dict[str, tuple[str, tuple[int, int] | None]] = {
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
        drawn[ends[index]] = (f"backbone layer {index + 1} of {count}", third)
    drawn[_HEAD] = ("class logits", None)
    return drawn


def _reference(
    weights: Path, config: ModelConfig, picture: np.ndarray, layers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Layer -> (rows, channels) float64."""
    torch = require("torch")
    from t2t_deploy.model import load_reference
    from t2t_deploy.verify import reference_tensors

    model = load_reference(weights, config).double()
    given = torch.from_numpy(picture[None].astype(np.float64))
    return {
        layer: values[0].numpy()
        for layer, values in reference_tensors(model, given, layers).items()
    }


def _pixel_rows(picture: np.ndarray) -> np.ndarray:
    """(3, S, S) -> (S * S, 3) float64."""
    return picture.reshape(len(picture), -1).T.astype(np.float64)
