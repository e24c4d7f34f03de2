"""NaN and infinity in a graph, by the tensor that has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t2t_deploy.errors import ArtifactError
from t2t_deploy.graph import read_onnx
from t2t_deploy.types import INPUT_NAME
from t2t_deploy.verify._nodewise_graph import typed_graph_from_onnx
from t2t_deploy.verify._nodewise_session import Evaluation, NodeKernels, rounded

if TYPE_CHECKING:
    import onnx


def stored_non_finite(model: onnx.ModelProto) -> tuple[str, ...]:
    """Stored tensors of a graph that hold NaN or infinity."""
    import onnx

    found = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if "float" in values.dtype.name and not np.isfinite(values.astype(np.float32)).all():
            found.append(tensor.name)
    return tuple(found)


def why_non_finite(source: Path, picture: np.ndarray) -> str | None:
    """Which tensor of a file is the first with NaN or infinity, given what its input takes.

    source: an ONNX file; picture: (n, 3, S, S) float32 or (n, S, S, 3) uint8. None where every
    tensor is finite, or the graph cannot be evaluated node by node.
    """
    model = read_onnx(source, external_data=True)
    stored = stored_non_finite(model)
    if stored:
        return f"NaN or infinity is stored in {', '.join(stored[:3])}"
    try:
        graph = typed_graph_from_onnx(model)
        run = Evaluation(graph, NodeKernels(graph), np.float32)
        run.start({INPUT_NAME: picture})
        for step in graph.steps:
            results = rounded(step, run.compute(step))
            for tensor, form, values in zip(step.outputs, step.formats, results, strict=True):
                if form is not None and not np.isfinite(values).all():
                    bad = int(values.size - np.isfinite(values).sum())
                    return f"{bad} numbers are so first in tensor {tensor} ({step.op})"
            run.keep(step, results)
    except ArtifactError:
        return None
    return None
