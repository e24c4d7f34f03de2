"""What an artifact takes and gives, which backend of Triton serves it, and what it cannot serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from t2t_deploy._preparation import Preparation
from t2t_deploy.errors import ArtifactError, UsageError
from t2t_deploy.graph import read_onnx, summarise_graph
from t2t_deploy.serving._classifier import Signature, read_signature
from t2t_deploy.types import GraphIO, Precision, ShapeProfile, Tail, Target, TensorSpec

DEFAULT_MAX_BATCH = 32


class ServingFormat(str, Enum):
    """The form of a model in a repository; the value is the name of Triton's backend."""

    TENSORRT = "tensorrt"
    ONNXRUNTIME = "onnxruntime"
    PYTHON = "python"


class Accelerator(str, Enum):
    """What computes within Triton's ONNX Runtime backend."""

    NONE = "none"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"

    @property
    def needs_gpu(self) -> bool:
        """Whether the server must have a GPU."""
        return self in (Accelerator.CUDA, Accelerator.TENSORRT)


_TARGETS = {
    Accelerator.NONE: tuple(Target),
    Accelerator.CUDA: (Target.PORTABLE, Target.TENSORRT, Target.CUDA),
    Accelerator.TENSORRT: (Target.PORTABLE, Target.TENSORRT),
    Accelerator.OPENVINO: (Target.PORTABLE, Target.OPENVINO),
}
_DEFAULTS = {
    Target.TENSORRT: Accelerator.TENSORRT,
    Target.OPENVINO: Accelerator.OPENVINO,
    Target.CUDA: Accelerator.CUDA,
}
# where a precision would be computed in another one, or not at all
_PRECISIONS = {
    Accelerator.NONE: (Precision.FP32, Precision.FP16, Precision.INT8, Precision.FP8),
    Accelerator.CUDA: (Precision.FP32, Precision.FP16),
    Accelerator.TENSORRT: (Precision.FP32, Precision.FP16, Precision.INT8),
    Accelerator.OPENVINO: (Precision.FP32, Precision.INT8),
}


@dataclass(frozen=True, slots=True)
class Batching:
    """How Triton forms batches.

    max_size: images at most. preferred: sizes to wait for; empty: no dynamic batching.
    """

    max_size: int
    preferred: tuple[int, ...] = ()


def signature_from_onnx(
    path: Path,
    details: Mapping[str, Any],
    classes: int | None,
    preparation: Preparation | None = None,
) -> Signature:
    """What an ONNX file takes and gives.

    details: of its manifest. classes, preparation: of the model, where its manifest has them.
    Raises ArtifactError.
    """
    import onnx

    model = read_onnx(path)
    if any(entry.data_location == onnx.TensorProto.EXTERNAL for entry in model.graph.initializer):
        raise ArtifactError(
            f"{path} keeps its weights in other files; a server gets one file: export it again"
        )
    graph = summarise_graph(model)
    return signature_from_tensors(path, graph.inputs, graph.outputs, details, classes, preparation)


def signature_from_tensors(
    path: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    details: Mapping[str, Any],
    classes: int | None,
    preparation: Preparation | None = None,
) -> Signature:
    """As `signature_from_onnx`; what the details do not say of the tensors is read from them."""
    ranked = any(spec.dtype.startswith("int") for spec in outputs)
    graph_io = GraphIO.of_details(
        {
            "image_input": GraphIO(any(spec.dtype == "uint8" for spec in inputs)).image_input,
            "tail": (Tail.TOPK if ranked else Tail.LOGITS).value,
            **details,
        }
    )
    signature = read_signature(path, inputs, outputs, graph_io, classes, preparation)
    if signature.scores.dtype != "float32":
        raise ArtifactError(f"{path} gives {signature.scores}; expected float32: export it again")
    return signature


def choose_format(kind: str, asked: ServingFormat | None) -> ServingFormat:
    """The form for an artifact of a kind, engine or onnx.

    An ONNX file goes to Triton's own ONNX Runtime unless another form is asked for. Raises
    UsageError for a form that the artifact does not have.
    """
    if kind == "engine":
        if asked not in (None, ServingFormat.TENSORRT):
            raise UsageError(
                f"--format is {asked.value} and the artifact an engine, which Triton's tensorrt "
                "backend alone takes; package the ONNX file it was built from"
            )
        return ServingFormat.TENSORRT
    if asked is ServingFormat.TENSORRT:
        raise UsageError(
            "--format is tensorrt and the artifact an ONNX file; build an engine of it first: "
            "t2t-deploy build-trt"
        )
    return asked or ServingFormat.ONNXRUNTIME


