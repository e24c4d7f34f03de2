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
from t2t_deploy.runtime._requirements import (
    GPU_BACKENDS,
    MODULES,
    TENSORRT_MODULES,
    build_unavailable,
    import_unavailable,
    run_unavailable,
)
from t2t_deploy.runtime._session import (
    CallTiming,
    ClosingSession,
    ReplayingSession,
    Session,
    SessionRequest,
    TimedRun,
    TimedSession,
    check_feeds,
)

__all__ = [
    "BACKENDS",
    "GPU_BACKENDS",
    "MODULES",
    "TENSORRT_MODULES",
    "Backend",
    "CallTiming",
    "ClosingSession",
    "ReplayingSession",
    "Session",
    "SessionRequest",
    "TimedRun",
    "TimedSession",
    "available_threads",
    "build_unavailable",
    "check_feeds",
    "import_unavailable",
    "open_session",
    "run_unavailable",
    "why_not_in",
    "why_not_runnable",
]
