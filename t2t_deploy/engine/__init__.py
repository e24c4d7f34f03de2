"""TensorRT engines: building, reading the builder's log, attestation."""

from __future__ import annotations

from t2t_deploy.engine._build import BuilderDiedError, BuildOptions, build_engine, trtexec_line
from t2t_deploy.engine._choice import (
    BUILDERS,
    BuilderModule,
    check_targets,
    choose_builder,
    engine_version,
    parse_sm,
    supported_sms,
)
from t2t_deploy.engine._device import Unavailable, device_capability, device_name, why_no_device
from t2t_deploy.engine._figures import Attestation, EngineFigures, attest
from t2t_deploy.engine._load import (
    LoadedEngine,
    choose_profile,
    load_engine,
    read_engine,
    why_not_loaded,
)
from t2t_deploy.engine._module import BACKEND_CLASSIC, BACKEND_RTX, MODULES, load_tensorrt
from t2t_deploy.engine._network import check_foreign, resolve_profiles, sizes

__all__ = [
    "BACKEND_CLASSIC",
    "BACKEND_RTX",
    "BUILDERS",
    "MODULES",
    "Attestation",
    "BuildOptions",
    "BuilderDiedError",
    "BuilderModule",
    "EngineFigures",
    "LoadedEngine",
    "Unavailable",
    "attest",
    "build_engine",
    "check_foreign",
    "check_targets",
    "choose_builder",
    "choose_profile",
    "device_capability",
    "device_name",
    "engine_version",
    "load_engine",
    "load_tensorrt",
    "parse_sm",
    "read_engine",
    "resolve_profiles",
    "sizes",
    "supported_sms",
    "trtexec_line",
    "why_no_device",
    "why_not_loaded",
]
