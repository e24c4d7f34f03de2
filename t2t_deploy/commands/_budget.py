"""A quantised graph within an accuracy budget: which layers go back to float, measured."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from t2t_deploy._codec import to_plain
from t2t_deploy._files import atomic_write
from t2t_deploy._optional import is_installed
from t2t_deploy._progress import Progress
from t2t_deploy.calibration import (
    BudgetSearch,
    Decision,
    LayerGroup,
    Loss,
    layer_groups,
    plot_budget,
    search_budget,
)
from t2t_deploy.commands._decisions import decides, note_decisions
from t2t_deploy.commands._quantize_inputs import QuantizationInputs
from t2t_deploy.errors import ImageError, counted
from t2t_deploy.pictures import LabelledSet, labelled_set_from_folder
from t2t_deploy.runtime import (
    DEFAULT_BACKEND,
    REFERENCE_BACKEND,
    Session,
    SessionRequest,
    open_session,
)
from t2t_deploy.types import DEFAULT_THRESHOLD, TOLERANCES, Status, relative_errors
from t2t_deploy.verify import (
    AccuracyRunner,
    AccuracySum,
    DecisionSum,
    PictureSet,
    cut_of_logits,
    labels_in_doubt,
    run_pictures,
    standard_pictures,
    typical_norm,
    verify_session,
)
from t2t_deploy.workspace import Workspace

_BATCH = 8
# Pictures on which each group alone is judged; a drop is measured on all.
_COST_IMAGES = 32
_RETURNED = "returned to float by the accuracy budget"


@dataclass(frozen=True, slots=True)
class BudgetOutcome:
    """The layers' decisions once the budget was searched, and what the manifest says of it.

    images: those that could be read. doubt: why the float model's own accuracy says nothing, so
    that no budget is met on it.
    """

    decisions: tuple[Decision, ...]
    search: BudgetSearch
    measure: str
    images: int
    doubt: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The ``budget`` object of a manifest."""
        search, reason = self.search, None
        if not search.met:
            reason = (
                f"{search.chosen.drop:.2f} points of {self.measure} are lost on "
                f"{counted(self.images, 'picture')} where at most {search.limit.drop:g} may be, "
                f"and the logits' error is {search.chosen.rel_l2:.2e} of {search.limit.rel_l2:.0e} "
                f"allowed, even with {counted(len(search.returned), 'layer')} back in float: give "
                "a larger --max-drop, or ship the float graph"
            )
        elif self.doubt is not None:
            reason = f"no loss of accuracy can be measured: {self.doubt}"
        chosen = search.chosen
        return {
            "status": (Status.PASSED if reason is None else Status.FAILED).value,
            "reason": reason,
            "measure": self.measure,
            "images": self.images,
            "max_drop": search.limit.drop,
            "drop": chosen.drop,
            "rel_l2": _finite(chosen.rel_l2),
            "share": chosen.share,
            "returned": list(search.returned),
            "trials": [{**to_plain(one), "rel_l2": _finite(one.rel_l2)} for one in search.trials],
            "costs": [
                {"layers": list(group.layers), "rel_l2": cost}
                for group, cost in zip(search.order, search.costs, strict=True)
            ],
        }


def _finite(error: float) -> float | None:
    """The error; None where the logits were no numbers, which JSON has no word for."""
    return error if math.isfinite(error) else None


def within_budget(
    workspace: Workspace,
    inputs: QuantizationInputs,
    images: LabelledSet,
    max_drop: float,
    progress: Progress,
) -> BudgetOutcome:
    """Search the layers that go back to float so that at most ``max_drop`` points are lost.

    The graph must also pass the verification that it will be held to. Points are of top-1 against
    the float32 reference's, of the area under the curve for one output, of the mean average
    precision for several labels, or of agreement with it where the pictures have no labels. No
    budget is met where the reference's own accuracy is that of chance. Raises ImageError,
    BackendError, UsageError.
    """
    bench = _Bench(workspace, inputs, images, progress)
    decisions = inputs.decide()
    groups = layer_groups(decisions)
    progress.step(f"measuring what each of {counted(len(groups), 'group')} of layers costs")
    search = search_budget(
        groups,
        sum(decision.layer.macs for decision in decisions),
        Loss(max_drop, TOLERANCES[inputs.plan.precision].rel_l2),
        cost_of=lambda group: bench.cost(group, groups),
        loss_of=bench.loss,
    )
    returned = dict.fromkeys(search.returned, _RETURNED)
    decided = inputs.decide(returned)
    return BudgetOutcome(decided, search, bench.measure, bench.measured, bench.doubt)


def write_budget(
    workspace: Workspace, outcome: BudgetOutcome, stem: str, progress: Progress
) -> str:
    """Keep the search as JSON and as a picture in the workspace's logs; the picture's name."""
    text = json.dumps(outcome.to_dict(), indent=1) + "\n"
    log = workspace.write_log(f"{stem}-budget.json", text)
    if not is_installed("matplotlib"):
        progress.note("no picture of the trade-off: pip install 't2t-deploy[plot]'")
        return f"logs/{log.name}"
    path = log.with_suffix(".png")
    with atomic_write(path) as temporary:
        plot_budget(outcome.search, temporary, measure=outcome.measure)
    progress.note(f"trade-off of the budget: {path}")
    return f"logs/{path.name}"


