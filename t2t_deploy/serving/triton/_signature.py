"""What a model takes and gives, read from its file or from what its builder noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph import read_onnx
from t2t_deploy.types import GraphIO, Tail, TensorSpec


@dataclass(frozen=True, slots=True)
class Signature:
    """A classifier of pictures.

    image: (N, 3, S, S) float32, normalised, or (N, S, S, 3) uint8. scores: (N, classes) or, behind
    a top-k, (N, k) float32. indices: (N, k) of the classes behind a top-k, else None.
    classes: how many there are; None behind a top-k that nothing else tells of.
    """

    image: TensorSpec
    scores: TensorSpec
    indices: TensorSpec | None
    tail: Tail
    classes: int | None

    @property
    def batch(self) -> int | None:
        """Pictures at a time; None where that is free."""
        return self.image.shape[0]

    @property
    def size(self) -> int:
        """Side of the picture, pixels."""
        size = self.image.shape[2]
        assert size is not None  # read_signature refuses others
        return size

    @property
    def image_input(self) -> str:
        """Name of the form of the picture: float32_nchw or uint8_nhwc."""
        return GraphIO(_of_pixels(self.image)).image_input

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """All it gives."""
        return (self.scores,) if self.indices is None else (self.scores, self.indices)


def signature_from_onnx(path: Path, details: Mapping[str, Any], classes: int | None) -> Signature:
    """What an ONNX file takes and gives.

    details: of its manifest. classes: of the model, where its manifest tells. Raises ArtifactError.
    """
    import onnx

    model = read_onnx(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    if any(entry.data_location == onnx.TensorProto.EXTERNAL for entry in model.graph.initializer):
        raise ArtifactError(
            f"{path} keeps its weights in other files; a server gets one file: export it again"
        )
    inputs = [_onnx_spec(info) for info in model.graph.input if info.name not in stored]
    outputs = [_onnx_spec(info) for info in model.graph.output]
    return _signature(path, inputs, outputs, details, classes)


def signature_from_tensors(
    path: Path,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    details: Mapping[str, Any],
    classes: int | None,
) -> Signature:
    """What an engine takes and gives, by the tensors that its manifest lists; as from ONNX."""
    return _signature(
        path, [_noted_spec(one) for one in inputs], [_noted_spec(one) for one in outputs], details,
        classes,
    )  # fmt: skip


def _signature(
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    details: Mapping[str, Any],
    classes: int | None,
) -> Signature:
    if len(inputs) != 1 or not GraphIO(_of_pixels(inputs[0])).takes(inputs[0]):
        raise ArtifactError(
            f"{path} takes {'; '.join(map(str, inputs)) or 'nothing'}; expected one picture, "
            "float32 (N, 3, S, S) or uint8 (N, S, S, 3): package a classifier"
        )
    (image,) = inputs
    known = GraphIO.of_details(details)  # raises for a form or a tail that is unknown here
    if "image_input" in details and known.embed_preprocess != _of_pixels(image):
        raise ArtifactError(
            f"{path} takes {image}, its manifest says {known.image_input}; export it again"
        )
    floats = [spec for spec in outputs if spec.dtype == "float32" and _is_row(spec)]
    integers = [spec for spec in outputs if spec.dtype in ("int64", "int32") and _is_row(spec)]
    if len(floats) != 1 or len(outputs) != 1 + len(integers) or len(integers) > 1:
        raise ArtifactError(
            f"{path} gives {'; '.join(map(str, outputs)) or 'nothing'}; expected float32 "
            "(N, classes), or float32 and integers (N, k): package a classifier"
        )
    (scores,) = floats
    named = Tail.TOPK if integers else Tail.LOGITS
    tail = known.tail if "tail" in details else named
    if (tail is Tail.TOPK) != bool(integers):
        raise ArtifactError(
            f"{path} gives {'; '.join(map(str, outputs))}, its manifest says its tail is "
            f"{tail.value}; export it again"
        )
    if integers and integers[0].shape[1] != scores.shape[1]:
        raise ArtifactError(f"{path} gives {'; '.join(map(str, outputs))}; expected one k")
    found = classes if integers else scores.shape[1]
    if classes not in (None, found):
        raise ArtifactError(f"{path} gives {scores}, its manifest says {classes} classes")
    return Signature(image, scores, integers[0] if integers else None, tail, found)


def _of_pixels(image: TensorSpec) -> bool:
    return image.dtype == "uint8"


def _is_row(spec: TensorSpec) -> bool:
    return len(spec.shape) == 2 and spec.shape[1] is not None


def _noted_spec(values: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(str(values["name"]), str(values["dtype"]), tuple(values["shape"]))


def _onnx_spec(info: Any) -> TensorSpec:
    import onnx

    tensor = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorSpec(info.name, str(dtype), shape)
