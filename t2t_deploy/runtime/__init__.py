"""One `Session` protocol, one file per runtime; engine building."""

from __future__ import annotations

from t2t_deploy.runtime._backends import (
    BACKENDS,
    Backend,
    available_threads,
    open_session,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.runtime._engine_build import BuilderDiedError, EngineBuild, build_engine
from t2t_deploy.runtime._engine_device import (
    Obstacle,
    Runnable,
    device_capability,
    device_name,
    runnable_here,
    why_no_device,
)
from t2t_deploy.runtime._engine_figures import Attestation, EngineFigures, attest
from t2t_deploy.runtime._engine_order import BuildOptions
from t2t_deploy.runtime._onnx_file import check_onnx_file, read_onnx
from t2t_deploy.runtime._requirements import (
    GPU_BACKENDS,
    MODULES,
    TENSORRT_MODULES,
    build_obstacle,
    import_obstacle,
    run_obstacle,
)
from t2t_deploy.runtime._session import (
    CallTiming,
    ClosingSession,
    Session,
    SessionRequest,
    TimedRun,
    TimedSession,
    check_feeds,
)
from t2t_deploy.runtime._trt_choice import (
    BACKEND_RTX,
    BuilderModule,
    check_targets,
    choose_builder,
    engine_version,
    parse_sm,
)
from t2t_deploy.runtime._trtexec import trtexec_line

__all__ = [
    "BACKENDS",
    "BACKEND_RTX",
    "GPU_BACKENDS",
    "MODULES",
    "TENSORRT_MODULES",
    "Attestation",
    "Backend",
    "BuildOptions",
    "BuilderDiedError",
    "BuilderModule",
    "CallTiming",
    "ClosingSession",
    "EngineBuild",
    "EngineFigures",
    "Obstacle",
    "Runnable",
    "Session",
    "SessionRequest",
    "TimedRun",
    "TimedSession",
    "attest",
    "available_threads",
    "build_engine",
    "build_obstacle",
    "check_feeds",
    "check_onnx_file",
    "check_targets",
    "choose_builder",
    "device_capability",
    "device_name",
    "engine_version",
    "import_obstacle",
    "open_session",
    "parse_sm",
    "read_onnx",
    "run_obstacle",
    "runnable_here",
    "trtexec_line",
    "why_no_device",
    "why_not_in",
    "why_not_runnable",
]
