"""From a T2T-ViT checkpoint to a verified ONNX file, a TensorRT engine and a benchmark."""

from __future__ import annotations

__version__ = "0.1.0"
