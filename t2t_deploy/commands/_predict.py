"""Pictures -> classes, here; `_predict_ray.py` does the same across a cluster."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._files import atomic_write
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._classifier import (
    Labels,
    artifact_to_run,
    classifier_request,
    labels_for,
)
from t2t_deploy.errors import counted
from t2t_deploy.pictures import count_images, find_images, reader_of
from t2t_deploy.serving import PredictedImage, classify_images, open_classifier, top_count
from t2t_deploy.workspace import Artifact, Workspace

DEFAULT_READERS = 2


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """What to predict, and with what.

    images: files, folders and patterns. top: classes of each picture; None is 5, or as many as
    there are. labels: file with one label a line; None takes ImageNet's for 1,000 classes. csv:
    file to write a line of each picture to. backend, threads: None is the runtime's choice.
    readers: threads that read pictures while the session computes.
    """

    artifact: Path
    images: Sequence[str]
    top: int | None = None
    labels: Path | None = None
    csv: Path | None = None
    backend: str | None = None
    batch: int | None = None
    threads: int | None = None
    device: int | None = None
    readers: int = DEFAULT_READERS
    force: bool = False
    trust: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted. images: how many pictures were named, each counted once.

    unreadable: pictures that could not be read, with the reason. not_finite: pictures for which the
    artifact gave NaN or infinity.
    """

    artifact: Artifact
    backend: str
    batch: int
    labels: Labels
    images: int
    unreadable: tuple[PredictedImage, ...]
    not_finite: tuple[PredictedImage, ...]
    csv: Path | None = None

    @property
    def failed(self) -> bool:
        """Whether a picture has no class."""
        return bool(self.unreadable or self.not_finite)


def predict_images(
    workspace: Workspace,
    request: PredictRequest,
    receive: Callable[[PredictedImage], None],
    progress: Progress = silent,
) -> Prediction:
    """Hand the classes of each picture to ``receive``, in order, as they are found.

    Of the pictures nothing is kept but the names of those that have no class.
    Raises ImageError where a folder or pattern means no picture, ArtifactError, BackendError,
    EngineError, UsageError.
    """
    artifact = artifact_to_run(
        workspace, request.artifact, force=request.force, trust=request.trust, progress=progress
    )
    plan = classifier_request(
        workspace,
        artifact,
        backend=request.backend,
        batch=request.batch,
        threads=request.threads,
        device=request.device,
    )
    total = count_images(request.images)
    done = 0
    unreadable: list[PredictedImage] = []
    not_finite: list[PredictedImage] = []
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(open_classifier(plan))
        labels = labels_for(artifact, request.labels, classifier.signature.classes, progress)
        top = top_count(request.top, classifier)
        write = None
        if request.csv is not None:
            write = stack.enter_context(csv_writer(request.csv, top))
        progress.step(
            f"predicting {counted(total, 'picture')} with {artifact.path.name}, "
            f"{classifier.backend}"
        )
        found = classify_images(
            classifier,
            find_images(request.images),
            reader_of(request.images, classifier.size),
            top=top,
            readers=request.readers,
            labels=labels.names,
        )
        with contextlib.closing(found):
            for predicted in found:
                done += 1
                if predicted.error is not None:
                    (unreadable if predicted.unreadable else not_finite).append(predicted)
                if write is not None:
                    write(predicted)
                receive(predicted)
                progress.progress("predicting", done, total)
        if done < total:
            progress.note(
                f"{total - done} of {total} pictures were named before: each is taken once"
            )
        return Prediction(
            artifact,
            classifier.backend,
            classifier.batch,
            labels,
            done,
            tuple(unreadable),
            tuple(not_finite),
            request.csv,
        )


_OF_A_CLASS = ("class", "label", "probability")


@contextlib.contextmanager
def csv_writer(path: Path, top: int) -> Iterator[Callable[[PredictedImage], None]]:
    """Lines of image, error and ``top`` times class, label and probability; UTF-8.

    Raises ArtifactError where the file cannot be written.
    """
    columns = [f"{what}_{rank}" for rank in range(1, top + 1) for what in _OF_A_CLASS]
    with (
        atomic_write(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "error", *columns])

        def write(picture: PredictedImage) -> None:
            row = [picture.shown, picture.error or ""]
            for ranked in picture.top:
                row += [str(ranked.index), ranked.label or "", str(ranked.probability)]
            writer.writerow(row + [""] * (2 + len(columns) - len(row)))

        yield write
