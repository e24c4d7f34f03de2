"""The layer of an artifact that differs first from the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy._progress import Progress, silent
from t2t_deploy.graph import read_onnx
from t2t_deploy.runtime import DEFAULT_BACKEND, REFERENCE_BACKEND, why_not_runnable
from t2t_deploy.types import OUTPUT_NAME, QUANTIZED, GraphIO, Precision, Tail
from t2t_deploy.verify import (
    TAIL_TOLERANCE,
    ComparedLayer,
    InstrumentedGraph,
    Located,
    PictureSet,
    compared_layer,
    instrumented_graph,
    located,
    nodewise_pictures,
    not_located,
    on_pixel_grid,
    rounding_of,
    stored_non_finite,
    tail_fault,
)
from t2t_deploy.workspace import Manifest

if TYPE_CHECKING:
    from t2t_deploy.model import T2TViT

_PREPROCESSING = "preprocessing"


def locate_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    progress: Progress = silent,
) -> Located:
    """Compare every layer of an ONNX file with the reference's, each given the same input.

    On noise, a photograph and cream, or on other pictures. An engine, or a file without the runtime
    to compute its tensors, is reported as not run.
    """
    if manifest.kind == "engine":
        return not_located("an engine shows no tensors; name the ONNX file it is of")
    reason = why_not_runnable(DEFAULT_BACKEND) or why_not_runnable(REFERENCE_BACKEND)
    if reason is not None:
        return not_located(reason)

    from t2t_deploy.model import config_from_dict, load_reference, reference_layers

    model = read_onnx(path, external_data=True)
    config = config_from_dict(manifest.config)
    chosen = nodewise_pictures(config.image_size) if pictures is None else pictures
    if GraphIO.of_details(manifest.details).embed_preprocess:
        chosen = on_pixel_grid(chosen)
    every = reference_layers(config)
    found = []
    with instrumented_graph(model, manifest, every) as graph:
        comparison = _Comparison(load_reference(weights, config).double(), graph, manifest)
        for done, picture in enumerate(chosen.pictures):
            name = chosen.names[done]
            found.append((name, comparison.layers(name, picture)))
            progress.progress("comparing layers", done + 1, len(chosen.names))
    return located(
        found,
        not_compared=[layer for layer in every if layer not in graph.tensors],
        stored_non_finite=stored_non_finite(model),
        faults=comparison.faults[:1],
    )


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A graph with its layers shown, and the float64 reference.

    faults: what is wrong behind the logits, as it is found.
    """

    reference: T2TViT
    graph: InstrumentedGraph
    manifest: Manifest
    faults: list[str] = field(default_factory=list)

    def layers(self, name: str, picture: np.ndarray) -> list[ComparedLayer]:
        """Every layer for a picture (3, S, S) float32, the ends around them too."""
        torch = require("torch")
        from t2t_deploy.model import Arithmetic, layer_errors

        found = self.graph.run(picture)
        precision, base = self.manifest.precision, self._base
        seen = picture[None].astype(np.float64)
        compared = []
        if self.graph.graph_io.embed_preprocess:
            made = found.picture
            compared.append(_preprocessing(made, seen, name))
            if np.isfinite(made).all():
                seen = made
        arithmetic = Arithmetic(
            rounding_of(base),
            rounding_of(Precision.FP32),
            precision.value if precision in QUANTIZED else None,
        )
        layers = {layer: torch.from_numpy(values) for layer, values in found.layers.items()}
        for error in layer_errors(self.reference, torch.from_numpy(seen), layers, arithmetic):
            compared.append(
                compared_layer(error, self.graph.tensors[error.layer].tensor, name, precision, base)
            )
        if self.graph.graph_io.tail is not Tail.LOGITS and (
            fault := tail_fault(found.outputs, found.outputs[OUTPUT_NAME])
        ):
            self.faults.append(f"the tail is wrong on {name}: {fault}")
        return compared

    @property
    def _base(self) -> Precision:
        """What activations are rounded to."""
        if self.manifest.precision not in QUANTIZED:
            return self.manifest.precision
        return Precision(self.manifest.details["quantization"]["base"])


def _preprocessing(made: np.ndarray, wanted: np.ndarray, on: str) -> ComparedLayer:
    """The picture as a graph normalises it, its channels last for the comparison."""
    from t2t_deploy.graph import NORMALISED_NAME

    off, channels = made - wanted, (0, 2, 3)
    norm = max(float(np.sqrt(np.square(wanted).sum())), np.finfo(np.float64).tiny)
    errors = np.sqrt(np.square(off).sum(axis=channels)) * np.sqrt(off.shape[1]) / norm
    worst = int(errors.argmax())
    bad = int(made.size - np.isfinite(made).sum())
    return ComparedLayer(
        layer=_PREPROCESSING,
        tensor=NORMALISED_NAME,
        rel_l2=np.inf if bad else float(np.sqrt(np.square(off).sum())) / norm,
        limit=TAIL_TOLERANCE,
        channel=worst,
        channel_error=np.inf if bad else float(errors[worst]),
        channel_limit=TAIL_TOLERANCE,
        on=on,
        non_finite=bad,
    )
