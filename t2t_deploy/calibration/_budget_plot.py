"""The trade-off of a budget search as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2t_deploy._optional import require
from t2t_deploy.calibration._budget import BudgetSearch

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
    _trade_off(left, search, measure)
    _costs(right, search)
    figure.savefig(path, dpi=120)


def _trade_off(axes: Any, search: BudgetSearch, measure: str) -> None:
    shares = [trial.share * 100 for trial in search.trials]
    drops = [trial.drop for trial in search.trials]
    axes.plot(shares, drops, "o-", color=_BLUE, label="tried")
    chosen = search.chosen
    axes.plot(
        [chosen.share * 100], [chosen.drop], "o", markersize=11, color=_ORANGE, label="chosen"
    )
    axes.axhline(search.limit.drop, color=_GREY, linestyle="--", label="budget")
    axes.set_xlabel("multiply-adds of linear layers in 8 bits, %")
    axes.set_ylabel(f"{measure} lost, points")
    axes.set_xlim(-2, 102)
    axes.legend()


def _costs(axes: Any, search: BudgetSearch) -> None:
    shown = list(zip(search.order, search.costs, strict=True))[:_SHOWN_GROUPS]
    names = [_label(group.layers) for group, _ in shown]
    gone = search.chosen.returned
    colours = [_ORANGE if place < gone else _BLUE for place in range(len(shown))]
    axes.barh(range(len(shown)), [cost for _, cost in shown], color=colours)
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("relative error of the logits with this group alone in 8 bits")
    axes.set_title("back in float: orange", fontsize=9)


def _label(layers: tuple[str, ...]) -> str:
    stem = layers[0].rpartition(".")[0]
    lasts = ",".join(name.removeprefix(f"{stem}.") for name in layers)
    return f"{stem}.{lasts}"
