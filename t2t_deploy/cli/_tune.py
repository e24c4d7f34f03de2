"""``t2t-deploy tune``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output, dim, fell_short, table
from t2t_deploy.tuning import Tuning, Verdict
from t2t_deploy.tuning import tune as tune_files

if TYPE_CHECKING:
    from rich.console import RenderableType

    from t2t_deploy.tuning import TunedFile

_NUMBERS = ("ms", "vs eager", "x fastest", "error", "points lost", "MB", "memory MB", "moved MB")


@command_line("tune", tune_files)
def tune(found: Tuning, output: Output) -> int:
    """Make what can run here, check and time it, and name the best file for a budget.

    \b
    t2t-deploy tune --checkpoint best.pth --images train/ --eval val/ --max-drop 0.5
    t2t-deploy tune --variant 14 --images photos/ --for throughput --batch 8
    t2t-deploy tune --variant 14 --images photos/ --sm 89
    t2t-deploy predict @best photo.jpg
    """
    output.result(found.to_dict(), _shown(found))
    return 0 if found.pick is not None else fell_short(found.why)


def _shown(found: Tuning) -> Iterator[RenderableType]:
    columns = ("file", "verdict", *_NUMBERS)
    shown = [one for one in found.files if one.verdict is not Verdict.NOT_TRIED]
    rows = [_row(one) for one in shown]
    used = [i for i, name in enumerate(columns) if i < 2 or any(row[i] for row in rows)]
    yield table(
        [columns[i] for i in used],
        ([row[i] for i in used] for row in rows),
        numbers=_NUMBERS,
    )
    for one in found.files:
        if one.reason is not None and one.verdict is not Verdict.BEATEN:
            yield dim(f"{one.name}: {one.verdict.value.replace('_', ' ')}: {one.reason}")
    if found.pick is None:
        return
    assert found.pick.artifact is not None
    yield f"@best is {found.pick.artifact.path}, in {found.pick.backend}: {found.why}"
    if found.recipe is not None:
        yield f"its recipe: {found.recipe}"
    if found.page is not None:
        yield f"the page: {found.page}"


def _row(one: TunedFile) -> tuple[str, ...]:
    engine = one.to_dict()["engine"] or {}
    speedup = None if one.row is None else one.row.speedup_vs_eager
    moved = engine.get("moved_bytes")
    return (
        one.name if one.streams == 1 else f"{one.name}, {one.streams} streams",
        one.verdict.value.replace("_", " "),
        _figure(one.ms_per_image, ".2f"),
        "" if speedup is None else str(speedup),
        "" if one.times is None else str(one.times),
        _figure(one.error, ".1e"),
        _figure(one.drop, ".2f"),
        _figure(one.size_bytes, ".1f", 1e6),
        _figure(one.memory_bytes, ".0f", 1e6),
        _figure(moved, ".1f", 1e6),
    )


def _figure(value: float | None, form: str, unit: float = 1.0) -> str:
    return "" if value is None else format(value / unit, form)
