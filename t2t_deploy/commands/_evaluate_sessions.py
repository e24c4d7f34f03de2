"""Sessions that `evaluate` runs pictures through: an artifact's, and its reference's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from t2t_deploy._optional import is_installed, require
from t2t_deploy._options import Opt, Role
from t2t_deploy.commands._accuracy_run import AccuracyRunner
from t2t_deploy.commands._artifacts import cpu_backend, open_engine
from t2t_deploy.commands._nodewise import bare_graph
from t2t_deploy.errors import ArtifactError
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    Session,
    SessionRequest,
    open_session,
)
from t2t_deploy.serving import DEFAULT_BLOCK, check_address
from t2t_deploy.types import INDICES_NAME, PROBABILITIES_NAME, GraphIO, Precision, Tail
from t2t_deploy.verify import AccuracySum, NodewiseSession, PixelSession, takes_pixels
from t2t_deploy.workspace import Artifact


def open_runner(
    artifact: Artifact,
    request: EvaluateRequest,
    stack: contextlib.ExitStack,
    threads: int | None = None,
) -> AccuracyRunner:
    """A session of the artifact. Raises ArtifactError where it takes no pictures."""
    remarks = []
    session: Session
    if artifact.kind == "engine":
        session = open_engine(artifact)
    elif is_nodewise(artifact, request):
        remarks.append("evaluated node by node")
        graph_io = GraphIO.of_details(artifact.require_manifest().details)
        session = NodewiseSession(bare_graph(artifact.path, graph_io))
    else:
        backend = cpu_backend(request.backend)
        precision = None if artifact.manifest is None else artifact.manifest.precision
        session = open_session(SessionRequest(backend, artifact.path, threads, precision=precision))
    if takes_pixels(session):
        session = PixelSession(session)
    stack.enter_context(session)
    taken, given = session.inputs[0].shape, session.outputs[0].shape
    square = len(taken) == 4 and taken[1] == 3 and taken[2] == taken[3] is not None
    if not (square and len(given) == 2 and given[1] is not None):
        raise ArtifactError(
            f"{artifact.path} takes {session.inputs[0]} and gives {session.outputs[0]}; expected "
            "pictures (N, 3, S, S) or (N, S, S, 3) uint8, and logits or probabilities (N, "
            "classes): evaluate a classifier"
        )
    tail, classes = Tail.LOGITS, given[1]
    names = {spec.name for spec in session.outputs}
    if {PROBABILITIES_NAME, INDICES_NAME} <= names:
        if artifact.manifest is None:
            raise ArtifactError(
                f"{artifact.path} gives the {given[1]} largest probabilities and has no manifest "
                "that tells how many classes there are; evaluate a graph that gives all"
            )
        tail, classes = Tail.TOPK, int(artifact.manifest.config["num_classes"])
    elif PROBABILITIES_NAME in names:
        tail = Tail.SOFTMAX
    if tail is not Tail.LOGITS:
        largest = f"the {given[1]} largest " if tail is Tail.TOPK else ""
        remarks.append(f"errors are of {largest}probabilities")
    return AccuracyRunner(
        session,
        taken[0] or request.batch,
        AccuracySum(classes),
        "; ".join(remarks) or None,
        tail,
    )


def open_reference(
    weights: Path,
    artifact: Artifact,
    request: EvaluateRequest,
    stack: contextlib.ExitStack,
    threads: int | None = None,
) -> AccuracyRunner:
    """The float32 model of an artifact, in eager PyTorch."""
    manifest = artifact.require_manifest()
    eager = SessionRequest(REFERENCE_BACKEND, weights, threads, config=manifest.config)
    session = stack.enter_context(open_session(eager))
    return AccuracyRunner(session, request.batch, AccuracySum(int(manifest.config["num_classes"])))


def is_nodewise(artifact: Artifact, request: EvaluateRequest) -> bool:
    """Whether a bf16 graph is met by ONNX Runtime, which does not compute it."""
    known = artifact.manifest
    bf16 = known is not None and known.kind == "onnx" and known.precision is Precision.BF16
    return bf16 and cpu_backend(request.backend) == DEFAULT_BACKEND


DEFAULT_BATCH = 8
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
    is ONNX Runtime on the CPU. ray: the cluster to do it on; None is this process.
    """

    images: Path
    artifacts: Sequence[Path] = ()
    batch: int = DEFAULT_BATCH
    limit: int | None = None
    confusion: Path | None = None
    backend: str | None = None
    force: bool = False
    ray: EvaluateAcross | None = None
