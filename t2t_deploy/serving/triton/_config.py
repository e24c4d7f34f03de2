"""Triton's configuration of a model, of the steps around it and of the ensemble of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from t2t_deploy.serving._classifier import Signature
from t2t_deploy.serving.triton._formats import Accelerator, Batching, ServingFormat
from t2t_deploy.serving.triton._pbtxt import Message, Value, Word, map_entries
from t2t_deploy.types import Activation, Precision, Tail, TensorSpec

LABELS_FILE = "labels.txt"
MODEL_FILES = {
    ServingFormat.TENSORRT: "model.plan",
    ServingFormat.ONNXRUNTIME: "model.onnx",
    ServingFormat.PYTHON: "model.onnx",
}
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_PLATFORMS = {
    ServingFormat.TENSORRT: "tensorrt_plan",
    ServingFormat.ONNXRUNTIME: "onnxruntime_onnx",
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
    in each instance; 0 is one per core.
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
        return (self.name, self.preprocess_name, self.postprocess_name, self.ensemble_name)


def model_config(service: Service) -> Message:
    """The model itself."""
    signature, batching = service.signature, service.batching
    config = _model(
        service,
        service.name,
        [_tensor(signature.image)],
        [_labelled(service, spec) for spec in signature.outputs],
        platform=_PLATFORMS.get(service.format),
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
        config |= _onnxruntime_fields(service)
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
    """All three steps: bytes of an image -> classes, and the scores they are taken from.

    All that it gives comes out of the last step, the scores too, which that hands on: where a
    tensor between steps is given as well, Triton 2.51 drops the step before it whenever a client
    asks for some of the outputs only, and answers with "unexpected deadlock".
    """
    signature = service.signature
    # labels come with the step that has them
    results = _results(service)
    given = {spec.name: f"model_{spec.name}" for spec in signature.outputs}
    names = {str(tensor["name"]): str(tensor["name"]) for tensor in results}
    steps = [
        _step(service.preprocess_name, {_BYTES: _BYTES}, {_PIXELS: _PIXELS}),
        _step(service.name, {signature.image.name: _PIXELS}, given),
        _step(service.postprocess_name, given, names),
    ]
    return {
        **_model(service, service.ensemble_name, [_FILE], results, platform="ensemble"),
        "ensemble_scheduling": {"step": steps},
    }


def _model(
    service: Service,
    name: str,
    inputs: Sequence[Message],
    outputs: Sequence[Message],
    *,
    platform: str | None = None,
    backend: str | None = None,
) -> dict[str, Value]:
    """What all configurations begin with."""
    words = {"name": name, "platform": platform, "backend": backend}
    return {
        **{key: word for key, word in words.items() if word is not None},
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
    return {"name": spec.name, "data_type": Word(_TYPES[spec.dtype]), "dims": dims}


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


def _onnxruntime_fields(service: Service) -> dict[str, Value]:
    fields: dict[str, Value] = {}
    accelerator = service.accelerator
    if accelerator is not Accelerator.NONE:
        settings = _accelerator_settings(service)
        entry = {"name": accelerator.value, "parameters": map_entries(settings)}
        device = "gpu" if accelerator.needs_gpu else "cpu"
        fields["optimization"] = {
            "execution_accelerators": {f"{device}_execution_accelerator": [entry]}
        }
    fields["parameters"] = _parameters({"intra_op_thread_count": str(service.threads)})
    return fields


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
