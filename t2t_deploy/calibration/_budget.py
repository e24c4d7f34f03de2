"""Which layers go back to float so that the loss of accuracy stays within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._optional import require
from t2t_deploy.calibration._layers import Decision


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that read the same tensor, and so share its codes. macs: of them, for one picture."""

    source: str
    layers: tuple[str, ...]
    macs: int


@dataclass(frozen=True, slots=True)
class Loss:
    """What a graph loses. drop: points of accuracy; rel_l2: error of the logits, worst picture."""

    drop: float
    rel_l2: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of layers: how many groups went back, what was lost, what is left in 8 bits.

    drop, rel_l2: as in `Loss`. share: of all layers' multiply-adds, in 0..1.
    """

    returned: int
    drop: float
    rel_l2: float
    share: float


@dataclass(frozen=True, slots=True)
class BudgetSearch:
    """What a search tried and chose.

    order: groups, the costliest first. costs: of each, in that order. chosen: the trial that meets
    the budget with the fewest groups gone back, or, where ``met`` is False, the one that lost least
    among those that leave a layer in 8 bits.
    """

    order: tuple[LayerGroup, ...]
    costs: tuple[float, ...]
    trials: tuple[Trial, ...]
    chosen: Trial
    limit: Loss

    @property
    def met(self) -> bool:
        """Whether the chosen trial is within the budget."""
        return _within(self.chosen, self.limit)

    @property
    def returned(self) -> tuple[str, ...]:
        """The layers that go back to float."""
        gone = self.order[: self.chosen.returned]
        return tuple(name for group in gone for name in group.layers)


def layer_groups(decisions: Sequence[Decision]) -> tuple[LayerGroup, ...]:
    """The quantised layers by the tensor they read, in the graph's order."""
    readers: dict[str, list[Decision]] = {}
    for decision in decisions:
        if decision.quantised:
            readers.setdefault(decision.layer.source, []).append(decision)
    return tuple(
        LayerGroup(
            source,
            tuple(found.layer.name for found in members),
            sum(found.layer.macs for found in members),
        )
        for source, members in readers.items()
    )


def search_budget(
    groups: Sequence[LayerGroup],
    total_macs: int,
    limit: Loss,
    *,
    cost_of: Callable[[LayerGroup], float],
    loss_of: Callable[[Sequence[str]], Loss],
) -> BudgetSearch:
    """Return groups to float, costliest first, until the loss is within a limit.

    limit: the largest drop and error that are accepted. cost_of: error of the logits with that
    group alone in 8 bits. loss_of: what is lost with these layers in float and the other groups in
    8 bits. How many go back is found by bisection, as if each group that goes back lost nothing.
    """
    costs = {group.source: cost_of(group) for group in groups}
    order = tuple(sorted(groups, key=lambda group: -costs[group.source]))
    trials: dict[int, Trial] = {}

    def trial(count: int) -> Trial:
        if count not in trials:
            loss = loss_of([name for group in order[:count] for name in group.layers])
            left = sum(group.macs for group in order[count:])
            share = left / total_macs if total_macs else 0.0
            trials[count] = Trial(count, loss.drop, loss.rel_l2, share)
        return trials[count]

    low, high = 0, max(len(order) - 1, 0)  # with all groups gone nothing would be quantised
    if _within(trial(0), limit):
        high = 0
    elif _within(trial(high), limit):
        while high - low > 1:
            middle = (low + high) // 2
            if _within(trial(middle), limit):
                high = middle
            else:
                low = middle
    chosen = trials[high]
    if not _within(chosen, limit):
        chosen = min(trials.values(), key=lambda found: (found.drop, found.rel_l2, found.returned))
    return BudgetSearch(
        order,
        tuple(costs[group.source] for group in order),
        tuple(trials[count] for count in sorted(trials)),
        chosen,
        limit,
    )


def _within(trial: Trial, limit: Loss) -> bool:
    return trial.drop <= limit.drop and trial.rel_l2 <= limit.rel_l2


_BLUE, _ORANGE, _GREY = "#2b6cb0", "#c05621", "#718096"
_SHOWN_GROUPS = 25


def plot_budget(search: BudgetSearch, path: Path, *, measure: str) -> None:
    """Draw share in 8 bits against points lost, and what each group alone costs, into a PNG.

    measure: what the points are of, such as ``top-1``. Raises MissingDependencyError.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 4))

    shares = [trial.share * 100 for trial in search.trials]
    drops = [trial.drop for trial in search.trials]
    left.plot(shares, drops, "o-", color=_BLUE, label="tried")
    best = search.chosen
    left.plot(best.share * 100, best.drop, "o", markersize=11, color=_ORANGE, label="chosen")
    left.axhline(search.limit.drop, color=_GREY, linestyle="--", label="budget")
    left.set_xlabel("multiply-adds of linear layers in 8 bits, %")
    left.set_ylabel(f"{measure} lost, points")
    left.set_xlim(-2, 102)
    left.legend()

    names = [_label(group.layers) for group in search.order[:_SHOWN_GROUPS]]
    shown = range(len(names))
    colours = [_ORANGE if index < search.chosen.returned else _BLUE for index in shown]
    right.barh(shown, search.costs[:_SHOWN_GROUPS], color=colours)
    right.set_yticks(shown, names, fontsize=7)
    right.invert_yaxis()
    right.set_xscale("log")
    right.set_xlabel("relative error of the logits with this group alone in 8 bits")
    right.set_title("back in float: orange", fontsize=9)
    figure.savefig(path, dpi=120)


def _label(layers: tuple[str, ...]) -> str:
    stem = layers[0].rpartition(".")[0]
    lasts = ",".join(name.removeprefix(f"{stem}.") for name in layers)
    return f"{stem}.{lasts}"
