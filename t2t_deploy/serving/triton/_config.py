"""Triton's configuration of a model, of the steps around it and of the ensemble of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from google.protobuf.text_encoding import CEscape

from t2t_deploy.serving._classifier import Signature
from t2t_deploy.serving.triton._formats import Accelerator, Batching, ServingFormat
from t2t_deploy.types import Activation, Precision, Tail, TensorSpec


class Word(str):
    """The name of an enumeration's value: written without quotes."""

    __slots__ = ()


Scalar: TypeAlias = str | bool | int | float
Value: TypeAlias = "Scalar | Message | Sequence[Scalar] | Sequence[Message]"
Message: TypeAlias = Mapping[str, "Value"]

LABELS_FILE = "labels.txt"
MODEL_FILES = {
    ServingFormat.TENSORRT: "model.plan",
    ServingFormat.ONNXRUNTIME: "model.onnx",
    ServingFormat.PYTHON: "model.onnx",
}
_PLATFORMS = {
    ServingFormat.TENSORRT: {"platform": "tensorrt_plan"},
    ServingFormat.ONNXRUNTIME: {"platform": "onnxruntime_onnx"},
}
_PYTHON = ServingFormat.PYTHON.value
_BYTES, _PIXELS = "image", "pixels"
_FILE: Message = {"name": _BYTES, "data_type": Word("TYPE_STRING"), "dims": [1]}
_TRT_PRECISION = {Precision.FP16: "FP16", Precision.INT8: "INT8"}


@dataclass(frozen=True, slots=True)
class Service:
    """A model as it is to be served.

    profiles: how many optimisation profiles an engine has. activation: as of the signature.
    top: classes that the ensemble gives.
    queue_delay_us: how long a request may wait for others, microseconds. instances: of the model;
    preprocess_instances: of the step that reads images, a process each. threads: of ONNX Runtime
    in each instance; 0 is a share of the server's processors in the Python backend, and one per
    core in Triton's own.
    """

    name: str
    format: ServingFormat
    signature: Signature
    batching: Batching
    accelerator: Accelerator
    precision: Precision | None
    profiles: int
    labels: tuple[str, ...] | None
    activation: Activation
    top: int
    queue_delay_us: int
    instances: int
    preprocess_instances: int
    threads: int

    @property
    def preprocess_name(self) -> str:
        """The step that makes pixels of an image's bytes."""
        return f"{self.name}_preprocess"

    @property
    def postprocess_name(self) -> str:
        """The step that makes classes of scores."""
        return f"{self.name}_postprocess"

    @property
    def ensemble_name(self) -> str:
        """The whole way from bytes to classes."""
        return f"{self.name}_images"

    @property
    def on_gpu(self) -> bool:
        """Whether the model needs a server with a GPU."""
        return self.format is ServingFormat.TENSORRT or self.accelerator.needs_gpu

    @property
    def gives_sigmoid(self) -> bool:
        """Whether probabilities are of each class by itself."""
        return self.activation is Activation.SIGMOID

    @property
    def top_count(self) -> int:
        """Classes that the ensemble gives: no more than the model does."""
        return min(self.top, self.signature.columns)

    @property
    def folder_names(self) -> tuple[str, ...]:
        """Names of the folders, in the order in which they are to be published."""
        post = (self.postprocess_name,) if self.classifies else ()
        return (self.name, self.preprocess_name, *post, self.ensemble_name)

    @property
    def gives(self) -> str:
        """What the ensemble gives, in a word."""
        return "classes" if self.classifies else self.signature.graph_io.tail.output

    @property
    def classifies(self) -> bool:
        """Whether the last step tells classes; else the model's outputs are the ensemble's."""
        return self.signature.graph_io.tail.classifies


