"""checkpoint -> deploy form -> ONNX file, verified against the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2t_deploy._files import file_sha256
from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._verify import verify_file
from t2t_deploy.errors import UsageError
from t2t_deploy.types import BARE, GraphIO, Precision, Tail, Target
from t2t_deploy.workspace import Artifact, Manifest, Workspace

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from t2t_deploy.export import RewriteReport, Strategies
    from t2t_deploy.model import ModelConfig

RANDOM_SEED = 0


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export; None means the default named in the field's comment.

    A variant or a config is needed unless a checkpoint tells the variant by its shapes.
    """

    variant: str | None = None  # recognised from the checkpoint
    config_file: Path | None = None
    checkpoint: Path | None = None  # seeded random weights
    num_classes: int | None = None  # the checkpoint's, else the config's
    image_size: int | None = None  # the checkpoint's, else the config's
    batch: int | None = None  # dynamic
    precision: Precision = Precision.FP32
    target: Target = Target.PORTABLE
    soft_split: str | None = None  # the target's
    performer: str | None = None  # the target's
    opset: int | None = None  # the exporter's default
    graph_io: GraphIO = BARE  # normalised pictures in, logits out
    output: Path | None = None  # the workspace


def export_model(
    workspace: Workspace, request: ExportRequest, progress: Progress = silent
) -> Artifact:
    """Export, check the graph, verify the written file; a failed verification is in the manifest.

    Raises UsageError for options that contradict each other, CheckpointError, ConfigError,
    ExportError, MissingDependencyError.
    """
    read = read_model(request, progress)
    from t2t_deploy.model import save_weights

    sha256 = workspace.store_weights(lambda path: save_weights(read.state_dict, path))
    weights = {"sha256": sha256, "source": read.source}
    return export_weights(
        workspace,
        read.config.to_dict(),
        weights,
        request,
        progress,
        details={"notes": list(read.notes)},
    )


@dataclass(frozen=True, slots=True)
class NamedModel:
    """The model a request names: dimensions, weights, where they came from, what was changed."""

    config: ModelConfig
    state_dict: dict[str, Tensor]
    source: Mapping[str, Any]
    notes: tuple[str, ...]


