"""What the tests on a GPU do with a session, whichever runtime it is of."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from t2t_deploy.runtime import Session, SessionRequest
from t2t_deploy.runtime._cuda import Cuda
from t2t_deploy.types import INPUT_NAME, OUTPUT_NAME
from t2t_deploy.workspace import Artifact

MakeArtifact = Callable[..., Artifact]
Images = Callable[[int], np.ndarray]
Logits = Callable[[np.ndarray], np.ndarray]


def answer(session: Session, image: np.ndarray) -> np.ndarray:
    return session.run({INPUT_NAME: image})[OUTPUT_NAME]


def worst(found: np.ndarray, expected: np.ndarray) -> float:
    """The worst picture's ||a - b|| / ||b||."""
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(errors.max())


def check_threads(session: Session, images: Images, batches: Sequence[int]) -> None:
    """Eight threads get the bits that one gets alone."""
    expected = {batch: answer(session, images(batch)) for batch in batches}

    def check(turn: int) -> bool:
        batch = batches[turn % len(batches)]
        return np.array_equal(answer(session, images(batch)), expected[batch])

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(check, range(200))) == [True] * 200


def check_freed(opened: Callable[[], Session], image: np.ndarray) -> None:
    """Sessions that come and go leave the device as the first did."""

    def open_and_close() -> int:
        with opened() as session:
            answer(session, image)
            answer(session, image)
        session.close()
        gc.collect()
        return Cuda().free_bytes()

    before = open_and_close()
    assert [open_and_close() for _ in range(10)][-1] == before


def request_of(artifact: Artifact, **options: Any) -> SessionRequest:
    """To open an engine that its manifest vouches for."""
    manifest = artifact.require_manifest()
    backend = manifest.engine.backend
    return SessionRequest(backend, artifact.path, sha256=manifest.sha256, **options)
