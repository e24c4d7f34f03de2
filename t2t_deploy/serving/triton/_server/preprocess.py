"""Triton's Python backend: picture files -> what the model takes; needs numpy and Pillow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# the transform is a copy of t2t_deploy's own modules, which comes before an installed one
sys.path.insert(0, str(Path(__file__).resolve().parent))

from t2t_deploy._preparation import Preparation  # by the path above
from t2t_deploy.errors import ImageError
from t2t_deploy.images import decode_image, resize_and_crop


class TritonPythonModel:
    """Each request by itself: a picture that cannot be read fails its own request only."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the steps from picture to input, and the input's form, from config.pbtxt."""
        parameters = json.loads(args["model_config"])["parameters"]
        steps = json.loads(parameters["preparation"]["string_value"])
        self._preparation = Preparation(**steps)
        self._floats = parameters["image_input"]["string_value"] == "float32_nchw"

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, in order; (n, 1) contents of files each."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        contents = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        try:
            images = [
                self._pixels(
                    content, "sent" if len(contents) == 1 else f"{index} of {len(contents)}"
                )
                for index, content in enumerate(contents, 1)
            ]
        except ImageError as err:
            return _failed(str(err))
        except Exception as err:  # of one request: those beside it are to be answered
            return _failed(f"cannot prepare the picture: {type(err).__name__}: {err}")
        tensor = pb_utils.Tensor("pixels", np.stack(images))
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _pixels(self, content: bytes, name: str) -> np.ndarray:
        preparation = self._preparation
        pixels = resize_and_crop(decode_image(content, name, preparation), preparation)
        return preparation.normalise(pixels) if self._floats else pixels


def _failed(text: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(" ".join(text.split())))
