"""An artifact as a page: its graph with pixels in and the best classes out, checked against it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from t2t_deploy.errors import ArtifactError, CheckFailed
from t2t_deploy.runtime import DEFAULT_BACKEND, SessionRequest, open_session
from t2t_deploy.serving import Signature
from t2t_deploy.serving.triton import signature_from_onnx
from t2t_deploy.types import OUTPUT_NAME, TOLERANCES, GraphIO, Precision, Status, Tail
from t2t_deploy.verify import compare_logits, standard_pictures, tail_fault

_ONE_BY_ONE = "decides each class by itself; a page shows the best of several classes"
_IO = GraphIO(embed_preprocess=True, tail=Tail.TOPK)


def check_page(
    name: str, kind: str, precision: Precision | None, tail: Tail, batch: int | None
) -> None:
    """Raise ArtifactError for what the page cannot show, or its runtime not compute."""
    if kind != "onnx":
        reason = "is an engine, which no browser runs; package an ONNX file"
    elif precision not in (None, Precision.FP32, Precision.INT8, Precision.INT8_WEIGHTS):
        reason = f"is {precision.value}, which browsers do not compute; export fp32, or quantize"
    elif not tail.classifies:
        reason = f"gives {tail.value} and no classes; export a classifier"
    elif tail is Tail.SIGMOID:
        reason = _ONE_BY_ONE
    elif batch not in (None, 1):
        reason = f"takes {batch} pictures at a time; export it with --batch 1 or dynamic"
    else:
        return
    raise ArtifactError(f"no page can be made of {name}: it {reason}")


def check_web_model(path: Path, signature: Signature, precision: Precision | None) -> None:
    """The same of a file, by all that it says."""
    check_page(path.name, "onnx", precision, signature.graph_io.tail, signature.batch)
    channels = signature.preparation.channels
    if signature.classes == 1:
        reason = _ONE_BY_ONE
    elif channels not in (1, 3):
        reason = f"takes {channels} channels, which no picture file has"
    else:
        return
    raise ArtifactError(f"no page can be made of {path.name}: it {reason}")


def web_model(
    path: Path, signature: Signature, precision: Precision | None, folder: Path
) -> tuple[Path, Signature]:
    """The file that a page loads, and its signature: the artifact's own where it fits.

    Else its graph between other inputs and outputs, in ``folder``, whose logits are compared with
    those of the artifact on the standard pictures. Raises CheckFailed where they differ.
    """
    if signature.graph_io == _IO:
        return path, signature
    import onnx

    from t2t_deploy.graph import expose_tensors, read_onnx, with_graph_io, without_graph_io

    preparation = signature.preparation
    own = read_onnx(path)
    bare = own if signature.graph_io.bare else without_graph_io(own)
    derived = with_graph_io(bare, _IO, preparation)
    made = folder / "model.onnx"
    onnx.save(derived, made)
    pictures = standard_pictures(preparation)
    pixels = preparation.pixels_of(pictures.pictures)
    outputs = []
    for number, (model, embedded) in enumerate(
        ((own, signature.graph_io.embed_preprocess), (derived, True))
    ):
        shown = folder / f"shown{number}.onnx"
        onnx.save(expose_tensors(model, [OUTPUT_NAME]), shown)
        fed = pixels if embedded else preparation.normalise(pixels)
        outputs.append(_outputs(shown, signature.image.name, fed))
    tolerance = TOLERANCES[precision or Precision.FP32]
    expected, actual = (found[OUTPUT_NAME] for found in outputs)
    compared = compare_logits(expected, actual, pictures.names, tolerance)
    fault = tail_fault(outputs[1], actual) if compared.status is Status.PASSED else compared.reason
    if fault is not None:
        raise CheckFailed(
            f"{path.name} with pixels as its input and its best classes as outputs is not the same "
            f"model: {fault}; export it with --embed-preprocess --tail topk"
        )
    return made, signature_from_onnx(made, _IO.to_details(), signature.classes, preparation)


def _outputs(path: Path, name: str, pictures: np.ndarray) -> dict[str, np.ndarray]:
    with open_session(SessionRequest(DEFAULT_BACKEND, path)) as session:
        found = [session.run({name: pictures[at : at + 1]}) for at in range(len(pictures))]
    return {key: np.concatenate([one[key] for one in found]) for key in found[0]}
