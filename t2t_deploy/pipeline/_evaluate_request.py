"""What to evaluate, on what, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._optional import is_installed, require
from t2t_deploy.serving import DEFAULT_BLOCK, check_address

DEFAULT_BATCH = 8


@dataclass(frozen=True, slots=True)
class EvaluateAcross:
    """A cluster: ``local``, ``auto`` or HOST:PORT. workers: None is one for each core of it."""

    address: str = "local"
    workers: int | None = None
    block: int = DEFAULT_BLOCK

    def check(self) -> None:
        """Raise UsageError for no address, MissingDependencyError without Ray."""
        check_address(self.address)
        if not is_installed("ray"):  # it is imported once its settings are made
            require("ray")


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What to evaluate, and on what; no artifacts means every one of the workspace.

    batch: pictures at a time where the artifact's batch is free. limit: how many pictures, None
    takes all. confusion: PNG to write, None writes none. backend: the runtime of ONNX files; None
    is ONNX Runtime on the CPU. ray: the cluster to do it on; None is this process. among: what
    stands for all artifacts of the workspace where none is named.
    """

    images: Path
    artifacts: Sequence[Path] = ()
    batch: int = DEFAULT_BATCH
    limit: int | None = None
    confusion: Path | None = None
    backend: str | None = None
    force: bool = False
    ray: EvaluateAcross | None = None
    among: Sequence[Path] | None = None
