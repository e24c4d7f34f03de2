"""ONNX files as data: safe reading, checks, inputs and outputs; onnx is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2t_deploy._optional import lazy
from t2t_deploy.graph._conformance import RUNTIMES, Conformance, check_conformance
from t2t_deploy.graph._file import check_onnx_file, mappable_model, read_onnx

if TYPE_CHECKING:
    from t2t_deploy.graph._check import CONTRIB_DOMAIN, check_graph, summarise_graph, tensor_spec
    from t2t_deploy.graph._io import (
        NORMALISED_NAME,
        class_names_in,
        expose_tensors,
        with_class_names,
        with_graph_io,
        without_graph_io,
    )

__all__ = [
    "CONTRIB_DOMAIN",
    "NORMALISED_NAME",
    "RUNTIMES",
    "Conformance",
    "check_conformance",
    "check_graph",
    "check_onnx_file",
    "class_names_in",
    "expose_tensors",
    "mappable_model",
    "read_onnx",
    "summarise_graph",
    "tensor_spec",
    "with_class_names",
    "with_graph_io",
    "without_graph_io",
]

if not TYPE_CHECKING:  # with it, any name would be right
    __getattr__ = lazy(__name__, __all__, "_check", "_io")
