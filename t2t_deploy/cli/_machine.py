"""What commands about this installation print: variants, workspace, doctor, completion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from t2t_deploy._codec import to_plain
from t2t_deploy.cli._adapter import HelpNames, plain_command
from t2t_deploy.cli._output import Output, check_lines, table, unknown_lines, unwrapped
from t2t_deploy.errors import CheckFailed, counted
from t2t_deploy.model import VARIANTS

if TYPE_CHECKING:
    from rich.console import RenderableType


@plain_command("variants")
def variants(workspace: Any, output: Output) -> None:
    """List the family: dimensions, parameters, published accuracy."""
    fields = ("embed_dim", "depth", "num_heads", "mlp_ratio")
    rows = [
        {
            "variant": variant.name,
            "tokens_type": variant.config.tokens_type.value,
            "backbone": variant.config.backbone.value,
            **{name: getattr(variant.config, name) for name in fields},
            "params": variant.params,
            **{name: getattr(variant.published, name) for name in ("macs_g", "top1", "note")},
        }
        for variant in VARIANTS.values()
    ]

    numbers = ("params M", "MACs G", "top-1 %")
    shown = (
        (
            *(str(row[key]) for key in ("variant", "tokens_type", "backbone")),
            f"{row['embed_dim']} x {row['depth']}, {row['num_heads']}",
            f"{row['params'] / 1e6:.2f}",
            *("" if row[key] is None else str(row[key]) for key in ("macs_g", "top1")),
        )
        for row in rows
    )

    def show() -> Iterator[RenderableType]:
        yield table(
            ("variant", "tokens", "backbone", "width x depth, heads", *numbers),
            shown,
            numbers=numbers,
            title="T2T-ViT, 224 px, 1000 classes; accuracy as its authors published it",
        )

    output.result({"variants": rows}, show())


@plain_command("list")
def list_artifacts(workspace: Any, output: Output) -> None:
    """List the artifacts, oldest first."""
    from t2t_deploy.commands import artifact_values

    artifacts = workspace.artifacts()

    def show() -> Iterator[RenderableType]:
        manifests = [(str(one.path), one.require_manifest()) for one in artifacts]
        rows = (
            (
                path,
                manifest.kind,
                manifest.precision.value,
                manifest.target,
                f"{manifest.size_bytes / 1e6:.1f}",
                f"failed: {manifest.failure}" if manifest.failed else "usable",
                manifest.created,
            )
            for path, manifest in manifests
        )
        yield table(("artifact", "kind", "precision", "target", "MB", "state", "made"), rows)

    output.result({"artifacts": [artifact_values(artifact) for artifact in artifacts]}, show())


@plain_command("check")
def check(workspace: Any, output: Output) -> int:
    """Compare every file with what is written of it."""
    from t2t_deploy.commands import examine_workspace

    found = examine_workspace(workspace)
    output.result(to_plain(found), check_lines(found))
    return CheckFailed.exit_status if found.problems else 0


_FOLDERS = click.Argument(
    ["folders"], nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False)
)
_CACHE = click.Option(
    ["--cache"],
    is_flag=True,
    help="Also what runtimes compiled and builders timed here; they do it again.",
)


@plain_command("prune", [_FOLDERS, _CACHE])
def prune(workspace: Any, output: Output, folders: tuple[Path, ...], cache: bool) -> None:
    """Remove what killed commands left behind; what a running one is writing stays.

    FOLDERS: others that commands wrote to, by -o, --csv or package. What is below them is not
    looked at.
    """
    from t2t_deploy.commands import prune_workspace

    removed = prune_workspace(workspace, folders, compiled=cache)
    names = [str(path) for path in removed]
    unknown = workspace.of_unknown_owner(folders)
    output.result(
        {"removed": names, "unknown": [str(path) for path in unknown]},
        [f"removed {len(names)} files and folders", *names, *unknown_lines(unknown)],
    )


class _Group(HelpNames, click.Group):
    """A group whose help has both names."""


workspace = _Group(
    "workspace",
    commands=[list_artifacts, check, prune],
    help="List, check and tidy the artifacts.",
    no_args_is_help=False,
)


_REPORT = click.Option(
    ["as_report", "--report"],
    is_flag=True,
    help="As Markdown for an issue, without paths and names of this machine.",
)


@plain_command("doctor", [_REPORT])
def doctor(workspace: Any, output: Output, as_report: bool) -> int:
    """Tell what this machine can build and run, why not the rest, and check the workspace."""
    from t2t_deploy.commands import backend_cells, bug_report, examine_machine, examine_workspace

    found = examine_machine()
    if as_report:
        report = bug_report(found)
        output.result({"report": report}, unwrapped(report))
        return 0
    checked = examine_workspace(workspace)
    found["workspace"] = {"path": str(workspace.root), **to_plain(checked)}

    def show() -> Iterator[RenderableType]:
        device = found["cuda_device"]
        yield (
            f"t2t-deploy {found['t2t_deploy']}, Python {found['python']}, {found['platform']}, "
            + (f"CUDA device of compute capability {device}" if device else "no CUDA device")
        )
        yield from _about(found["processor"])
        yield _about_limits(found["limits"])
        yield from (f"{name}: {can['why_not'] or 'yes'}" for name, can in found["can"].items())
        columns = ("backend", "version", "imports", "device", "builds", "runs")
        yield table(columns, map(backend_cells, found["backends"]))
        steps: dict[str, list[str]] = {}
        for backend in found["backends"]:
            for step in backend["steps"]:
                steps.setdefault(step, []).append(backend["name"])
        yield from (f"{', '.join(names)}: {step}" for step, names in steps.items())
        if found["onnxruntime"]["problem"]:
            yield f"onnxruntime: {found['onnxruntime']['problem']}"
        yield ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        first, *problems = check_lines(checked)
        yield f"workspace {workspace.root}: {first}"
        yield from problems

    output.result(found, show())
    return CheckFailed.exit_status if checked.problems else 0


def _about(processor: dict[str, Any]) -> list[str]:
    """The processor, and what it means for 8-bit and bf16 artifacts on it."""
    if processor["flags"] is None:
        return [f"processor: {processor['model']}; its instructions cannot be read here"]
    flags = ", ".join(processor["flags"]) or "none of AVX2 and later"
    integer = "without widening" if processor["vnni"] else "widened to 16 bits (no VNNI), so slower"
    return [
        f"processor: {processor['model']}; {flags}",
        f"8-bit products on it: {integer}",
        f"bf16 products on it: {'yes' if processor['bf16'] else 'no'}",
    ]


def _about_limits(limits: dict[str, Any]) -> str:
    """What a container leaves of the machine."""
    quota, memory = limits["quota"], limits["memory_bytes"]
    return (
        f"limits: {counted(limits['affinity'], 'core')}"
        + (", no quota" if quota is None else f", a quota of {quota:g} processors")
        + (", no memory limit" if memory is None else f", {memory / 2**20:,.0f} MiB of memory")
        + f"; {counted(limits['processors'], 'thread')} by default"
    )


_SHELLS = ("bash", "zsh", "fish")


@plain_command("completion", [click.Argument(["shell"], type=click.Choice(_SHELLS))])
def completion(workspace: Any, output: Output, shell: str) -> None:
    """Print a script that lets a shell complete commands, options and their values.

    \b
    t2t-deploy completion bash > ~/.local/share/bash-completion/completions/t2t-deploy
    t2t-deploy completion zsh > ~/.zfunc/_t2t-deploy          a folder of $fpath
    t2t-deploy completion fish > ~/.config/fish/completions/t2t-deploy.fish
    """
    made = get_completion_class(shell)
    assert made is not None, shell  # click has all three
    root = click.get_current_context().find_root()
    # the name that click looks for when the script calls the program back
    name = root.info_name or "t2t-deploy"
    variable = f"_{name.replace('-', '_')}_COMPLETE".upper()
    script = made(root.command, {}, name, variable).source()
    output.result({"shell": shell, "script": script}, unwrapped(script))
