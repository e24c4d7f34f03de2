"""What a tuning leaves: why, the recipe, the page, what ``@best`` means."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from t2t_deploy._files import file_sha256, write_text
from t2t_deploy.errors import counted
from t2t_deploy.recipe import recipe_text
from t2t_deploy.report import VERIFIED, BenchDocument, TuneSummary, bench_page
from t2t_deploy.tuning._plan import Asked, Plan, Tables
from t2t_deploy.tuning._results import Goal, TunedFile, Tuning, moved_bytes
from t2t_deploy.workspace import TUNE, Best, write_best


def why(
    asked: Asked, pick: TunedFile | None, close: TunedFile | None, files: Sequence[TunedFile]
) -> str:
    if pick is None and close is None:
        return "no file could be made and timed: see the reasons"
    if pick is None:
        assert close is not None
        return f"no file keeps the budget; the nearest is {close.name}: {close.reason}"
    if not asked.timed:
        moved = moved_bytes(pick)
        by = "" if moved is None else f", {moved / 1e6:.1f} MB moved a call"
        return (
            f"its kernels move the fewest bytes by the builder's own figures{by}; nothing was "
            "timed: no such GPU is here"
        )
    best = {
        Goal.LATENCY: "the fastest",
        Goal.THROUGHPUT: "the most pictures a second",
        Goal.SIZE: "the smallest file",
        Goal.MEMORY: "the least memory",
    }[asked.goal]
    parts = [f"{best} of {counted(sum(one.times is not None for one in files), 'file')} timed"]
    if pick.row is not None and pick.row.speedup_vs_eager is not None:
        parts.append(f"{pick.row.speedup_vs_eager} times as fast as eager PyTorch")
    others = [one for one in files if one.times is not None and one is not pick]
    if others and pick.times is not None:
        second = min(others, key=lambda one: one.times.ratio if one.times else 0.0)
        assert second.times is not None
        ratio = second.times.ratio / pick.times.ratio
        if ratio < 1:
            parts.append(f"{second.name} takes {ratio:.3f} times its time and is further off")
        else:
            parts.append(f"next {second.name}, {ratio:.2f} times its time")
    return "; ".join(parts)


def written(asked: Asked, plan: Plan, tuning: Tuning, words: Sequence[str]) -> Tuning:
    """The tuning, once its recipe, its page and its pick are written."""
    pick = tuning.pick
    page = asked.workspace.root / TUNE / "tune.html"
    again = shlex.join(["t2t-deploy", "tune", "--workspace", str(asked.workspace.root), *words])
    if tuning.report is not None:
        document = BenchDocument(
            tuning.report,
            again,
            {
                one.artifact.path.name: one.artifact.require_manifest()
                for one in tuning.files
                if one.artifact is not None
            },
            tuning=_summary(tuning, judged_on=asked.evaluation is not None),
        )
        write_text(page, bench_page(document), kept=True)
        tuning = replace(tuning, page=page)
    if pick is None or pick.artifact is None or pick.backend is None:
        return tuning
    manifest = pick.artifact.require_manifest()
    about = (
        f"{again}\npicked {pick.name}, SHA-256 {manifest.sha256},\nin {pick.backend}: {tuning.why}."
    )
    write_text(asked.recipe, recipe_text(_best_tables(plan, pick.name), about=about))
    path, root = pick.artifact.path.absolute(), asked.workspace.root.absolute()
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    write_best(
        asked.workspace.root,
        Best(
            inside.as_posix(),
            manifest.sha256,
            pick.backend,
            tuning.goal.value,
            tuning.batch,
            tuning.threads,
            pick.streams,
            asked.device,
        ),
    )
    return replace(tuning, recipe=asked.recipe)


def _best_tables(plan: Plan, name: str) -> Tables:
    """The recipe of one file alone, for these weights alone."""
    tables = plan.tables([name])
    checkpoint = tables["model"].get("checkpoint")
    if checkpoint is None:
        return tables
    from t2t_deploy.model import weights_file  # loads torch

    expected = {"sha256": file_sha256(weights_file(Path(checkpoint)))}
    return {"model": tables.pop("model"), "expected": expected, **tables}


def _summary(tuning: Tuning, *, judged_on: bool) -> TuneSummary:
    """What the page says of it beside what was timed. judged_on: whether there was an ``eval``."""
    error = (
        "The error is the mean relative L2 distance of the logits from the float32 reference, over "
        "the pictures that the files were judged on."
    )
    return TuneSummary(
        pick=None if tuning.pick is None else tuning.pick.name,
        why=tuning.why,
        errors={
            (one.artifact.path.name): one.error
            for one in tuning.files
            if one.artifact is not None and one.error is not None
        },
        error=error if judged_on else VERIFIED,
        rows=tuple(
            {
                "name": one.name,
                "streams": one.streams,
                "verdict": one.verdict.value.replace("_", " "),
                "ms": one.ms_per_image,
                "times": one.times,
                "error": one.error,
                "drop": one.drop,
                "size": one.size_bytes,
                "memory": one.memory_bytes,
                "reason": one.reason or "",
            }
            for one in tuning.files
        ),
        limit=tuning.budget["max_error"],
    )
