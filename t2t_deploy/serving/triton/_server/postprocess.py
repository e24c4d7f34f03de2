"""Triton's Python backend: what the model gives -> its most probable classes; needs numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Softmax or sigmoid where the model gives logits, order where it is no top-k, labels."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read from config.pbtxt what the model gives, and the model's labels."""
        found = json.loads(args["model_config"])["parameters"]
        parameters = {name: value["string_value"] for name, value in found.items()}
        self._scores = parameters["scores"]
        self._indices = parameters["indices"]
        self._tail = parameters["tail"]
        self._top = int(parameters["top"])
        self._activate = _sigmoid if parameters.get("activation") == "sigmoid" else _softmax
        labels = Path(__file__).parents[1] / "labels.txt"
        self._labels = None
        if labels.is_file():
            lines = labels.read_text(encoding="utf-8").splitlines()
            self._labels = np.array([line.encode() for line in lines], np.object_)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, in order; (n, classes) or (n, k) scores each."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        scores = pb_utils.get_input_tensor_by_name(request, self._scores).as_numpy()
        if self._tail == "topk":
            given = pb_utils.get_input_tensor_by_name(request, self._indices).as_numpy()
            indices, probabilities = given[:, : self._top], scores[:, : self._top]
        else:
            every = self._activate(scores) if self._tail == "logits" else scores
            # stable: classes of equal probability stand in the order of their indices
            indices = np.argsort(-every, axis=1, kind="stable")[:, : self._top]
            probabilities = np.take_along_axis(every, indices, axis=1)
        indices = np.ascontiguousarray(indices, np.int64)
        tensors = [
            pb_utils.Tensor("index", indices),
            pb_utils.Tensor("probability", np.ascontiguousarray(probabilities, np.float32)),
        ]
        if self._tail != "topk":
            tensors.append(pb_utils.Tensor(self._scores, scores))
        if self._labels is not None:
            tensors.append(pb_utils.Tensor("label", self._labels[indices]))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    shares: np.ndarray = 0.5 + 0.5 * np.tanh(logits.astype(np.float64) / 2)
    return shares