def model_config(service: Service) -> Message:
    """The model itself."""
    signature, batching = service.signature, service.batching
    config = _model(
        service,
        service.name,
        [_tensor(signature.image)],
        [_labelled(service, spec) for spec in signature.outputs],
        **_PLATFORMS.get(service.format, {}),
        backend=service.format.value,
    )
    group: dict[str, Value] = {
        "kind": Word("KIND_GPU" if service.on_gpu else "KIND_CPU"),
        "count": service.instances,
    }
    if service.profiles > 1:
        group["profile"] = [str(index) for index in range(service.profiles)]
    config["instance_group"] = [group]
    if batching.preferred:
        config["dynamic_batching"] = {
            "preferred_batch_size": list(batching.preferred),
            "max_queue_delay_microseconds": service.queue_delay_us,
        }
    config["model_warmup"] = [
        _warmup([signature.image], size) for size in sorted({1, batching.max_size})
    ]
    if service.format is ServingFormat.ONNXRUNTIME:
        if service.accelerator is not Accelerator.NONE:
            config["optimization"] = _optimization(service)
        config["parameters"] = _parameters({"intra_op_thread_count": str(service.threads)})
    elif service.format is ServingFormat.PYTHON:
        config["parameters"] = _parameters({"threads": str(service.threads)})
    return config


def preprocess_config(service: Service) -> Message:
    """Bytes of an image's file -> what the model takes."""
    signature = service.signature
    pixels = TensorSpec(_PIXELS, signature.image.dtype, signature.image.shape)
    steps = json.dumps(
        signature.preparation.to_dict()
        | {"size": signature.preparation.size, "channels": signature.preparation.channels}
    )
    image_input = signature.graph_io.image_input
    return {
        **_model(service, service.preprocess_name, [_FILE], [_tensor(pixels)], backend=_PYTHON),
        "instance_group": [{"kind": Word("KIND_CPU"), "count": service.preprocess_instances}],
        "parameters": _parameters({"preparation": steps, "image_input": image_input}),
    }


def postprocess_config(service: Service) -> Message:
    """What the model gives -> the classes with the highest probabilities."""
    signature = service.signature
    inputs = [_tensor(spec) for spec in signature.outputs]
    outputs = _results(service)
    if signature.graph_io.tail is not Tail.TOPK:
        outputs[-1] = _labelled(service, signature.scores)
    return {
        **_model(service, service.postprocess_name, inputs, outputs, backend=_PYTHON),
        "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
        "model_warmup": [_warmup(signature.outputs, 1)],
        "parameters": _parameters(
            {
                "scores": signature.scores.name,
                "indices": "" if signature.indices is None else signature.indices.name,
                "tail": signature.graph_io.tail.value,
                "top": str(service.top_count),
                **({"activation": service.activation.value} if service.gives_sigmoid else {}),
            }
        ),
    }


def ensemble_config(service: Service) -> Message:
    """All steps: bytes of an image -> classes, and the scores they are taken from.

    Without a classifier: bytes of an image -> what the model gives.

    All that it gives comes out of the last step, the scores too, which that hands on: where a
    tensor between steps is given as well, Triton 2.51 drops the step before it whenever a client
    asks for some of the outputs only, and answers with "unexpected deadlock".
    """
    signature = service.signature
    results: list[Message] = [_tensor(spec) for spec in signature.outputs]
    given = {spec.name: spec.name for spec in signature.outputs}
    if service.classifies:
        results = _results(service)  # labels come with the step that has them
        given = {name: f"model_{name}" for name in given}
    steps = [
        _step(service.preprocess_name, {_BYTES: _BYTES}, {_PIXELS: _PIXELS}),
        _step(service.name, {signature.image.name: _PIXELS}, given),
    ]
    if service.classifies:
        names = {str(tensor["name"]): str(tensor["name"]) for tensor in results}
        steps.append(_step(service.postprocess_name, given, names))
    return {
        **_model(service, service.ensemble_name, [_FILE], results, platform="ensemble"),
        "ensemble_scheduling": {"step": steps},
    }


def _model(
    service: Service,
    name: str,
    inputs: Sequence[Message],
    outputs: Sequence[Message],
    **runs: str,
) -> dict[str, Value]:
    """What all configurations begin with. runs: its platform, its backend or both."""
    return {
        "name": name,
        **runs,
        "max_batch_size": service.batching.max_size,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": inputs,
        "output": outputs,
    }


