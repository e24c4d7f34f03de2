"""``t2t-deploy predict``, here or across a Ray cluster."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy._options import parameters
from t2t_deploy.cli._adapter import click_parameters, command_line
from t2t_deploy.cli._output import SHOWN_UNREADABLE, Output, fell_short
from t2t_deploy.commands import (
    ClusterPrediction,
    Prediction,
    artifact_values,
    predict_across,
    predict_images,
)
from t2t_deploy.errors import UsageError, counted
from t2t_deploy.types import Activation

if TYPE_CHECKING:
    from rich.console import RenderableType

    from t2t_deploy.serving import PredictedImage

_SHOWN_IMAGES = 50
_STDIN = "-"
_NULL = click.Option(
    ["-0", "--null"], is_flag=True, help="Names on stdin end in a zero byte, not a line."
)
_ACROSS = parameters(predict_across)
_CLUSTER = [
    option
    for name in ("ray", "output", "workers", "block")
    for option in click_parameters(dataclasses.replace(_ACROSS[name], default=None))
]


def _run(
    given: dict[str, Any], extra: dict[str, Any]
) -> tuple[Prediction, list[PredictedImage]] | ClusterPrediction:
    """Predict where it was asked for; with the images that are to be shown."""
    null = extra.pop("null")
    across = {name: value for name, value in extra.items() if value is not None}
    if "ray" not in across:
        for name in ("output", "workers", "block"):
            if name in across:
                raise UsageError(f"--{name} is about a cluster; add --ray, or leave it out")
    elif "csv" in given:
        raise UsageError("--csv and --ray were given together; a cluster writes Parquet: --output")
    elif "output" not in across:
        raise UsageError("--ray needs a folder for its Parquet files: add --output DIR")
    given["images"] = sources_from(given["images"], null=null)
    if across:
        return predict_across(**given, **across)
    kept: list[PredictedImage] = []
    as_json = given["progress"].as_json

    def receive(image: PredictedImage) -> None:
        if as_json or (image.error is None and len(kept) < _SHOWN_IMAGES):
            kept.append(image)

    return predict_images(**given, receive=receive), kept


@command_line("predict", predict_images, extra={"backend": [_NULL], "force": _CLUSTER}, run=_run)
def predict(
    result: tuple[Prediction, list[PredictedImage]] | ClusterPrediction, output: Output
) -> int:
    """Tell the classes of pictures.

    An IMAGE is a file, a folder (all pictures below it), a quoted pattern such as 'val/**/*.jpg',
    a URI such as s3://bucket/folder, or - for names on stdin, one a line.

    \b
    t2t-deploy predict artifacts/onnx/14-....onnx cat.jpg dog.jpg
    t2t-deploy predict model.onnx photos/ --top 1 -o classes.csv
    find photos -newer last -name '*.jpg' | t2t-deploy predict model.onnx -
    """
    if isinstance(result, ClusterPrediction):
        across = result
        output.result(_across_values(across), _shown_across(across))
        if not across.failed:
            return 0
        total = across.images + across.failed
        return fell_short(f"{across.failed} of {total} pictures have no class")
    found, kept = result
    output.result(_values(found, kept), _shown(found, kept))
    what = []
    if found.unreadable:
        what.append(f"{len(found.unreadable)} of {found.images} pictures cannot be read")
    if found.not_finite:
        what.append(f"{len(found.not_finite)} of {found.images} gave NaN or infinity")
    return fell_short("; ".join(what)) if what else 0


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
    return {
        "artifact": artifact_values(found.artifact),
        "backend": found.backend,
        "batch": found.batch,
        "labels": found.labels.source,
        "images": found.images,
        "results": [
            {
                "image": image.shown,
                "top": [
                    {"index": r.index, "label": r.label, "probability": r.probability}
                    for r in image.top
                ],
            }
            for image in kept
            if image.error is None
        ],
        "unreadable": _named(found.unreadable),
        "not_finite": _named(found.not_finite),
        "csv": None if found.csv is None else str(found.csv),
        **_activation(found),
    }


def _activation(found: Prediction | ClusterPrediction) -> dict[str, str]:
    """What made the probabilities, where it was not a softmax."""
    other = found.activation is not Activation.SOFTMAX
    return {"activation": found.activation.value} if other else {}


def _named(images: Iterable[PredictedImage]) -> list[dict[str, Any]]:
    return [{"image": image.shown, "reason": image.error} for image in images]


def _shown(found: Prediction, kept: list[PredictedImage]) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("image", overflow="fold")
    table.add_column("class", justify="right")
    table.add_column("label", overflow="fold")
    table.add_column("probability", justify="right")
    for image in kept:
        name = image.shown
        for ranked in image.top:
            cells = (name, str(ranked.index), ranked.label or "", f"{ranked.probability:.2%}")
            table.add_row(*map(Text, cells))
            name = ""
        table.add_section()
    if kept:
        yield table
    left = found.images - len(found.unreadable) - len(found.not_finite) - len(kept)
    if left > 0:
        yield f"and {left} more pictures; --csv FILE and --json tell them all"
    yield from (str(image.error) for image in found.unreadable[:SHOWN_UNREADABLE])
    yield from (f"{image.shown}: {image.error}" for image in found.not_finite[:SHOWN_UNREADABLE])
    failed = (len(found.unreadable), len(found.not_finite))
    hidden = sum(max(count - SHOWN_UNREADABLE, 0) for count in failed)
    if hidden:
        yield f"and {hidden} more without a class; --json names them all"
    if found.csv is not None:
        yield f"table: {found.csv}"


def _across_values(found: ClusterPrediction) -> dict[str, Any]:
    return {
        "artifact": artifact_values(found.artifact),
        "backend": found.backend,
        "labels": found.labels.source,
        "images": found.images + found.failed,
        "results": [],  # they are in the files
        "unreadable": [{"image": name, "reason": reason} for name, reason in found.unreadable],
        "failed": found.failed,
        "output": str(found.output),
        "blocks": found.blocks,
        "skipped_blocks": found.skipped,
        "superseded_blocks": found.superseded,
        "workers": found.workers,
        "seconds": found.seconds,
        **_activation(found),
    }


def _shown_across(found: ClusterPrediction) -> Iterator[str]:
    yield (
        f"{counted(found.images, 'picture')} classified in {counted(found.blocks, 'file')} of "
        f"{found.output}/predictions, by {counted(found.workers, 'worker')} in "
        f"{found.seconds:.1f} s"
    )
    if found.failed:
        yield f"{found.failed:,} have no class: {found.output}/failed"
        yield from (reason for _, reason in found.unreadable[:SHOWN_UNREADABLE])
    left = found.failed - SHOWN_UNREADABLE
    if left > 0:
        yield f"and {left:,} more"
