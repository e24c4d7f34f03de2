"""An exported graph evaluated node by node against the float64 reference, and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t2t_deploy._files import atomic_write
from t2t_deploy._optional import is_installed, require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.errors import UsageError
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import DEFAULT_BACKEND, REFERENCE_BACKEND, why_not_runnable
from t2t_deploy.types import TOLERANCES, GraphIO, Status
from t2t_deploy.verify import (
    NodewiseReport,
    PictureSet,
    evaluate_nodewise,
    nodewise_not_run,
    nodewise_pictures,
    on_pixel_grid,
    plot_nodewise,
)
from t2t_deploy.workspace import Manifest, Workspace

if TYPE_CHECKING:
    import onnx


def check_plot_request(plot: Path | None, artifacts: int) -> None:
    """Refuse a picture that could not be written, before anything is computed.

    Raises UsageError, MissingDependencyError.
    """
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        raise UsageError(f"--plot is {plot}; expected a file that ends in .png")
    if artifacts != 1:
        raise UsageError(
            f"--plot names one picture and {artifacts} artifacts are verified; name one artifact, "
            "or leave --plot out: each gets its picture in the workspace's logs"
        )
    require("matplotlib")


def nodewise_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    progress: Progress = silent,
) -> NodewiseReport:
    """Evaluate a file node by node on noise, a photograph and cream, or on other pictures.

    An engine, or a graph without the runtime to compute its nodes, is reported as not run.
    Raises ArtifactError for a graph that cannot be evaluated so.
    """
    tolerance = TOLERANCES[manifest.precision]
    if manifest.kind == "engine":
        return nodewise_not_run(tolerance, "an engine has no nodes; name the ONNX file it is of")
    reason = why_not_runnable(DEFAULT_BACKEND) or why_not_runnable(REFERENCE_BACKEND)
    if reason is not None:
        return nodewise_not_run(tolerance, reason)
    chosen = nodewise_pictures(manifest.config["image_size"]) if pictures is None else pictures
    graph_io = GraphIO.of_details(manifest.details)
    if graph_io.embed_preprocess:
        chosen = on_pixel_grid(chosen)
    wanted = float64_logits(weights, manifest.config, chosen.pictures)
    return evaluate_nodewise(
        bare_graph(path, graph_io), chosen, wanted, tolerance, progress=progress.progress
    )


def bare_graph(path: Path, graph_io: GraphIO) -> Path | onnx.ModelProto:
    """The graph inside its ends, which node by node is about; the file itself where it has none."""
    if graph_io.bare:
        return path
    from t2t_deploy.graph import without_graph_io

    return without_graph_io(read_onnx(path, external_data=True))


def draw_nodewise(
    workspace: Workspace,
    name: str,
    found: NodewiseReport,
    plot: Path | None = None,
    progress: Progress = silent,
) -> Path | None:
    """Write the picture whole or not at all: to ``plot``, else to the workspace's logs.

    None where nothing was evaluated, or matplotlib is absent and no picture was asked for.
    """
    if found.status is Status.NOT_RUN:
        return None
    if plot is None and not is_installed("matplotlib"):
        progress.note("no picture of it: pip install 't2t-deploy[plot]' brings matplotlib")
        return None
    target = workspace.root / "logs" / f"{Path(name).stem}.nodewise.png" if plot is None else plot
    with atomic_write(target) as temporary:
        plot_nodewise(found, temporary, title=f"{name}, node by node: {found.status.value}")
    return target


def float64_logits(weights: Path, config: Mapping[str, Any], pictures: np.ndarray) -> np.ndarray:
    """Logits (n, classes) of the reference in float64 on the original weights, one at a time."""
    torch = require("torch")
    from t2t_deploy.model import config_from_dict, load_reference

    model = load_reference(weights, config_from_dict(config)).double()
    with torch.inference_mode():
        logits = [model(torch.from_numpy(picture[None]).double()).numpy() for picture in pictures]
    return np.concatenate(logits)
