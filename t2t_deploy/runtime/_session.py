"""What every runtime offers: named arrays in, named arrays out, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np

from t2t_deploy.errors import InputError
from t2t_deploy.types import TensorSpec


class Session(Protocol):
    """A loaded model. Close it, or use it as a context manager."""

    @property
    def backend(self) -> str:
        """Name of the runtime, as on the command line."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs. Raises InputError where a name, dtype or shape does not fit."""

    def close(self) -> None:
        """Free what the session holds; calling it twice is harmless."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


_Session = TypeVar("_Session", bound="ClosingSession")


class ClosingSession:
    """Base of sessions: a context manager that closes on leaving."""

    def close(self) -> None:
        """Free what the session holds."""
        raise NotImplementedError

    def __enter__(self: _Session) -> _Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Everything needed to open a session, in this process or another.

    path: the ONNX file, the engine, or the safetensors weights (eager, which needs ``config``).
    threads: intra-op threads; None leaves the runtime's choice.
    """

    backend: str
    path: Path
    threads: int | None = None
    config: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form for a worker process."""
        return {
            "backend": self.backend,
            "path": str(self.path),
            "threads": self.threads,
            "config": None if self.config is None else dict(self.config),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SessionRequest:
        """Read what `to_dict` wrote."""
        return cls(values["backend"], Path(values["path"]), values["threads"], values["config"])


def check_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray]) -> None:
    """Raise InputError unless the feeds are exactly the specified tensors."""
    names = [spec.name for spec in specs]
    if sorted(feeds) != sorted(names):
        raise InputError(
            f"inputs given: {', '.join(sorted(feeds)) or 'none'}; this model takes "
            f"{', '.join(names)}: pass exactly those"
        )
    for spec in specs:
        array = feeds[spec.name]
        if not spec.accepts(array):
            raise InputError(
                f"input {spec.name!r} is {array.dtype} {array.shape}; expected {spec}: convert or "
                "resize it"
            )
        if array.size == 0:
            raise InputError(f"input {spec.name!r} is an empty batch; pass at least one picture")