def _results(service: Service) -> list[Message]:
    """Outputs of the last step and of the ensemble."""
    dims = [service.top_count]
    tensors: list[Message] = [
        {"name": "index", "data_type": Word("TYPE_INT64"), "dims": dims},
        {"name": "probability", "data_type": Word("TYPE_FP32"), "dims": dims},
    ]
    if service.labels is not None:
        tensors.append({"name": "label", "data_type": Word("TYPE_STRING"), "dims": dims})
    if service.signature.graph_io.tail is not Tail.TOPK:
        tensors.append(_tensor(service.signature.scores))
    return tensors


def _tensor(spec: TensorSpec) -> dict[str, Value]:
    dims = [-1 if dim is None else dim for dim in spec.shape[1:]]
    data_type = Word(f"TYPE_{spec.dtype.upper().replace('FLOAT', 'FP')}")
    return {"name": spec.name, "data_type": data_type, "dims": dims}


def _labelled(service: Service, spec: TensorSpec) -> Message:
    """An output; Triton's classification extension names classes where scores are one per class."""
    named = service.labels is not None and service.signature.graph_io.tail is not Tail.TOPK
    return _tensor(spec) | ({"label_filename": LABELS_FILE} if named else {})


def _warmup(inputs: Sequence[TensorSpec], size: int) -> Message:
    """A request of zeros."""
    values: dict[str, Value] = {}
    for spec in inputs:
        tensor = _tensor(spec)
        del tensor["name"]
        values[spec.name] = {**tensor, "zero_data": True}
    return {"name": f"batch of {size}", "batch_size": size, "inputs": map_entries(values)}


def _optimization(service: Service) -> Message:
    settings = map_entries(_accelerator_settings(service))
    entry = {"name": service.accelerator.value, "parameters": settings}
    device = "gpu" if service.accelerator.needs_gpu else "cpu"
    return {"execution_accelerators": {f"{device}_execution_accelerator": [entry]}}


def _accelerator_settings(service: Service) -> dict[str, Value]:
    if service.accelerator is Accelerator.CUDA:
        # else products of float32 are rounded to TensorFloat-32
        return {"use_tf32": "0"}
    if service.accelerator is not Accelerator.TENSORRT:
        return {}
    precision = service.precision or Precision.FP32
    settings: dict[str, Value] = {"precision_mode": _TRT_PRECISION.get(precision, "FP32")}
    image, most = service.signature.image, service.batching.max_size
    if image.shape[0] is None:
        # one engine for all batches, instead of one whenever a new size comes
        for bound, size in (("min", 1), ("opt", most), ("max", most)):
            dims = "x".join(map(str, (size, *image.shape[1:])))
            settings[f"trt_profile_{bound}_shapes"] = f"{image.name}:{dims}"
    return settings


def _parameters(values: dict[str, str]) -> list[Message]:
    return map_entries({key: {"string_value": value} for key, value in values.items()})


def _step(model: str, taken: dict[str, str], given: dict[str, str]) -> Message:
    """A step of an ensemble: tensors of the model -> tensors of the ensemble."""
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": map_entries(dict(taken)),
        "output_map": map_entries(dict(given)),
    }


def pbtxt(message: Message) -> str:
    """A message, as a mapping of fields, as text in their order; empty lists are left out."""
    return "".join(f"{line}\n" for line in _lines(message))


def map_entries(values: Mapping[str, Value]) -> list[Message]:
    """A protobuf map as what it is on the wire: a repeated field of keys and values."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Message) -> Iterator[str]:
    for name, value in message.items():
        repeated = isinstance(value, Sequence) and not isinstance(value, str)
        scalars = []
        for one in cast("Sequence[Scalar | Message]", value if repeated else [value]):
            if isinstance(one, Mapping):
                inside = [f"  {line}" for line in _lines(one)]
                yield from (f"{name} {{", *inside, "}") if one else (f"{name} {{}}",)
            else:
                scalars.append(_scalar(one))
        if scalars:
            yield f"{name}: [{', '.join(scalars)}]" if repeated else f"{name}: {scalars[0]}"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, str):
        return f'"{CEscape(value, as_utf8=True)}"'
    return json.dumps(value)
