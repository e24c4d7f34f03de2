"""``t2t-deploy build-trt``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._adapter import command_line
from t2t_deploy.cli._output import Output
from t2t_deploy.cli._results import fail_if
from t2t_deploy.commands import build_engine, build_values
from t2t_deploy.workspace import Artifact

if TYPE_CHECKING:
    from rich.console import Console


@command_line("build-trt", build_engine)
def command(built: Artifact, output: Output) -> int:
    """Build a TensorRT engine from an export (the newest if none is named).

    \b
    t2t-deploy build-trt --fp16
    t2t-deploy build-trt --fp16 --sm 86,89 --profile 1:8:32
    t2t-deploy build-trt --int8 --images train/ --count 128
    """
    details = built.require_manifest().details
    attestation = details["attestation"]

    def show(console: Console) -> None:
        show_engine(console, dict(details["engine"]))
        console.print(f"attestation {attestation['status']}: asked {attestation['asked']}")
        if not details["runnable_here"]:
            console.print(f"not runnable here: {details['why_not']}", markup=False)
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
