"""ONNX Runtime sessions on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from t2t_deploy._optional import require
from t2t_deploy.errors import ArtifactError, BackendError
from t2t_deploy.graph import check_onnx_file, mappable_model
from t2t_deploy.runtime._session import ClosingSession, check_feeds
from t2t_deploy.types import TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
_CPU = "CPUExecutionProvider"
_EXACT_PRODUCTS = "session.x64quantprecision"
_FLOAT_ACTIVATIONS = "session.qdq_matmulnbits_accuracy_level"
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class OrtSession(ClosingSession):
    """An ONNX file in ONNX Runtime, on the CPU and nowhere else.

    threads: intra-op threads; None leaves one per core. Weights are mapped from the file
    (`_mapped_onnx`), which may be replaced while the session is open, never written into.
    Raises ArtifactError where the file is missing or no valid model.
    """

    backend = "ort-cpu"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        ort = require("onnxruntime")
        if not path.is_file():
            raise ArtifactError(f"there is no file {path}; export the model first")
        check_onnx_file(path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # Without VNNI, x86 saturates signed weights by unsigned activations, which is what ONNX
        # Runtime makes of signed operands: this has it take exact unsigned products there.
        options.add_session_config_entry(_EXACT_PRODUCTS, "1")
        # 1.32 makes a product with 8-bit weights one that rounds its activations to 8 bits too
        options.add_session_config_entry(_FLOAT_ACTIVATIONS, "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        before = path.stat()
        model = _source_of(path, options)
        try:
            session = ort.InferenceSession(model, options, providers=[_CPU])
        except Exception as err:
            raise_refusal(err, path)
        if _identity(path.stat()) != _identity(before):
            raise ArtifactError(
                f"{path} was replaced while it was being loaded; expected one file: open it again"
            )
        if session.get_providers() != [_CPU]:
            raise BackendError(
                f"ONNX Runtime runs on {session.get_providers()}, expected {_CPU}; is another "
                "provider forced by the environment?"
            )
        self.inputs = tuple(tensor_spec(node) for node in session.get_inputs())
        self.outputs = tuple(tensor_spec(node) for node in session.get_outputs())
        self._session = session

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs. Raises InputError, or BackendError on a closed session."""
        check_feeds(self.inputs, feeds)
        session = self._session  # stays until the call is done, whoever closes meanwhile
        if session is None:
            raise BackendError("the session is closed; open a new one")
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        """Free the model."""
        self._session = None


def _source_of(path: Path, options: Any) -> bytes | str:
    """What a session is made from: the graph with its weights left in the file, or the file."""
    model = mappable_model(path)
    if not model.mapped_bytes:
        return str(path)
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(path.absolute().parent))
    return model.graph


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def raise_refusal(err: Exception, path: Path) -> NoReturn:
    """Raise why a session did not open: ONNX Runtime's own errors in one line, others as is."""
    # they share no public base class
    if not type(err).__module__.startswith("onnxruntime"):
        raise err
    text = str(err).strip().splitlines()[0]
    raise ArtifactError(f"ONNX Runtime refuses {path}: {text}; export the model again") from err


def tensor_spec(node: Any) -> TensorSpec:
    """A session's input or output. Raises ArtifactError for a type that numpy does not have."""
    shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape)
    if node.type not in _DTYPES:
        raise ArtifactError(
            f"tensor {node.name!r} is {node.type}; expected one of {', '.join(_DTYPES)}"
        )
    return TensorSpec(node.name, _DTYPES[node.type], shape)
