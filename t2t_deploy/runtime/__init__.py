"""One `Session` protocol, one file per runtime; engine building."""

from __future__ import annotations

from t2t_deploy.runtime._backends import (
    BACKENDS,
    Backend,
    available_threads,
    open_session,
    why_not_runnable,
)
from t2t_deploy.runtime._engine_build import EngineBuild, build_engine, trtexec_line
from t2t_deploy.runtime._engine_device import Runnable, device_capability, runnable_here
from t2t_deploy.runtime._engine_figures import Attestation, EngineFigures, attest
from t2t_deploy.runtime._session import ClosingSession, Session, SessionRequest, check_feeds
from t2t_deploy.runtime._trt_module import parse_sm

__all__ = [
    "BACKENDS",
    "Attestation",
    "Backend",
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
    "device_capability",
    "open_session",
    "parse_sm",
    "runnable_here",
    "trtexec_line",
    "why_not_runnable",
]
