"""What a file loses: errors and points of accuracy on pictures, held against the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2t_deploy.recipe import Evaluate, Job, StepResult
from t2t_deploy.runtime import BACKENDS
from t2t_deploy.tuning._plan import Asked, Way
from t2t_deploy.tuning._results import TunedFile, Verdict
from t2t_deploy.tuning._workshop import Workshop

_WITHIN = "-within"
"""Ends the name of a way whose costliest layers are back in float."""


def judge(workshop: Workshop, files: Sequence[TunedFile]) -> list[TunedFile]:
    """Errors and losses on the pictures of ``eval``, where there are any; then the budget."""
    found, asked = list(files), workshop.asked
    made = [one for one in files if one.artifact is not None]
    if asked.evaluation is not None:
        for backend in dict.fromkeys(one.backend for one in made):
            judged_as = {
                one.name: _subject(workshop, one) for one in made if one.backend == backend
            }
            runs = backend if backend is not None and BACKENDS[backend].on_cpu else None
            given = {**asked.evaluation, "backend": runs}
            given = {name: value for name, value in given.items() if value is not None}
            step = Evaluate(Job("evaluate", given, str(backend)), (), tuple(judged_as.values()))
            result = workshop.follow(step)
            judged = () if result.result is None else result.result["results"]
            # by the name: the workspace may have been moved since
            rows = {Path(row["artifact"]).name: row for row in judged}
            known = workshop.artifacts
            found = [
                _with_figures(workshop, one, rows.get(known[judged_as[one.name]].path.name), result)
                if one.name in judged_as
                else one
                for one in found
            ]
    return [_within_budget(asked, one) for one in found]


def _subject(workshop: Workshop, one: TunedFile) -> str:
    """What is judged in place of a file: of an engine that cannot run here its graph."""
    assert one.artifact is not None
    source = workshop.plan.every[one.name].source
    if workshop.asked.timed or one.artifact.kind != "engine" or source is None:
        return one.name
    return source


def _with_figures(
    workshop: Workshop, one: TunedFile, row: Mapping[str, Any] | None, result: StepResult
) -> TunedFile:
    if row is None or row["status"] == "not_run":
        if not workshop.asked.timed and row is not None:  # of a graph that no runtime here computes
            return replace(one, reason=f"its loss is not known: {row['reason']}")
        reason = result.reason if row is None else row["reason"]
        return replace(one, verdict=Verdict.FAILED, reason=f"not judged: {reason}")
    if row["non_finite"]:
        return replace(one, verdict=Verdict.FAILED, reason=row["reason"])
    doubt = row["doubt"]
    drop = None if doubt is not None else row["drop"]
    return replace(
        one,
        error=row["rel_l2_mean"],
        drop=drop,
        measure=row["measure"],
        reason=None if doubt is None else f"no loss of accuracy can be measured: {doubt}",
    )


def _within_budget(asked: Asked, one: TunedFile) -> TunedFile:
    """The file, with why it is beyond the budget if it is."""
    if one.artifact is None or one.verdict is Verdict.FAILED:
        return one
    short = []
    if asked.max_drop is not None and one.drop is None:
        short.append(one.reason or "its loss is not known")
    elif asked.max_drop is not None and one.drop is not None and one.drop > asked.max_drop:
        short.append(f"{one.drop:.2f} points of {one.measure} are lost, {asked.max_drop:g} may be")
    if asked.max_error is not None and (one.error is None or one.error > asked.max_error):
        shown = "not known" if one.error is None else f"{one.error:.2e}"
        short.append(f"its error is {shown}, {asked.max_error:g} may be")
    if not short:
        return one
    return replace(one, verdict=Verdict.OVER_BUDGET, reason="; ".join(short))


def ways_back(workshop: Workshop, files: Sequence[TunedFile]) -> list[Way]:
    """Ways that lose too much in 8 bits, with layers back in float until they do not."""
    asked = workshop.asked
    if asked.max_drop is None or asked.evaluation is None:
        return []
    evaluated = {
        "max-drop": asked.max_drop,
        "eval": str(asked.evaluation["images"].absolute()),
        "class-order": asked.evaluation["class_order"],
        "targets": asked.evaluation["targets"],
        "threshold": asked.evaluation["threshold"],
    }
    keys = {
        name: str(value.absolute()) if isinstance(value, Path) else getattr(value, "value", value)
        for name, value in evaluated.items()
        if value is not None
    }
    known = workshop.plan.every
    return [
        replace(known[one.name], name=f"{one.name}{_WITHIN}", keys={**known[one.name].keys, **keys})
        for one in files
        if one.verdict is Verdict.OVER_BUDGET
        and one.drop is not None
        and one.drop > asked.max_drop
        and known[one.name].command == "quantize"
    ]