@dataclass
class _Bench:
    """Trial graphs against the reference, on the same pictures each time.

    doubt, measured: as of `BudgetOutcome` doubt and images, once a loss was measured.
    """

    workspace: Workspace
    inputs: QuantizationInputs
    images: LabelledSet
    progress: Progress
    doubt: str | None = None
    measured: int = 0
    noted: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        source = self.inputs.plan.source
        self.preparation, self.classes = source.preparation, int(source.config["num_classes"])
        self.reference = SessionRequest(
            REFERENCE_BACKEND, self.workspace.weights(source), config=source.config
        )
        if self.inputs.plan.lowered is not None:
            self.progress.note(
                f"drops are measured in {DEFAULT_BACKEND}, which computes in fp32 what "
                f"{self.inputs.plan.lowered.value} is asked for"
            )
        threshold = self.inputs.plan.asked.threshold
        self.threshold = None
        if decides(self.images, threshold, self.classes):
            self.threshold = threshold or DEFAULT_THRESHOLD
            note_decisions(self.images, threshold, self.progress)
        self.measure = "agreement"
        if self.images.has_labels:
            self.measure = "top-1"
            if self.threshold is not None:
                self.measure = "AUC" if self.classes == 1 else "average precision"
        self.tolerance = TOLERANCES[self.inputs.plan.precision]

    def runner(self, session: Session, batch: int = _BATCH) -> AccuracyRunner:
        """What counts how a session classifies."""
        threshold = self.threshold
        kept = None if threshold is None else DecisionSum(threshold, cut_of_logits(threshold))
        return AccuracyRunner(session, batch, AccuracySum(self.classes, kept))

    @functools.cached_property
    def standard(self) -> PictureSet:
        """The pictures that the graph will be verified on."""
        return standard_pictures(self.preparation)

    @functools.cached_property
    def few(self) -> np.ndarray:
        """Pictures from all classes in turn, on which each group alone is judged."""
        if self.images.targets:
            step = math.ceil(len(self.images.paths) / _COST_IMAGES)
            some = dataclasses.replace(self.images, paths=self.images.paths[::step])
        else:
            some = labelled_set_from_folder(self.images.folder, limit=_COST_IMAGES)
        (batch,) = some.readable_batches(self.preparation, _COST_IMAGES)
        if not len(batch.pictures):
            raise ImageError(f"no drop can be measured: {batch.unreadable[0][1]}; give others")
        return batch.pictures

    @functools.cached_property
    def expected(self) -> tuple[np.ndarray, float]:
        """The reference's logits of them, and their typical norm."""
        with open_session(self.reference) as session:
            return self.runner(session).logits(self.few), typical_norm(session)

    def cost(self, group: LayerGroup, groups: Sequence[LayerGroup]) -> float:
        """Relative error of the logits with one group alone in 8 bits."""
        others = [name for other in groups if other is not group for name in other.layers]
        with self.trial(others) as runner:
            found = runner.logits(self.few)
        # as of one row
        expected, typical = self.expected
        whole = found.reshape(1, -1), expected.reshape(1, -1), typical * math.sqrt(len(found))
        (error,) = relative_errors(*whole)
        return float(error)

    def loss(self, returned: Sequence[str]) -> Loss:
        """What is lost with these layers in float and the others in 8 bits."""
        unreadable: dict[Path, str] = {}
        with self.trial(returned) as runner, open_session(self.reference) as session:
            base = self.runner(session)
            assumed = run_pictures(
                [runner], base, self.images, self.preparation, unreadable, self.progress
            )
            checked = verify_session(session, runner.session, self.standard, self.tolerance)
        for line in {*unreadable.values(), *assumed.lines()} - self.noted:  # once for all trials
            self.progress.note(line)
            self.noted.add(line)
        error = float("inf") if checked.rel_l2 is None else checked.rel_l2
        actual, reference = runner.total.result(), base.total.result()
        self.measured = actual.images
        if self.images.has_labels:
            self.doubt = labels_in_doubt(reference, self.images.known)
        drop = actual.drop(reference)
        if drop is None:
            raise ImageError(
                f"the pictures of {self.images.folder} all have the same label, on which no "
                f"{self.measure} is measured; give pictures with and without each class"
            )
        return Loss(drop, error)

    @contextlib.contextmanager
    def trial(self, returned: Sequence[str]) -> Iterator[AccuracyRunner]:
        """A session of the graph with these layers in float and the others in 8 bits."""
        decisions = self.inputs.decide(dict.fromkeys(returned, _RETURNED))
        with self.workspace.scratch() as folder:
            path = folder / "trial.onnx"
            onnx.save(self.inputs.place(decisions).model, path)
            with open_session(SessionRequest(DEFAULT_BACKEND, path)) as session:
                yield self.runner(session, session.inputs[0].shape[0] or _BATCH)
