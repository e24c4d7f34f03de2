"""Images -> classes, here; `_predict_across.py` does the same across a cluster."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from t2t_deploy._files import atomic_write
from t2t_deploy._options import FILE, AnyPath, Kind, Opt, Role, command
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import Force, Trust, workspace_of
from t2t_deploy.commands._classifier import (
    ActivationName,
    Backend,
    Batch,
    Device,
    Labels,
    LabelsFile,
    NamedArtifact,
    Threads,
    Top,
    artifact_to_run,
    classifier_request,
    labels_for,
    note_one_output,
)
from t2t_deploy.errors import counted
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import count_images, find_images, reader_of
from t2t_deploy.serving import PredictedImage, classify_images, open_classifier, top_count
from t2t_deploy.types import Activation
from t2t_deploy.workspace import Artifact, Workspace

# threads that read images while the session computes
_READERS = 2

Images = Annotated[
    str | Sequence[str],
    Opt(
        kind=Kind(
            "a text, or a list of such",
            lambda given: (given,) if isinstance(given, str) else tuple(given),
            several=True,
        ),
        metavar="IMAGE...",
    ),
]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted. images: how many were named, each counted once.

    unreadable: those that could not be read, with the reason. not_finite: those for which the
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
    activation: Activation = Activation.SOFTMAX

    @property
    def failed(self) -> bool:
        """Whether an image has no class."""
        return bool(self.unreadable or self.not_finite)


@command
def predict_images(
    artifact: NamedArtifact,
    images: Images,
    *,
    receive: Callable[[PredictedImage], None],
    top: Top = None,
    labels: LabelsFile = None,
    activation: ActivationName = None,
    csv: Annotated[
        AnyPath | None,
        Opt("Write a line of each picture.", FILE, Role.WRITES, metavar="FILE.csv"),
    ] = None,
    backend: Backend = None,
    batch: Batch = None,
    threads: Threads = None,
    device: Device = None,
    force: Force = False,
    trust: Trust = False,
    workspace: Workspace | AnyPath | None = None,
    progress: Progress = silent,
) -> Prediction:
    """The classes of pictures, handed to ``receive`` one by one: ``t2t-deploy predict``.

    activation: None is a softmax of logits, for one output a sigmoid; ``sigmoid`` is a probability
    of each class by itself. images: files, folders, patterns such as ``val/**/*.jpg``, URIs.
    Nothing is kept of a picture but the names of those without a class. Raises ImageError where a
    folder or pattern means no picture, ArtifactError, BackendError, EngineError, UsageError.

    Examples
    --------
    >>> from t2t_deploy import predict_images
    >>> pictures = []
    >>> done = predict_images(made.path, "val", receive=pictures.append)
    >>> done.images, [len(picture.top) for picture in pictures]
    (4, [2, 2, 2, 2])
    """
    workspace = workspace_of(workspace)
    source = artifact_to_run(workspace, artifact, force=force, trust=trust, progress=progress)
    request = classifier_request(
        workspace,
        source,
        backend=backend,
        batch=batch,
        threads=threads,
        device=device,
        activation=activation,
    )
    table = None if csv is None else Path(csv)
    total = count_images(images)
    done = 0
    assumed = Assumed()
    unreadable: list[PredictedImage] = []
    not_finite: list[PredictedImage] = []
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(open_classifier(request))
        named = labels_for(source, labels, classifier.signature.classes, progress)
        note_one_output(classifier.signature, activation, progress)
        count = top_count(top, classifier)
        write = None if table is None else stack.enter_context(_csv_writer(table, count))
        progress.step(
            f"predicting {counted(total, 'picture')} with {source.path.name}, {classifier.backend}"
        )
        found = classify_images(
            classifier,
            find_images(images),
            reader_of(images, classifier.signature.preparation, assumed),
            top=count,
            readers=_READERS,
            labels=named.names,
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
        for line in assumed.lines():
            progress.note(line)
        if done < total:
            progress.note(
                f"{total - done} of {total} pictures were named before: each is taken once"
            )
        return Prediction(
            source,
            classifier.backend,
            classifier.batch,
            named,
            done,
            tuple(unreadable),
            tuple(not_finite),
            table,
            classifier.activation,
        )


_OF_A_CLASS = ("class", "label", "probability")


@contextlib.contextmanager
def _csv_writer(path: Path, top: int) -> Iterator[Callable[[PredictedImage], None]]:
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

        def write(image: PredictedImage) -> None:
            row = [image.shown, image.error or ""]
            for ranked in image.top:
                row += [str(ranked.index), ranked.label or "", str(ranked.probability)]
            writer.writerow(row + [""] * (2 + len(columns) - len(row)))

        yield write
