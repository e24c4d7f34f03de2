"""``t2t-deploy build-trt``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from t2t_deploy.cli._options import (
    artifact_argument,
    common_options,
    force_option,
    output_option,
)
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import fail_if
from t2t_deploy.errors import UsageError
from t2t_deploy.types import Precision

if TYPE_CHECKING:
    from rich.console import Console

_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8-weights", "fp8-weights")

_HELP = {name: f"Compute in fp16, weights stored as {name[:-8]}." for name in _PRECISIONS[-2:]}


def _precision_flags(command: Any) -> Any:
    for name in reversed(_PRECISIONS):
        command = click.option(
            f"--{name}",
            "precisions",
            flag_value=name,
            multiple=True,
            help=_HELP.get(name, f"Compute in {name}."),
        )(command)
    return command


@click.command("build-trt", short_help="ONNX -> TensorRT engine, with what is in it.")
@artifact_argument
@_precision_flags
@click.option(
    "--backend",
    type=click.Choice(["auto", "tensorrt", "tensorrt-rtx"]),
    default="auto",
    show_default=True,
    help="Engine builder; auto takes TensorRT where it and a GPU are, else TensorRT-RTX.",
)
@click.option("--sm", metavar="86,89|portable|native", help="Compute capabilities to build for.")
@click.option("--min-batch", type=click.IntRange(1), help="Smallest batch of the profile.")
@click.option("--opt-batch", type=click.IntRange(1), help="Batch the profile is tuned for.")
@click.option("--max-batch", type=click.IntRange(1), help="Largest batch of the profile.")
@click.option("--profile", "profiles", multiple=True, metavar="MIN:OPT:MAX", help="Repeatable.")
@click.option("--memory-limit", type=click.IntRange(1), metavar="MIB", help="Scratch memory.")
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Folder of pictures to calibrate --int8 or --fp8 on; else a quantised graph is taken.",
)
@click.option("--count", type=click.IntRange(1), help="Take up to this many; default 512.")
@click.option(
    "--placement",
    type=click.Choice(["auto", "balanced", "compact", "accurate"]),
    help="How --int8 or --fp8 is quantised on --images; see quantize.",
)
@click.option(
    "--opt-level",
    type=click.IntRange(0, 5),
    help="TensorRT's effort, 3 if not given; TensorRT-RTX makes the same engine at each.",
)
@force_option
@output_option
@common_options
def command(artifact: Path | None, workspace: Any, output: Output, **options: Any) -> int:
    """Build a TensorRT engine from an export (the newest if none is named).

    \b
    t2t-deploy build-trt --fp16
    t2t-deploy build-trt --fp16 --sm 86,89 --profile 1:8:32
    t2t-deploy build-trt --int8 --images train/ --count 128
    """
    from t2t_deploy.commands import (
        DEFAULT_COUNT,
        BuildRequest,
        build_trt,
        build_values,
        chosen_profiles,
    )

    precisions = dict.fromkeys(options["precisions"])
    if len(precisions) > 1:
        flags = " and ".join(f"--{name}" for name in precisions)
        raise UsageError(f"{flags} were given together; an engine has one precision: choose one")
    built = build_trt(
        workspace,
        BuildRequest(
            artifact=artifact,
            precision=Precision(next(iter(precisions))) if precisions else None,
            profiles=chosen_profiles(
                options["profiles"],
                *(options[f"{name}_batch"] for name in ("min", "opt", "max")),
            ),
            sm=options["sm"],
            memory_limit_mib=options["memory_limit"],
            backend=options["backend"],
            optimization_level=options["opt_level"],
            images=options["images"],
            placement=options["placement"],
            count=options["count"] or DEFAULT_COUNT,
            output=options["output_file"],
            force=options["force"],
        ),
        output,
    )
    manifest = built.require_manifest()
    attestation = manifest.details["attestation"]

    def show(console: Console) -> None:
        show_engine(console, dict(manifest.details["engine"]))
        console.print(f"attestation {attestation['status']}: asked {attestation['asked']}")
        if not manifest.details["runnable_here"]:
            console.print(f"not runnable here: {manifest.details['why_not']}", markup=False)
        console.print(str(built.path), markup=False)

    output.result(build_values(built), show)
    return fail_if(attestation)


def _moved(engine: dict[str, Any], moved: int) -> str:
    """Whose figure it is: a log of a free batch tells no sizes."""
    batch = engine["moved_by_batch"]
    twin = (
        f", by the same graph built for batch {batch} alone ({engine['moved_by_kernels']} kernels)"
    )
    return f"{moved / 1e6:.1f} MB{'' if batch is None else twin}"


def show_engine(console: Console, engine: dict[str, Any]) -> None:
    """A table of an engine's figures."""
    from rich.table import Table

    table = Table("figure", "value", title=f"{engine['backend']} {engine['backend_version']}")
    moved = engine["moved_bytes"]
    rows = {
        "compute capability": ", ".join(engine["sm"]),
        "batch profiles": ", ".join(engine["profiles"]),
        "kernels": str(engine["kernels"]),
        "kernels by dtype": ", ".join(f"{k} {n}" for k, n in engine["kernels_by_dtype"].items()),
        "fused attention": str(engine["fused_attention"]),
        "moved at the tuned batch": "unknown" if moved is None else _moved(engine, moved),
        "with the weights": "unknown" if moved is None else f"{engine['total_bytes'] / 1e6:.1f} MB",
        "activation memory": f"{engine['activation_bytes'] / 1e6:.1f} MB",
        "weights": f"{engine['weights_bytes'] / 1e6:.1f} MB",
        "file": f"{engine['size_bytes'] / 1e6:.1f} MB",
        "built in": f"{engine['build_s']:.1f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