def choose_accelerator(
    serving_format: ServingFormat,
    asked: Accelerator | None,
    target: Target | None,
    precision: Precision | None,
    *,
    dynamic_ranges: bool = False,
) -> Accelerator:
    """What computes an artifact of that target and precision; None of them is not known.

    dynamic_ranges: whether 8-bit ranges are found at run time. Raises UsageError where the
    accelerator asked for, or what the format implies, does not compute it.
    """
    if serving_format is ServingFormat.TENSORRT:
        if asked is not None:
            raise UsageError(f"--accelerator {asked.value} is for ONNX files; leave it out")
        return Accelerator.NONE
    if serving_format is ServingFormat.PYTHON and asked not in (None, Accelerator.NONE):
        raise UsageError(
            f"--accelerator is {asked.value}; the python format computes on the CPU: leave it out, "
            "or take --format onnxruntime"
        )
    default = Accelerator.NONE
    if serving_format is ServingFormat.ONNXRUNTIME and target is not None and not dynamic_ranges:
        default = _DEFAULTS.get(target, default)
        if precision is not None and precision not in _PRECISIONS[default]:
            default = Accelerator.NONE
    accelerator = default if asked is None else asked
    if target is not None and target not in _TARGETS[accelerator]:
        raise UsageError(
            f"--accelerator is {accelerator.value} and the graph made for {target.value}; it takes "
            f"{' or '.join(one.value for one in _TARGETS[accelerator])}: export with --target "
            f"{_TARGETS[accelerator][-1].value}"
        )
    lacks = precision is not None and precision not in _PRECISIONS[accelerator]
    if lacks or (dynamic_ranges and accelerator is not Accelerator.NONE):
        what = "int8 with dynamic ranges" if dynamic_ranges else getattr(precision, "value", "")
        where = "on the CPU" if accelerator is Accelerator.NONE else f"with {accelerator.value}"
        raise UsageError(
            f"ONNX Runtime does not compute {what} {where}; it does "
            f"{', '.join(one.value for one in _PRECISIONS[accelerator])}: export one of these"
            + ("" if dynamic_ranges else ", or build an engine: t2t-deploy build-trt")
        )
    return accelerator


def choose_batching(
    path: object,
    fixed: int | None,
    serving_format: ServingFormat,
    profiles: Sequence[ShapeProfile],
    max_batch: int | None,
) -> Batching:
    """Batch sizes for a model.

    fixed: the model's own; None is free. profiles: of an engine. max_batch: the largest asked for;
    None is what the engine takes, or `DEFAULT_MAX_BATCH` where the batch is free. Raises
    ArtifactError where Triton's batcher, which sends any number of images, does not suit;
    UsageError where the model takes fewer.
    """
    if fixed is not None and not profiles:
        if max_batch not in (None, fixed):
            raise UsageError(
                f"--max-batch is {max_batch} and the batch of {path} fixed at {fixed}; leave it out"
            )
        if fixed == 1:
            return Batching(1)
        if serving_format is not ServingFormat.PYTHON:
            raise ArtifactError(
                f"{path} takes exactly {fixed} pictures, Triton sends 1 to {fixed}: make it with "
                "--batch dynamic, or take --format python, which fills batches up"
            )
        return Batching(fixed, (fixed,))
    if not profiles:
        limit = DEFAULT_MAX_BATCH if max_batch is None else max_batch
        powers = (1 << n for n in range(2, (limit - 1).bit_length()))  # from 4 on, below the limit
        return Batching(limit, (*powers, limit) if limit > 1 else ())
    ordered = sorted(profiles, key=lambda profile: profile.min)
    reach = 0
    for profile in ordered:
        if profile.min > reach + 1:
            raise ArtifactError(
                f"{path} takes batches of {', '.join(map(str, profiles))}, Triton sends all from 1 "
                "on: build it again with --min-batch 1"
            )
        reach = max(reach, profile.max)
    if max_batch is not None and max_batch > reach:
        raise UsageError(
            f"--max-batch is {max_batch}, {path} takes up to {reach}: ask for less, or build it "
            f"again with --max-batch {max_batch}"
        )
    limit = reach if max_batch is None else max_batch
    tuned = {size for profile in ordered for size in (profile.opt, profile.max)} | {limit}
    return Batching(limit, tuple(sorted(size for size in tuned if 1 < size <= limit)))
