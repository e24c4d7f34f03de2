"""Sessions that `evaluate` runs pictures through, here or across a Ray cluster.

Of a cluster each worker takes blocks through every session, and sums are added. The artifacts and
the reference's weights travel through the cluster's object store; the pictures must be readable
under the same paths everywhere.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from t2t_deploy._optional import is_installed, require
from t2t_deploy._options import Opt, Role
from t2t_deploy._preparation import USUAL, Preparation
from t2t_deploy._progress import Progress, silent
from t2t_deploy.commands._artifacts import open_engine
from t2t_deploy.errors import ArtifactError
from t2t_deploy.images import Assumed
from t2t_deploy.pictures import LabelledSet
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    Session,
    SessionRequest,
    available_threads,
    open_session,
)
from t2t_deploy.serving import (
    DEFAULT_BLOCK,
    Listing,
    SkippedBlocks,
    Work,
    check_address,
    map_blocks,
    ray_cluster,
)
from t2t_deploy.types import (
    BARE,
    DEFAULT_THRESHOLD,
    INDICES_NAME,
    PROBABILITIES_NAME,
    GraphIO,
    Precision,
    Tail,
)
from t2t_deploy.verify import (
    AccuracyRunner,
    AccuracySum,
    DecisionSum,
    NodewiseSession,
    PixelSession,
    bare_graph,
    cut_of_logits,
    run_pictures,
    takes_pixels,
)
from t2t_deploy.workspace import Artifact


@dataclass(frozen=True, slots=True)
class ModelSessions:
    """Artifacts of one model, and the weights of their reference; None without one.

    backend: the runtime of ONNX files. batch: pictures at a time where the artifact's is free.
    threshold: the least probability that is a yes, for one output or several labels. decides:
    whether several labels are meant.
    """

    artifacts: tuple[Artifact, ...]
    weights: Path | None
    backend: str
    batch: int
    threshold: float = DEFAULT_THRESHOLD
    decides: bool = False

    def open(
        self, stack: contextlib.ExitStack, threads: int | None = None
    ) -> tuple[list[AccuracyRunner], AccuracyRunner | None]:
        """Sessions of all, and of the float32 model in eager PyTorch.

        Raises ArtifactError where one takes no pictures.
        """
        runners = [self._open_runner(artifact, stack, threads) for artifact in self.artifacts]
        if self.weights is None:
            return runners, None
        config = self.artifacts[0].require_manifest().config
        eager = SessionRequest(REFERENCE_BACKEND, self.weights, threads, config=config)
        session = stack.enter_context(open_session(eager))
        total = self._sum(int(config["num_classes"]))
        return runners, AccuracyRunner(session, self.batch, total)

    def _open_runner(
        self, artifact: Artifact, stack: contextlib.ExitStack, threads: int | None
    ) -> AccuracyRunner:
        remarks = []
        session: Session
        if artifact.kind == "engine":
            session = open_engine(artifact)
        elif is_nodewise(artifact, self.backend):
            remarks.append("evaluated node by node")
            graph_io = artifact.require_manifest().graph_io
            session = NodewiseSession(bare_graph(artifact.path, graph_io))
        else:
            manifest = artifact.manifest
            session = open_session(
                SessionRequest(
                    *(self.backend, artifact.path, threads),
                    precision=None if manifest is None else manifest.precision,
                    base=None if manifest is None else manifest.base,
                    batch=self.batch,
                )
            )
        if takes_pixels(session):
            session = PixelSession(session, preparation_of(artifact, session))
        stack.enter_context(session)
        taken, given = session.inputs[0], session.outputs[0].shape
        if not (BARE.takes(taken) and len(given) == 2 and given[1] is not None):
            raise ArtifactError(
                f"{artifact.path} takes {taken} and gives {session.outputs[0]}; expected "
                "pictures (N, C, H, W) or (N, H, W, C) uint8, and logits or probabilities (N, "
                "classes): evaluate a classifier"
            )
        tail, classes = Tail.LOGITS, given[1]
        names = {spec.name for spec in session.outputs}
        if {PROBABILITIES_NAME, INDICES_NAME} <= names:
            if artifact.manifest is None:
                raise ArtifactError(
                    f"{artifact.path} gives the {given[1]} largest probabilities and has no "
                    "manifest that tells how many classes there are; evaluate one that gives all"
                )
            tail, classes = Tail.TOPK, int(artifact.manifest.config["num_classes"])
        elif PROBABILITIES_NAME in names:
            known = None if artifact.manifest is None else artifact.manifest.graph_io.tail
            tail = known or (Tail.SIGMOID if classes == 1 else Tail.SOFTMAX)
        if tail is not Tail.LOGITS:
            largest = f"the {given[1]} largest " if tail is Tail.TOPK else ""
            remarks.append(f"errors are of {largest}probabilities")
        return AccuracyRunner(
            session,
            taken.shape[0] or self.batch,
            self._sum(classes, tail),
            "; ".join(remarks) or None,
            tail,
        )

    def _sum(self, num_classes: int, tail: Tail = Tail.LOGITS) -> AccuracySum:
        if num_classes != 1 and not self.decides:
            return AccuracySum(num_classes)
        cut = cut_of_logits(self.threshold) if tail is Tail.LOGITS else self.threshold
        return AccuracySum(num_classes, DecisionSum(self.threshold, cut))


def preparation_of(artifact: Artifact, session: Session) -> Preparation:
    """From a picture to a session's input: of the manifest, else the released models'."""
    if artifact.manifest is not None:
        return artifact.manifest.preparation
    shape = GraphIO(takes_pixels(session)).input_shape(session.inputs[0])
    return USUAL if shape is None else USUAL.fitted(shape[0], shape[1:])


def is_nodewise(artifact: Artifact, backend: str) -> bool:
    """Whether a bf16 graph is met by ONNX Runtime, which does not compute it."""
    known = artifact.manifest
    bf16 = known is not None and known.kind == "onnx" and known.precision is Precision.BF16
    return bf16 and backend == DEFAULT_BACKEND


# -- across a cluster ----------------------------------------------------------------------------

RayAddress = Annotated[
    str | None,
    Opt(
        "Across a Ray cluster: local (of this machine), auto or HOST:PORT.",
        metavar="[ADDRESS]",
        bare="local",
        role=Role.SWITCH,
        recipe=False,
    ),
]
RayWorkers = Annotated[
    int | None,
    Opt("With --ray: default one for each core there.", role=Role.SWITCH, recipe=False),
]


def check_ray(address: str) -> None:
    """Raise UsageError for no address of a cluster, MissingDependencyError without Ray."""
    check_address(address)
    if not is_installed("ray"):  # it is imported once its settings are made
        require("ray")


def run_pictures_across(
    address: str,
    workers: int | None,
    sessions: ModelSessions,
    runners: Sequence[AccuracyRunner],
    reference: AccuracyRunner | None,
    images: LabelledSet,
    preparation: Preparation,
    unreadable: dict[Path, str],
    progress: Progress,
) -> Assumed:
    """As `run_pictures`, by the workers of a cluster; the sums are added to those of ``runners``.

    workers: None is one for each core of it. sessions: what they open. Raises BackendError where
    the cluster, or a worker thrice, is lost.
    """
    contents = [artifact.path.read_bytes() for artifact in sessions.artifacts]
    contents += [sessions.weights.read_bytes()] if sessions.weights is not None else []
    cores = workers or available_threads()
    total = sum(map(len, contents))
    with ray_cluster(address, cpus=cores, shared_bytes=total) as cluster:
        put = cluster.ray.put
        labels = images.targets or images.classes
        classes = dict(zip(map(str, images.paths), labels, strict=False))
        make = _EvaluateBlocks(
            sessions,
            tuple(put(content) for content in contents),
            put(classes),
            replace(images, paths=(), classes=(), targets=()),
            preparation,
        )
        listing = Listing(tuple(map(str, images.paths)), DEFAULT_BLOCK, "")
        found: dict[int, tuple[list[AccuracySum], dict[Path, str], Assumed]] = {}
        done = 0
        for result in map_blocks(cluster, listing, make, workers=workers or cluster.cpus):
            if isinstance(result, SkippedBlocks):
                continue
            block, found[block.ordinal] = result
            done += len(block.images)
            progress.progress("evaluating", done, len(images.paths))
    # in the order of the pictures, so that a run's sums do not depend on who was faster
    every = Assumed()
    for ordinal in sorted(found):
        sums, bad, assumed = found[ordinal]
        every.merge(assumed)
        unreadable.update(bad)
        for runner, added in zip(_everyone(runners, reference), sums, strict=True):
            runner.total.merge(added)
    return every


@dataclass(frozen=True, slots=True)
class _EvaluateBlocks:
    """Opens the sessions in a worker; what it returns evaluates blocks.

    contents: references to the artifacts' bytes, then to the weights' where there is a reference.
    classes: reference to the index of each image's folder. images: the set without its images.
    """

    sessions: ModelSessions
    contents: tuple[Any, ...]
    classes: Any
    images: LabelledSet
    preparation: Preparation

    def __call__(self) -> Work:
        get = require("ray").get
        classes: Mapping[str, Any] = get(self.classes)
        stack = contextlib.ExitStack()  # as long as the worker
        with tempfile.TemporaryDirectory(prefix="t2t-deploy-") as folder:
            files = [Path(folder, f"{index}") for index in range(len(self.contents))]
            for file, content in zip(files, self.contents, strict=True):
                file.write_bytes(get(content))
            artifacts = [
                replace(artifact, path=file)
                for artifact, file in zip(self.sessions.artifacts, files, strict=False)
            ]
            weights = None if self.sessions.weights is None else files[-1]
            local = replace(self.sessions, artifacts=tuple(artifacts), weights=weights)
            runners, reference = local.open(stack, threads=1)

        everyone = _everyone(runners, reference)

        def evaluate(names: Sequence[str]) -> tuple[list[AccuracySum], dict[Path, str], Assumed]:
            for runner in everyone:
                runner.total = runner.total.emptied()
            paths = tuple(map(Path, names))
            known = tuple(classes[name] for name in names) if classes else ()
            images = replace(
                self.images,
                paths=paths,
                classes=known if self.images.folders else (),
                targets=() if self.images.folders else known,
            )
            unreadable: dict[Path, str] = {}
            assumed = run_pictures(runners, reference, images, self.preparation, unreadable, silent)
            return [runner.total for runner in everyone], unreadable, assumed

        return evaluate


def _everyone(
    runners: Sequence[AccuracyRunner], reference: AccuracyRunner | None
) -> list[AccuracyRunner]:
    return [*runners, *([] if reference is None else [reference])]
