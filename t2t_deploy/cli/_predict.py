"""``t2t-deploy predict``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import DeviceType, common_options, force_option, trust_option
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._predict_across import run_across
from t2t_deploy.cli._results import SHOWN_UNREADABLE, fell_short
from t2t_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from t2t_deploy.commands import Prediction, RayRequest
    from t2t_deploy.serving import PredictedImage

_SHOWN_PICTURES = 50
_STDIN = "-"


@click.command("predict", short_help="Pictures -> classes.")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--top", type=click.IntRange(1), metavar="N", help="Classes of each picture; default 5."
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Names of the classes, one a line; without it ImageNet's for 1,000 classes.",
)
@click.option(
    "--csv",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.csv",
    help="Write a line of each picture.",
)
@click.option("-0", "--null", is_flag=True, help="Names on stdin end in a zero byte, not a line.")
@click.option("--backend", metavar="NAME", help="Default: ort-cpu; for an engine its own runtime.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Pictures at a time where the artifact's batch is free; default 8.",
)
@click.option("--threads", type=click.IntRange(1), help="Default: the runtime's choice.")
@click.option("--device", type=DeviceType(), help="For backends on a GPU; default cuda:0.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Across a Ray cluster: local (of this machine), auto or HOST:PORT.",
)
@click.option(
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --ray: where Parquet files go; what is there already is not done again.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="With --ray: default one for each core there."
)
@click.option("--block", type=click.IntRange(1), help="With --ray: pictures a file; default 256.")
@force_option
@trust_option
@common_options
def command(
    artifact: Path, images: tuple[str, ...], workspace: Any, output: Output, **options: Any
) -> int:
    """Tell the classes of pictures.

    An IMAGE is a file, a folder (all pictures below it), a quoted pattern such as 'val/**/*.jpg',
    a URI such as s3://bucket/folder, or - for names on stdin, one a line.

    \b
    t2t-deploy predict artifacts/onnx/14-....onnx cat.jpg dog.jpg
    t2t-deploy predict model.onnx photos/ --top 1 -o classes.csv
    find photos -newer last -name '*.jpg' | t2t-deploy predict model.onnx -
    """
    from t2t_deploy.commands import PredictRequest, predict_images

    across = _ray_request(options)
    request = PredictRequest(
        artifact=artifact,
        images=sources_from(images, null=options["null"]),
        top=options["top"],
        labels=options["labels"],
        csv=options["csv"],
        backend=options["backend"],
        batch=options["batch"],
        threads=options["threads"],
        device=options["device"],
        force=options["force"],
        trust=options["trust"],
    )
    if across is not None:
        return run_across(workspace, request, across, output)
    kept: list[PredictedImage] = []

    def receive(picture: PredictedImage) -> None:
        if output.as_json or (picture.error is None and len(kept) < _SHOWN_PICTURES):
            kept.append(picture)

    found = predict_images(workspace, request, receive, output)
    output.result(_values(found, kept), lambda console: _show(console, found, kept))
    what = []
    if found.unreadable:
        what.append(f"{len(found.unreadable)} of {found.images} pictures cannot be read")
    if found.not_finite:
        what.append(f"{len(found.not_finite)} of {found.images} gave NaN or infinity")
    if not what:
        return 0
    return fell_short("; ".join(what))


def _ray_request(options: dict[str, Any]) -> RayRequest | None:
    """What --ray asks for; None without it. Raises UsageError for options of the other kind."""
    from t2t_deploy.commands import RayRequest
    from t2t_deploy.serving import DEFAULT_BLOCK

    names = {"folder": "--output", "workers": "--workers", "block": "--block"}
    given = [option for name, option in names.items() if options[name] is not None]
    if options["ray"] is None:
        if given:
            raise UsageError(f"{given[0]} is about a cluster; add --ray, or leave it out")
        return None
    if options["csv"] is not None:
        raise UsageError("--csv and --ray were given together; a cluster writes Parquet: --output")
    if options["folder"] is None:
        raise UsageError("--ray needs a folder for its Parquet files: add --output DIR")
    return RayRequest(
        options["folder"], options["ray"], options["workers"], options["block"] or DEFAULT_BLOCK
    )


def sources_from(images: Iterable[str], *, null: bool) -> tuple[str, ...]:
    """What to look for: the words of the command line, with stdin's names in place of ``-``."""
    words = tuple(images)
    if null and _STDIN not in words:
        raise UsageError("-0 is about names on stdin, and none are read; add -, or leave out -0")
    sources: list[str] = []
    for word in dict.fromkeys(words):
        if word != _STDIN:
            sources.append(word)
            continue
        content = sys.stdin.buffer.read()
        lines = content.split(b"\0") if null else content.replace(b"\r\n", b"\n").split(b"\n")
        names = [os.fsdecode(line) for line in lines if line]
        if not names:
            raise UsageError("- was given and stdin names no picture; expected one name a line")
        sources += names
    return tuple(sources)


def _values(found: Prediction, kept: list[PredictedImage]) -> dict[str, Any]:
    from t2t_deploy.commands import artifact_values

    return {
        "artifact": artifact_values(found.artifact),
        "backend": found.backend,
        "batch": found.batch,
        "labels": found.labels.source,
        "images": found.images,
        "results": [
            {
                "image": picture.shown,
                "top": [
                    {"index": r.index, "label": r.label, "probability": r.probability}
                    for r in picture.top
                ],
            }
            for picture in kept
            if picture.error is None
        ],
        "unreadable": _named(found.unreadable),
        "not_finite": _named(found.not_finite),
        "csv": None if found.csv is None else str(found.csv),
    }


def _named(pictures: Iterable[PredictedImage]) -> list[dict[str, Any]]:
    return [{"image": picture.shown, "reason": picture.error} for picture in pictures]


def _show(console: Console, found: Prediction, kept: list[PredictedImage]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class", justify="right")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for picture in kept:
        name = escape(picture.shown)
        for ranked in picture.top:
            label = escape(ranked.label or "")
            table.add_row(name, str(ranked.index), label, f"{ranked.probability:.2%}")
            name = ""
        table.add_section()
    if kept:
        console.print(table)
    failed = [*found.unreadable, *found.not_finite]
    left = found.images - len(failed) - len(kept)
    if left > 0:
        console.print(f"and {left} more pictures; --csv FILE and --json tell them all")
    for picture in found.unreadable[:SHOWN_UNREADABLE]:
        console.print(picture.error, markup=False)
    for picture in found.not_finite[:SHOWN_UNREADABLE]:
        console.print(f"{picture.shown}: {picture.error}", markup=False)
    hidden = sum(
        max(len(some) - SHOWN_UNREADABLE, 0) for some in (found.unreadable, found.not_finite)
    )
    if hidden:
        console.print(f"and {hidden} more without a class; --json names them all", markup=False)
    if found.csv is not None:
        console.print(f"table: {found.csv}", markup=False)
