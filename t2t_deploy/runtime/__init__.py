"""One `Session` protocol, one file per runtime; engine building."""

from __future__ import annotations

from t2t_deploy.runtime._backends import (
    BACKENDS,
    Backend,
    available_threads,
    open_session,
    why_not_runnable,
)
from t2t_deploy.runtime._engine_build import BuildOptions, EngineBuild, build_engine
from t2t_deploy.runtime._engine_device import Runnable, device_capability, runnable_here
from t2t_deploy.runtime._engine_figures import Attestation, EngineFigures, attest
from t2t_deploy.runtime._session import ClosingSession, Session, SessionRequest, check_feeds
from t2t_deploy.runtime._trt_choice import (
    BuilderModule,
    choose_builder,
    engine_version,
    parse_sm,
)
from t2t_deploy.runtime._trtexec import trtexec_line

__all__ = [
    "BACKENDS",
    "Attestation",
    "Backend",
    "BuildOptions",
    "BuilderModule",
    "ClosingSession",
    "EngineBuild",
    "EngineFigures",
    "Runnable",
    "Session",
    "SessionRequest",
    "attest",
    "available_threads",
    "build_engine",
    "check_feeds",
    "choose_builder",
    "device_capability",
    "engine_version",
    "open_session",
    "parse_sm",
    "runnable_here",
    "trtexec_line",
    "why_not_runnable",
]
