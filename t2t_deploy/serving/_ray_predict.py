"""What a worker of a cluster does with a block: classify its pictures."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2t_deploy._optional import require
from t2t_deploy.serving._classifier import Classifier, ClassifierRequest, open_classifier
from t2t_deploy.serving._picture_names import scheme_of
from t2t_deploy.serving._pictures import PictureClasses, classify_pictures
from t2t_deploy.serving._ray_blocks import Work
from t2t_deploy.serving._remote import reader_of

_REMOTE_READERS = 8
"""Threads that wait for a remote filesystem, where a picture takes tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class ClassifyBlocks:
    """Opens an artifact in a worker; what it returns classifies blocks.

    content: reference to the artifact's bytes in the cluster's object store: workers need no disk
    in common with the driver. request: how to open it, its path being the driver's.
    """

    content: Any
    request: ClassifierRequest
    sources: tuple[str, ...]
    top: int

    def __call__(self) -> Work:
        """Open the session. Raises BackendError, ArtifactError."""
        classifier = self._opened()
        read = reader_of(self.sources, classifier.size)
        remote = any(scheme_of(source) is not None for source in self.sources)
        # a worker with one core decodes and computes by turns; more would share that core
        readers = _REMOTE_READERS if remote else (self.request.session.threads or 1) - 1

        def classify(images: Sequence[str]) -> list[PictureClasses]:
            return list(classify_pictures(classifier, images, read, top=self.top, readers=readers))

        return classify

    def _opened(self) -> Classifier:
        session = self.request.session
        with tempfile.TemporaryDirectory(prefix="t2t-deploy-") as folder:
            path = Path(folder, session.path.name)
            path.write_bytes(require("ray").get(self.content))
            # runtimes have read the file, or hold it open, once a session is there
            return open_classifier(
                dataclasses.replace(self.request, session=dataclasses.replace(session, path=path))
            )