def read_model(request: ExportRequest, progress: Progress = silent) -> NamedModel:
    """Read, or draw, the weights a request names; its notes are reported.

    What is wrong with the request itself is said before anything is read. Raises as `export_model`.
    """
    if request.variant is not None and request.config_file is not None:
        raise UsageError("--variant and --config both describe the model; give one of them")
    if request.variant is None and request.config_file is None and request.checkpoint is None:
        raise UsageError("nothing says which model to export; give --variant, such as 14")
    require("torch")
    from t2t_deploy.export import check_opset, choose_strategies
    from t2t_deploy.model import (
        config_for_variant,
        config_from_toml,
        load_checkpoint,
        random_state_dict,
    )

    strategies = choose_strategies(request.target, request.soft_split, request.performer)
    strategies.check_precision(request.precision)
    if request.opset is not None:
        check_opset(request.opset)
    config = None if request.config_file is None else config_from_toml(request.config_file)
    if request.checkpoint is None:
        base = config if config is not None else config_for_variant(str(request.variant))
        fitted = base.with_(image_size=request.image_size, num_classes=request.num_classes)
        model = NamedModel(
            config=fitted,
            state_dict=random_state_dict(fitted, RANDOM_SEED),
            source={"kind": "random", "seed": RANDOM_SEED},
            notes=("the weights are seeded random numbers: they serve benchmarking only",),
        )
    else:
        progress.step(f"reading {request.checkpoint.name}")
        checkpoint = load_checkpoint(
            request.checkpoint,
            variant=request.variant,
            config=config,
            image_size=request.image_size,
            num_classes=request.num_classes,
        )
        source = {
            "kind": "checkpoint",
            "file": request.checkpoint.name,
            "sha256": file_sha256(request.checkpoint),
            "container": checkpoint.container,
        }
        model = NamedModel(checkpoint.config, checkpoint.state_dict, source, checkpoint.notes)
    for note in model.notes:
        progress.note(note)
    return model


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A checked graph in memory, and what was made of the model for it."""

    model: onnx.ModelProto
    config: ModelConfig
    strategies: Strategies
    rewrites: RewriteReport
    opset: int


def graph_from_weights(
    weights: Path,
    config: Mapping[str, Any],
    request: ExportRequest,
    progress: Progress = silent,
    *,
    merge_bias: bool = True,
) -> ExportedGraph:
    """The graph of stored weights; of the request only the form of the graph counts here.

    merge_bias: see `onnx_from_deploy`. Raises UsageError, ExportError, MissingDependencyError.
    """
    require("torch")
    from t2t_deploy.export import DEFAULT_OPSET, DeployT2TViT, choose_strategies, onnx_from_deploy
    from t2t_deploy.graph import check_graph
    from t2t_deploy.model import config_from_dict, load_reference

    strategies = choose_strategies(request.target, request.soft_split, request.performer)
    opset = DEFAULT_OPSET if request.opset is None else request.opset
    fitted = config_from_dict(config)
    for hazard in strategies.hazards():
        progress.note(f"hazard: {hazard}")
    progress.step(f"exporting {fitted.name} in {request.precision.value}")
    deploy = DeployT2TViT(load_reference(weights, fitted), strategies, request.precision)
    model = check_graph(
        onnx_from_deploy(deploy, batch=request.batch, opset=opset, merge_bias=merge_bias),
        batch=request.batch,
        contrib=strategies.fuse_attention,
    )
    return ExportedGraph(model, fitted, strategies, deploy.report, opset)


def export_weights(
    workspace: Workspace,
    config: Mapping[str, Any],
    weights: Mapping[str, Any],
    request: ExportRequest,
    progress: Progress = silent,
    *,
    details: Mapping[str, Any] | None = None,
) -> Artifact:
    """Export stored weights; of the request only the form of the graph counts here."""
    stored = workspace.weights_path(weights["sha256"])
    graph = graph_from_weights(stored, config, request, progress)
    draft = draft_manifest(graph, request, weights)
    model = graph.model
    if not request.graph_io.bare:
        from t2t_deploy.graph import check_graph, with_graph_io

        model = check_graph(
            with_graph_io(model, request.graph_io),
            batch=request.batch,
            contrib=graph.strategies.fuse_attention,
        )

    def write(path: Path) -> dict[str, Any]:
        learned = write_graph(path, model, draft, stored, progress)
        learned["details"] = {
            **(details or {}),
            **graph_details(graph, request),
            "nodes": len(model.graph.node),
        }
        return learned

    return workspace.store(draft, write, stem=artifact_stem(draft), output=request.output)


def draft_manifest(
    graph: ExportedGraph, request: ExportRequest, weights: Mapping[str, Any]
) -> Manifest:
    """What is known of an exported graph before it is a file."""
    return Manifest(
        kind="onnx",
        file="",
        sha256="",
        size_bytes=0,
        variant=graph.config.name,
        precision=request.precision,
        config=graph.config.to_dict(),
        batch=request.batch,
        target=request.target.value,
        weights=weights,
        opset=graph.opset,
        strategies=graph.strategies.to_dict(),
        parents=({"kind": "weights", "sha256": weights["sha256"]},),
        details=request.graph_io.to_details(),
    )


def write_graph(
    path: Path, model: onnx.ModelProto, draft: Manifest, weights: Path, progress: Progress
) -> dict[str, Any]:
    """Write a graph's file and compare it with the reference; the manifest's ``verification``."""
    import onnx

    onnx.save(model, path)
    progress.step("verifying the file against the reference")
    return {"verification": verify_file(path, draft, weights).to_dict()}


def graph_details(graph: ExportedGraph, request: ExportRequest) -> dict[str, Any]:
    """The part of a manifest's details that tells how a graph was exported."""
    return {
        **request.graph_io.to_details(),
        "asked": {
            "soft_split": request.soft_split,
            "performer": request.performer,
            **asked_graph_io(request.graph_io),
        },
        "rewrites": {
            "applied": dict(graph.rewrites.applied),
            "refused": dict(graph.rewrites.refused),
        },
        "nodes": len(graph.model.graph.node),
    }


def forms_asked(manifest: Manifest) -> ExportRequest:
    """A request with the forms of the rewrites that an export was asked for, and no more."""
    asked = manifest.details.get("asked", {})
    return ExportRequest(soft_split=asked.get("soft_split"), performer=asked.get("performer"))


def asked_graph_io(graph_io: GraphIO) -> dict[str, Any]:
    """What ``asked`` tells of ends; nothing of those that every graph has by default."""
    embedded = {"embed_preprocess": True} if graph_io.embed_preprocess else {}
    return {**embedded, **({} if graph_io.tail is Tail.LOGITS else {"tail": graph_io.tail.value})}


def artifact_stem(manifest: Manifest) -> str:
    """A file name that tells the artifact apart for people; the hash tells the rest."""
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in manifest.variant)[:40]
    words = [name, str(manifest.config["image_size"]), manifest.precision.value, manifest.target]
    if manifest.batch is not None:
        words.append(f"b{manifest.batch}")
    words += GraphIO.of_details(manifest.details).words
    return "-".join(words)
