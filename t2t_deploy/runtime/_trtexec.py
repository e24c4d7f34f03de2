"""The same build as a line for NVIDIA's command-line tools."""

from __future__ import annotations

import shlex
from pathlib import Path

from t2t_deploy.runtime._engine_build import EngineBuild
from t2t_deploy.runtime._trt_choice import BACKEND_CLASSIC, PORTABLE
from t2t_deploy.types import TensorSpec


def trtexec_line(build: EngineBuild, onnx_path: Path, engine_path: Path) -> str:
    """The command of NVIDIA's own tool that builds the same engine, as shell text.

    ``tensorrt_rtx`` comes with TensorRT-RTX, whose graphs are always strongly typed, ``trtexec``
    with TensorRT.
    """
    classic = build.backend == BACKEND_CLASSIC
    words = [
        *(("trtexec", "--stronglyTyped") if classic else ("tensorrt_rtx",)),
        f"--onnx={onnx_path}",
        f"--saveEngine={engine_path}",
        "--skipInference",
        "--profilingVerbosity=detailed",
        "--maxAuxStreams=0",
        "--noTF32",
    ]
    if build.options.memory_limit_mib is not None:
        words.append(f"--memPoolSize=workspace:{build.options.memory_limit_mib}")
    if build.options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={build.options.optimization_level}")
    if classic and build.sm == PORTABLE:
        words.append("--hardwareCompatibilityLevel=ampere+")
    if not classic and build.sm != PORTABLE:
        words.append(f"--computeCapabilities={','.join(build.sm)}")
    free = [spec for spec in build.inputs if spec.shape[:1] == (None,)]
    for index, profile in enumerate(build.profiles if free else ()):
        if len(build.profiles) > 1:
            words.append(f"--profile={index}")
        for option, batch in (
            ("minShapes", profile.min),
            ("optShapes", profile.opt),
            ("maxShapes", profile.max),
        ):
            shapes = ",".join(f"{s.name}:{_shape_text(s, batch)}" for s in free)
            words.append(f"--{option}={shapes}")
    return shlex.join(words)


def _shape_text(spec: TensorSpec, batch: int) -> str:
    return "x".join(map(str, (batch, *spec.shape[1:])))
