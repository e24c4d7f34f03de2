"""Whether an engine may be loaded: who made it, for which runtime, for which GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from t2t_deploy.errors import EngineError
from t2t_deploy.runtime import (
    ClosingSession,
    Session,
    SessionRequest,
    device_capability,
    engine_version,
    open_session,
)
from t2t_deploy.types import TensorSpec
from t2t_deploy.workspace import Artifact, file_sha256


class TunedBatch(ClosingSession):
    """An engine's session as one of a fixed batch: the one that its first profile is tuned for."""

    def __init__(self, session: Session, batch: int) -> None:
        self.backend = session.backend
        self._session = session
        self.outputs = session.outputs
        self.inputs = tuple(
            TensorSpec(spec.name, spec.dtype, (batch, *spec.shape[1:])) for spec in session.inputs
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As `Session.run`."""
        return self._session.run(feeds)

    def close(self) -> None:
        """Free the session inside."""
        self._session.close()


def open_engine(artifact: Artifact) -> Session:
    """A session of an engine on the first device, its hash and its target checked.

    Raises EngineError, BackendError where it cannot run here, ArtifactError.
    """
    check_engine(artifact)
    manifest = artifact.known()
    session = open_session(
        SessionRequest(manifest.engine_backend, artifact.path, sha256=engine_sha256(artifact))
    )
    profiles = manifest.engine_profiles
    return TunedBatch(session, profiles[0].opt) if profiles else session


_PORTABLE = "portable"
_PORTABLE_FROM = 80


def engine_sha256(artifact: Artifact) -> str | None:
    """The hash of an engine that `check_engine` let pass, for its session; None for other files.

    That of a foreign one is of the file as it is now.
    """
    if artifact.kind != "engine":
        return None
    if artifact.manifest is not None:
        return artifact.manifest.sha256
    return file_sha256(artifact.path)


def check_engine(artifact: Artifact, *, trust: bool = False) -> None:
    """Raise EngineError unless an engine, its hash checked already, may be loaded on this machine.

    trust: an engine without manifest may be loaded all the same. Whether the runtime and a device
    are here at all is not asked.
    """
    manifest = artifact.manifest
    if manifest is None:
        if not trust:
            raise EngineError(
                f"{artifact.path} has no manifest, and an engine is code that the GPU's driver "
                "runs: build it again from its ONNX file with t2t-deploy build-trt, or pass "
                "--trust if you know who made it"
            )
        return
    engine = manifest.details["engine"]
    backend, built_with = str(engine["backend"]), str(engine["backend_version"])
    installed = engine_version(backend)
    if installed is not None and installed != built_with:
        raise EngineError(
            f"{artifact.path.name} was built with {backend} {built_with}, and {installed} is "
            "installed; an engine runs in the version that built it: build it again, or install "
            f"{built_with}"
        )
    device, targets = device_capability(), [str(name) for name in engine["sm"]]
    if device is None or device in targets:
        return
    if targets != [_PORTABLE]:
        raise EngineError(
            f"{artifact.path.name} was built for SM {', '.join(targets)}, and this machine's GPU "
            f"is SM {device}: build it again with --sm {device}"
        )
    if int(device) < _PORTABLE_FROM:
        raise EngineError(
            f"{artifact.path.name} is portable from SM {_PORTABLE_FROM} on, and this machine's GPU "
            f"is SM {device}: build it again with --sm {device}"
        )
