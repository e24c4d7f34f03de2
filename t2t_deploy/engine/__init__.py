"""TensorRT engines: building them, reading the builder's log, attesting what is in them."""

from __future__ import annotations

from t2t_deploy.engine._build import BuilderDiedError, EngineBuild, build_engine, trtexec_line
from t2t_deploy.engine._choice import (
    BACKEND_RTX,
    BuilderModule,
    check_targets,
    choose_builder,
    engine_version,
    parse_sm,
    supported_sms,
)
from t2t_deploy.engine._device import (
    CUDA_ERROR,
    Runnable,
    Unavailable,
    device_capability,
    device_name,
    load_refusal,
    runnable_here,
    why_no_device,
)
from t2t_deploy.engine._figures import Attestation, EngineFigures, attest
from t2t_deploy.engine._foreign import check_foreign
from t2t_deploy.engine._job import BuildOptions
from t2t_deploy.engine._module import BuilderLog, TensorRT, new_logger
from t2t_deploy.engine._network import sizes

__all__ = [
    "BACKEND_RTX",
    "CUDA_ERROR",
    "Attestation",
    "BuildOptions",
    "BuilderDiedError",
    "BuilderLog",
    "BuilderModule",
    "EngineBuild",
    "EngineFigures",
    "Runnable",
    "TensorRT",
    "Unavailable",
    "attest",
    "build_engine",
    "check_foreign",
    "check_targets",
    "choose_builder",
    "device_capability",
    "device_name",
    "engine_version",
    "load_refusal",
    "new_logger",
    "parse_sm",
    "runnable_here",
    "sizes",
    "supported_sms",
    "trtexec_line",
    "why_no_device",
]
