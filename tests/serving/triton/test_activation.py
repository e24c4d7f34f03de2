"""The step behind a model of one output or several labels, as Triton runs it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import t2t_deploy.serving.triton as room
from t2t_deploy.types import sigmoid, softmax

LOGITS = np.array([[-2.0, 3.0, 1.0], [40.0, -90.0, 0.0]], np.float32)


def answered(monkeypatch: pytest.MonkeyPatch, **more: str) -> dict[str, np.ndarray]:
    """What the step makes of `LOGITS`, with a stand-in for the server's own module."""
    tensors = SimpleNamespace(
        Tensor=lambda name, values: (name, values),
        InferenceResponse=lambda output_tensors: dict(output_tensors),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: LOGITS),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", tensors)
    file = Path(room.__file__).parent / "_server" / "postprocess.py"
    spec = importlib.util.spec_from_file_location("postprocess", file)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    parameters = {"scores": "logits", "indices": "", "tail": "logits", "top": "3", **more}
    values: dict[str, Any] = {name: {"string_value": text} for name, text in parameters.items()}
    model.initialize({"model_config": json.dumps({"parameters": values})})
    (answer,) = model.execute([None])
    return dict(answer)


def test_probabilities_are_of_each_class_by_itself_where_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = answered(monkeypatch, activation="sigmoid")
    assert found["index"].tolist() == [[1, 2, 0], [0, 2, 1]]
    expected = np.take_along_axis(sigmoid(LOGITS), found["index"], axis=1)
    np.testing.assert_allclose(found["probability"], expected, atol=1e-7)
    usual = answered(monkeypatch)
    expected = np.take_along_axis(softmax(LOGITS), usual["index"], axis=1)
    np.testing.assert_allclose(usual["probability"], expected, atol=1e-7)
