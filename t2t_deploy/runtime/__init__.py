"""The `Session` protocol, and one file for each runtime."""

from __future__ import annotations

from t2t_deploy.runtime._backends import (
    BACKENDS,
    CPU_BACKENDS,
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    available_threads,
    backend_for,
    open_session,
    why_not_in,
    why_not_runnable,
)
from t2t_deploy.runtime._session import (
    Backend,
    CallTiming,
    ProductCounts,
    ReferenceSession,
    ReplayingSession,
    Session,
    SessionRequest,
    TimedRun,
    TimedSession,
    check_feeds,
    fill_batch,
    session_threads,
)

__all__ = [
    "BACKENDS",
    "CPU_BACKENDS",
    "DEFAULT_BACKEND",
    "REFERENCE_BACKEND",
    "Backend",
    "CallTiming",
    "ProductCounts",
    "ReferenceSession",
    "ReplayingSession",
    "Session",
    "SessionRequest",
    "TimedRun",
    "TimedSession",
    "available_threads",
    "backend_for",
    "check_feeds",
    "fill_batch",
    "open_session",
    "session_threads",
    "why_not_in",
    "why_not_runnable",
]
