"""The layer of an artifact that differs first from the reference."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.images import pixels_of
from t2t_deploy.pipeline._progress import Report, silent
from t2t_deploy.runtime import Session, SessionRequest, open_session, why_not_runnable
from t2t_deploy.types import OUTPUT_NAME, QUANTIZED, Ends, Precision, Tail
from t2t_deploy.verify import (
    TAIL_TOLERANCE,
    ComparedLayer,
    Located,
    NodewiseSession,
    PictureSet,
    compared_layer,
    located,
    nodewise_pictures,
    not_located,
    on_pixel_grid,
    rounding_of,
    stored_non_finite,
    tail_fault,
)
from t2t_deploy.workspace import Manifest

_PREPROCESSING = "preprocessing"

if TYPE_CHECKING:
    import onnx

    from t2t_deploy.export import LayerTensor
    from t2t_deploy.model import T2TViT


def locate_file(
    path: Path,
    manifest: Manifest,
    weights: Path,
    pictures: PictureSet | None = None,
    report: Report = silent,
) -> Located:
    """Compare every layer of an ONNX file with the reference's, each given the same input.

    On noise, a photograph and cream, or on other pictures. An engine, or a file without the runtime
    to compute its tensors, is reported as not run.
    """
    if manifest.kind == "engine":
        return not_located("an engine shows no tensors; name the ONNX file it is of")
    reason = why_not_runnable("ort-cpu") or why_not_runnable("eager")
    if reason is not None:
        return not_located(reason)
    import onnx

    from t2t_deploy.export import (
        NORMALISED_NAME,
        PerformerForm,
        layer_tensors,
        with_tensors_shown,
    )
    from t2t_deploy.model import config_from_dict, load_reference, reference_layers

    model = onnx.load(path)
    ends = Ends.of_details(manifest.details)
    config = config_from_dict(manifest.config)
    chosen = nodewise_pictures(config.image_size) if pictures is None else pictures
    shown = [OUTPUT_NAME]
    if ends.embed_preprocess:
        chosen = on_pixel_grid(chosen)
        shown.append(NORMALISED_NAME)
    every = reference_layers(config)
    scaled = _equalised_layers(manifest)
    performer = PerformerForm((manifest.strategies or {})["performer"])
    comparable = [layer for layer in every if layer not in scaled]
    tensors = layer_tensors(model, comparable, performer, config.token_dim)
    shown += [tensor.tensor for tensor in tensors.values()]
    found = []
    with _opened(with_tensors_shown(model, shown), manifest.precision) as session:
        comparison = _Comparison(
            load_reference(weights, config).double(), session, tensors, manifest, ends
        )
        for done, picture in enumerate(chosen.pictures):
            name = chosen.names[done]
            found.append((name, comparison.layers(name, picture)))
            report.progress("comparing layers", done + 1, len(chosen.names))
    return located(
        found,
        not_compared=[layer for layer in every if layer not in tensors],
        stored_non_finite=stored_non_finite(model),
        faults=comparison.faults[:1],
    )


def _equalised_layers(manifest: Manifest) -> set[str]:
    """Layers whose channels an 8-bit graph holds in other units than the reference.

    The layers that read them take it back, and are compared.
    """
    scaled: set[str] = set()
    for pair in manifest.details.get("quantization", {}).get("equalised", ()):
        producer = str(pair["producer"])
        in_tokens = re.fullmatch(r"tokens\.blocks\.(\d)\.tail\.norm", producer)
        values = re.fullmatch(r"(blocks\.\d+)\.attn\.v", producer)
        if in_tokens is not None:
            scaled.add(f"tokens_to_token.attention{int(in_tokens[1]) + 1}.norm2")
        elif values is not None:
            path = values[1]
            scaled |= {f"{path}.attn.qkv (values)", f"{path}.attn.v", f"{path} (attention)"}
        else:
            scaled.add(producer)
    return scaled


@contextlib.contextmanager
def _opened(model: onnx.ModelProto, precision: Precision) -> Iterator[Session]:
    """A session on a copy of a graph; bf16, of which no kernel is here, is rounded node by node."""
    if precision is Precision.BF16:
        with NodewiseSession(model) as session:
            yield session
        return
    import onnx

    with tempfile.TemporaryDirectory(prefix="t2t-deploy-locate-") as folder:
        path = Path(folder) / "shown.onnx"
        onnx.save(model, path)
        with open_session(SessionRequest("ort-cpu", path, precision=precision)) as session:
            yield session


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A graph with its layers' tensors shown, and the float64 reference.

    faults: what is wrong behind the logits, as it is found.
    """

    reference: T2TViT
    session: Session
    tensors: Mapping[str, LayerTensor]
    manifest: Manifest
    ends: Ends
    faults: list[str] = field(default_factory=list)

    def layers(self, name: str, picture: np.ndarray) -> list[ComparedLayer]:
        """Every layer for a picture (3, S, S) float32, the ends around them too."""
        torch = require("torch")
        from t2t_deploy.export import NORMALISED_NAME
        from t2t_deploy.model import Arithmetic, layer_errors

        taken = self.session.inputs[0]
        batch = taken.shape[0] or 1
        fed = np.repeat(picture[None], batch, axis=0)
        given = pixels_of(fed) if self.ends.embed_preprocess else fed
        outputs = self.session.run({taken.name: np.ascontiguousarray(given)})
        precision, base = self.manifest.precision, self._base
        seen = fed[:1].astype(np.float64)
        compared = []
        if self.ends.embed_preprocess:
            made = outputs[NORMALISED_NAME][:1].astype(np.float64)
            compared.append(_preprocessing(made, seen, name))
            if np.isfinite(made).all():
                seen = made
        arithmetic = Arithmetic(
            rounding_of(base),
            rounding_of(Precision.FP32),
            precision.value if precision in QUANTIZED else None,
        )
        found = {
            layer: torch.from_numpy(tensor.of(outputs[tensor.tensor], batch))
            for layer, tensor in self.tensors.items()
        }
        for error in layer_errors(self.reference, torch.from_numpy(seen), found, arithmetic):
            compared.append(
                compared_layer(error, self.tensors[error.layer].tensor, name, precision, base)
            )
        if self.ends.tail is not Tail.LOGITS and (
            fault := tail_fault(outputs, outputs[OUTPUT_NAME])
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
    from t2t_deploy.export import NORMALISED_NAME

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
