"""Triton's Python backend: model.onnx beside it on the CPU; needs numpy and onnxruntime alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

# copies of t2t_deploy's own modules, which come before an installed one
sys.path.insert(0, str(Path(__file__).resolve().parent))

from t2t_deploy._limits import read_limits  # by the path above
from t2t_deploy._processor import read_processor


class TritonPythonModel:
    """Many requests, one call of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with the threads that config.pbtxt names.

        0 is this instance's share of the processors that the server may use.
        """
        config = json.loads(args["model_config"])
        threads = int(config["parameters"]["threads"]["string_value"])
        instances = sum(group["count"] for group in config["instance_group"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or read_limits().share(instances)
        # Without VNNI, x86 saturates signed weights by unsigned activations; with it, products of
        # unsigned codes alone are slower
        exact = "0" if read_processor().has_vnni else "1"
        options.add_session_config_entry("session.x64quantprecision", exact)
        # waiting threads sleep: the server's own, and other models', have work for the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(__file__).with_name("model.onnx")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        (image,) = self._session.get_inputs()
        self._input = image.name
        self._outputs = [output.name for output in self._session.get_outputs()]
        # images that each call takes, 0 for any number
        self._fixed = image.shape[0] if isinstance(image.shape[0], int) else 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, in order; (n, ...) pictures each, as the configuration says."""
        arrays = [
            pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            for request in requests
        ]
        try:
            found = self._session.run(self._outputs, {self._input: self._batch(arrays)})
        except Exception as err:  # what ONNX Runtime raises shares no public base class
            text = f"the model failed: {' '.join(str(err).split())}"
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(text)) for _ in requests]
        responses = []
        start = 0
        for array in arrays:
            stop = start + len(array)
            tensors = [
                pb_utils.Tensor(name, values[start:stop])
                for name, values in zip(self._outputs, found, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = stop
        return responses

    def _batch(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The pictures of all requests, filled up where the model takes a fixed number."""
        missing = self._fixed - sum(map(len, arrays)) if self._fixed else 0
        if missing > 0:
            arrays = [*arrays, np.zeros((missing, *arrays[0].shape[1:]), arrays[0].dtype)]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
